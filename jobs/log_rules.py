"""Reads rules for logs from YAML files of users, and puts the rules of a run together.

Each problem is one line: `rules.yaml:3:10: rules[0].match: …`. What a rule is, and the rules that
come with babysit: :mod:`monitors.exit_rules`, :mod:`monitors.rule_files`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobs.schema_words import Words
from jobs.yaml_file import FileKind, read_text
from monitors.exit_rules import RuleFile, RuleSet
from monitors.rule_files import builtin_rules

_HINT = "; give `rules:`, a list of names, classes and patterns (docs/monitors.md, Rules)"
_RULES = FileKind(
    RuleFile,
    Words(RuleFile.model_json_schema(), "a file of rules for logs"),
    "file of rules for logs",
    "set of rules",
    _HINT,
)


def read(path: str | Path) -> RuleFile:
    """Read a file of rules.

    Raises:
        SpecError: the file cannot be read, holds no rule, or a rule of it is wrong.
    """
    return parse(read_text(path, _HINT), str(path))


def parse(text: str, name: str = "rules.yaml") -> RuleFile:
    """Read rules from text; `name` is what problems are reported under.

    Raises:
        SpecError: the text holds no rule, or a rule of it is wrong.
    """
    return _RULES.parse(text, name)[0]


def rule_set(run: Iterable[RuleFile], cluster: Iterable[RuleFile]) -> RuleSet:
    """The rules for the logs of a run: its own, then its cluster's, then babysit's.

    A rule that comes earlier is asked first, and replaces a later one of its name.
    """
    rules = builtin_rules()
    for file in (*reversed([*cluster]), *reversed([*run])):
        rules = rules.extended(file.all_rules(), file.xids)
    return rules
