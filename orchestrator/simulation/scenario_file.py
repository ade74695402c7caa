"""Reads scenarios: those shipped, by name, and any YAML file, with the position of each problem."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.schema_words import Words, shown
from jobs.spec import parse_seconds
from jobs.yaml_file import FileKind, Problem, Source, SpecError, read_text
from orchestrator.core.events import EVENT
from orchestrator.simulation.scenario import Scenario

_FOLDER = importlib.resources.files("orchestrator.simulation") / "scenarios"
_EVENT_KINDS: dict[str, Any] = EVENT.json_schema()["discriminator"]["mapping"]


@cache
def _kind() -> FileKind[Scenario]:
    words = Words(Scenario.model_json_schema(), "the scenario")
    return FileKind(Scenario, words, "scenario", "scenario", depth=8)


def shipped() -> list[str]:
    """Names of the scenarios that come with babysit."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".yaml")
    )


@dataclasses.dataclass(frozen=True)
class Written:
    """A scenario as it was written, so that it can be varied."""

    raw: dict[Any, Any]
    source: Source

    def scenario(self, changes: dict[str, str] | None = None) -> Scenario:
        """The scenario, with some fields set anew: `spares`, `checkpoint`, or a dotted path.

        Raises:
            SpecError: It is not valid (any more).
        """
        raw, source = self.raw, self.source
        for key, value in (changes or {}).items():
            raw = _changed(raw, key, value)
        scenario = _kind().validate(raw, source)
        problems = _event_problems(scenario, source)
        if problems:
            raise SpecError(problems)
        return scenario


def load(name: str) -> Written:
    """A shipped scenario by its name, or a file.

    Raises:
        SpecError: There is none, or it is no valid scenario.
    """
    if name in shipped():
        text, name = (_FOLDER / f"{name}.yaml").read_text(), f"{name}.yaml"
    else:
        hint = f"; shipped scenarios are {', '.join(shipped())}"
        text = read_text(Path(name), hint)
    return loads(text, name)


def loads(text: str, name: str = "scenario.yaml") -> Written:
    """A scenario from text.

    Raises:
        SpecError: It is no valid scenario.
    """
    written = Written(*_kind().data(text, name))
    written.scenario()
    return written


def _event_problems(scenario: Scenario, source: Source) -> list[Problem]:
    """What the core does not understand among the events."""
    problems = []
    for place, event in enumerate(scenario.events):
        if event.kind not in _EVENT_KINDS:
            known = ", ".join(sorted(_EVENT_KINDS))
            problems.append(
                source.problem(
                    ("events", place, "kind"), f"expected one of {known}, got {shown(event.kind)}"
                )
            )
            continue
        try:
            EVENT.validate_python(event.of_the_core("1", scenario.begin))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                path = tuple(key for key in item["loc"] if key != event.kind)
                problems.append(source.problem(("events", place, *path), item["msg"].lower()))
    return problems


# what if


def parse_changes(text: str) -> dict[str, str]:
    """`spares=4,checkpoint=10min` as fields and values.

    Raises:
        ValueError: It does not read like that.
    """
    changes = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ValueError(f"expected KEY=VALUE[,KEY=VALUE…] such as spares=4, got {shown(text)}")
        changes[key.strip()] = value.strip()
    return changes


_SHORT = {"spares": "cluster.spares", "nodes": "cluster.nodes"}


def _changed(raw: dict[Any, Any], key: str, value: str) -> dict[Any, Any]:
    if key == "checkpoint":
        return _with_interval(raw, value)
    path = re.findall(r"[^.\[\]]+", _SHORT.get(key, key))
    changed = _set(raw, path, _number(value))
    if key == "nodes":  # runs that span the cluster span the new one
        before = raw.get("cluster", {}).get("nodes")
        for place, run in enumerate(raw.get("runs") or []):
            if run.get("spec", {}).get("resources", {}).get("nodes") == before:
                where = ["runs", str(place), "spec", "resources", "nodes"]
                changed = _set(changed, where, _number(value))
    return dict(changed)


def _set(node: Any, path: list[str], value: Any) -> Any:
    """A copy with one field set; what is not there yet is made."""
    if not path:
        return value
    head, *rest = path
    if isinstance(node, list) and head.isdigit() and int(head) < len(node):
        return [_set(each, rest, value) if i == int(head) else each for i, each in enumerate(node)]
    if isinstance(node, list):  # by name: failures.faulty GPU.expected
        names = [str(each.get("name", each.get("spec", {}).get("name"))) for each in node]
        if head not in names:
            raise SpecError(
                [Problem("--what-if", 0, 0, head, f"expected one of {', '.join(names)}")]
            )
        return _set(node, [str(names.index(head)), *rest], value)
    inner = node if isinstance(node, dict) else {}
    return {**inner, head: _set(inner.get(head), rest, value)}


def _with_interval(raw: dict[Any, Any], value: str) -> dict[Any, Any]:
    """Every run saves about so often."""
    text = re.sub(r"min\b", "m", value)
    try:
        seconds = float(str(parse_seconds(text if re.search(r"[a-z]", text) else f"{text}s")))
    except ValueError as error:
        raise SpecError([Problem("--what-if", 0, 0, "checkpoint", str(error))]) from error
    changed = raw
    for place, run in enumerate(raw.get("runs") or []):
        every = _steps(run, seconds)
        where = ["runs", str(place), "spec", "checkpoint", "every_steps"]
        changed = _set(changed, where, every)
    for place, each in enumerate(raw.get("populations") or []):
        every = _steps(each.get("like", {}), seconds)
        where = ["populations", str(place), "like", "spec", "checkpoint", "every_steps"]
        changed = _set(changed, where, every)
    return dict(changed)


def _steps(run: dict[Any, Any], seconds: float) -> int:
    each = float(
        str(parse_seconds(str(run.get("step_seconds", 1))))
        if isinstance(run.get("step_seconds"), str)
        else run.get("step_seconds", 1)
    )
    return max(1, round(seconds / each))


def _number(value: str) -> object:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value, value)
