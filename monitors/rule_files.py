"""Reads the rules that come with babysit: `monitors/rules/*.yaml`, part of the package like code.

Files of users are read by :mod:`jobs.log_rules`, which says where a mistake is.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from monitors.exit_rules import LogRule, RuleFile, RuleSet


@cache
def builtin_files() -> dict[str, RuleFile]:
    """The files, by name.

    Raises:
        RuntimeError: the package holds no rules, or broken ones: it was built or copied badly.
    """
    found = {}
    for resource in sorted(
        files("monitors").joinpath("rules").iterdir(), key=lambda each: each.name
    ):
        if resource.name.endswith(".yaml"):
            try:
                raw = YAML(typ="safe").load(resource.read_text(encoding="utf-8"))
                found[resource.name] = RuleFile.model_validate(raw)
            except (ValueError, YAMLError) as error:
                raise RuntimeError(f"monitors/rules/{resource.name}: {error}") from error
    if not found:
        raise RuntimeError("the package holds no rules for logs (monitors/rules/*.yaml)")
    return found


@cache
def builtin_rules() -> RuleSet:
    """The rules that come with babysit, compiled. Takes about 0.2 s the first time."""
    read = builtin_files().values()
    rules: list[LogRule] = [rule for each in read for rule in each.rules]
    return RuleSet(rules, {named: codes for each in read for named, codes in each.xids.items()})
