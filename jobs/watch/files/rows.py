"""One row of a file of metrics: what its formats have in common. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

_DEEPEST = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Numbers that were written together."""

    values: Mapping[str, float]
    """By name; names of nested ones are joined by slashes."""
    step: int | None = None
    """The step that the format itself gives to the row; None: it has none, a value may have it."""
    time: float | None = None
    """Unix seconds, where the format has them."""
    counts: bool = False
    """True if the step has ended though no loss is known."""


def numbers(
    found: Mapping[Any, Any], before: str = "", depth: int = 0
) -> Iterator[tuple[str, float]]:
    """The numbers of a mapping, also where they are written as text; all else is left out."""
    for key, value in found.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            if depth < _DEEPEST:
                yield from numbers(value, f"{name}/", depth + 1)
        elif (number := as_number(value)) is not None:
            yield name, number


def as_number(value: object) -> float | None:
    """A value as a number; None: it has another type."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
