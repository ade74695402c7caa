"""A run spec with other settings: `monitors.loss_spike.threshold=6`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from jobs.spec import Action, RunSpec
from orchestrator.errors import InvalidError

CHANGEABLE = ("monitors.loss_spike.", "monitors.hang.", "checkpoint.")
"""Settings whose effect on a recorded run can be computed."""


def changed(spec: RunSpec, settings: Mapping[str, Any], policy: Action | None = None) -> RunSpec:
    """The spec with other values at dotted paths, checked as a submission is.

    Args:
        spec: The spec of a recorded run.
        settings: Path → value; a text such as "20s" is read as in a file.
        policy: The action of every monitor; a path in `settings` has the last word.

    Raises:
        InvalidError: There is no such setting, or its value is out of bounds.
    """
    content = spec.model_dump(mode="json", by_alias=True)
    if policy is not None:
        for monitor in ("loss_spike", "hang"):
            content["monitors"][monitor]["action"] = policy.value
    for path, value in settings.items():
        _put(content, path, value)
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidError(f"--set {place}: {first['msg']}", field=place) from error


def read(assignments: Iterable[str]) -> dict[str, str]:
    """Settings from words of the form PATH=VALUE.

    Raises:
        InvalidError: A word has another form, or names what a backtest cannot judge.
    """
    found = {}
    for word in assignments:
        path, equals, value = word.partition("=")
        if not equals or not path or not value:
            raise InvalidError(
                f"--set {word}: expected PATH=VALUE, such as monitors.loss_spike.threshold=6"
            )
        if not path.startswith(CHANGEABLE):
            raise InvalidError(
                f"--set {path}: recorded runs cannot say what this setting changes; expected one"
                f" that begins with {', '.join(CHANGEABLE)}"
            )
        found[path] = value
    return found


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = content
    for number, name in enumerate((*parents, last)):
        if not isinstance(place, dict) or name not in place:
            known = sorted(place) if isinstance(place, dict) else ()
            raise InvalidError(
                f"--set {path}: there is no such setting;"
                f" {'.'.join(parents[:number])} has {', '.join(known) or 'no settings below it'}"
            )
        place, above = place[name], place
    above[last] = value
