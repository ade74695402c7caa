"""Loads scenarios: shipped ones by name and any YAML file, with the position of each problem."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from functools import cache
from pathlib import Path
from typing import Any

from jobs.schema_words import Words, shown
from jobs.spec_file import ALIASES
from jobs.spec_types import parse_seconds
from jobs.yaml_file import FileKind, Problem, Source, SpecError, read_text
from orchestrator.simulation.scenario import checks
from orchestrator.simulation.scenario.model import Scenario

_FOLDER = importlib.resources.files("orchestrator.simulation") / "scenarios"


@cache
def _kind() -> FileKind[Scenario]:
    words = Words(Scenario.model_json_schema(), "the scenario", ALIASES)
    return FileKind(Scenario, words, "scenario", "scenario", depth=8)


def shipped() -> list[str]:
    """Names of the scenarios shipped with babysit, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".yaml")
    )


@dataclasses.dataclass(frozen=True)
class Written:
    """A scenario as written, from which what-if variants can be derived."""

    raw: dict[Any, Any]
    source: Source

    def scenario(self, changes: dict[str, str] | None = None) -> Scenario:
        """The validated scenario, with some fields changed: `spares`, `checkpoint`, a dotted path.

        Raises:
            SpecError: The scenario, or its variant, is invalid.
        """
        if not changes:
            return _checked(self.raw, self.source)
        # The file itself is valid, so report problems at the option, not at a line of the file.
        option = ",".join(f"{key}={value}" for key, value in changes.items())
        source = Source(f"--what-if {option}")
        last = {key: value for key, value in changes.items() if key == _INTERVAL}
        first = {key: value for key, value in changes.items() if key in _SHORT}
        raw = self.raw
        for key, value in {**first, **changes}.items():
            if key not in last:
                raw = _changed(raw, key, value)
        scenario = _checked(raw, source)
        for value in last.values():
            scenario = _checked(_with_interval(raw, scenario, value), source)
        return scenario


def _checked(raw: dict[Any, Any], source: Source) -> Scenario:
    scenario = _kind().validate(raw, source)
    if problems := checks.problems(scenario, source):
        raise SpecError(problems)
    return scenario


def load(name: str) -> Written:
    """Load a shipped scenario by name, or a file.

    Raises:
        SpecError: Neither exists, or the scenario is invalid.
    """
    if name in shipped():
        text, name = (_FOLDER / f"{name}.yaml").read_text(), f"{name}.yaml"
    else:
        hint = f"; shipped scenarios are {', '.join(shipped())}"
        text = read_text(Path(name), hint)
    return loads(text, name)


def loads(text: str, name: str = "scenario.yaml") -> Written:
    """Load a scenario from text.

    Raises:
        SpecError: The scenario is invalid.
    """
    written = Written(*_kind().data(text, name))
    written.scenario()
    return written


# what if


def parse_changes(text: str) -> dict[str, str]:
    """Parse `spares=4,checkpoint=10min` into fields and values.

    Raises:
        ValueError: The text is not of the form KEY=VALUE[,KEY=VALUE…].
    """
    changes = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ValueError(f"expected KEY=VALUE[,KEY=VALUE…] such as spares=4, got {shown(text)}")
        changes[key.strip()] = value.strip()
    return changes


_SHORT = {"spares": "cluster.spares", "nodes": "cluster.nodes"}
_INTERVAL = "checkpoint"


def _changed(raw: dict[Any, Any], key: str, value: str) -> dict[Any, Any]:
    path = re.findall(r"[^.\[\]]+", _SHORT.get(key, key))
    if not path:
        raise SpecError([Problem("--what-if", 0, 0, "", f"expected a field, got {shown(key)}")])
    changed = _set(raw, path, _number(value))
    if key == "nodes":  # keep runs that span the cluster spanning it
        before = raw.get("cluster", {}).get("nodes")
        for place, run in enumerate(raw.get("runs") or []):
            if run.get("spec", {}).get("resources", {}).get("nodes") == before:
                where = ["runs", str(place), "spec", "resources", "nodes"]
                changed = _set(changed, where, _number(value))
    return dict(changed)


def _set(node: Any, path: list[str], value: Any) -> Any:
    """A copy with one field set; missing parents are created."""
    if not path:
        return value
    head, *rest = path
    if isinstance(node, list) and head.isdigit() and int(head) < len(node):
        return [_set(each, rest, value) if i == int(head) else each for i, each in enumerate(node)]
    if isinstance(node, list):  # by name: failures.faulty GPU.expected
        names = [_name_of(each) for each in node]
        if head not in names:
            known = ", ".join(name for name in names if name) or f"0 to {len(node) - 1}"
            raise SpecError([Problem("--what-if", 0, 0, head, f"expected one of {known}")])
        return _set(node, [str(names.index(head)), *rest], value)
    inner = node if isinstance(node, dict) else {}
    return {**inner, head: _set(inner.get(head), rest, value)}


def _name_of(each: Any) -> str:
    """The name of a list item; empty: it has none."""
    if not isinstance(each, dict):
        return ""
    return str(each.get("name") or (each.get("spec") or {}).get("name", ""))


def _with_interval(raw: dict[Any, Any], scenario: Scenario, value: str) -> dict[Any, Any]:
    """Set the checkpoint interval of every run to about this time."""
    text = re.sub(r"min\b", "m", value)
    try:
        seconds = float(str(parse_seconds(text if re.search(r"[a-z]", text) else f"{text}s")))
    except ValueError as error:
        raise SpecError([Problem("--what-if", 0, 0, _INTERVAL, str(error))]) from error
    runs = [(("runs", str(i)), run) for i, run in enumerate(scenario.runs)]
    likes = [
        (("populations", str(i), "like"), each.like) for i, each in enumerate(scenario.populations)
    ]
    changed: Any = raw
    for where, run in (*runs, *likes):
        every = max(1, round(seconds / run.step_seconds))
        changed = _set(changed, [*where, "spec", "checkpoint", "every_steps"], every)
    return dict(changed)


def _number(value: str) -> object:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value, value)
