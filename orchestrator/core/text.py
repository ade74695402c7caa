"""Phrases that several sentences share."""

from __future__ import annotations

from collections.abc import Sequence


def named(many: Sequence[object], most: int = 8) -> str:
    """Nodes, workers or ranks by name, as far as a person would read them."""
    more = f" and {len(many) - most:,} more" if len(many) > most else ""
    return ", ".join(map(str, many[:most])) + more


def outcome(state: str, reason: str) -> str:
    """`was cancelled by operator:mia: wrong data`, `failed: RuntimeError: …`, `succeeded: …`.

    A reason that begins with the state, as that of a cancelled run does, is not repeated.
    """
    why = reason.removeprefix(f"{state} ")
    joint = " " if why != reason else ": "
    return ("was " if state == "cancelled" else "") + state + (joint + why if why else "")
