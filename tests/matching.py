"""Partial matches: an instruction or a command of which only some fields matter.

assert command(StopAttempt, grace_seconds=30.0) in world.do(event)
assert match(Notify, severity=Severity.CRITICAL) not in world.carried
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from jobs.commands import Command
from orchestrator.core.messages.instructions import SendCommand


class Match:
    """Equal to any object of a kind that has these fields; fields not named may be anything."""

    def __init__(self, kind: type[BaseModel], fields: dict[str, Any]) -> None:
        unknown = fields.keys() - kind.model_fields.keys()
        if unknown:  # it would never match, and a `not in` would always hold
            raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
        self.kind, self.fields = kind, fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, self.kind) and all(
            getattr(other, name) == wanted for name, wanted in self.fields.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        wanted = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"<any {self.kind.__name__}({wanted})>"


def match(kind: type[BaseModel], **fields: Any) -> Any:
    """What equals any `kind` with these fields.

    Raises:
        TypeError: The kind has no such field.
    """
    return Match(kind, fields)


def command(kind: type[Command], *, worker: Any = None, **fields: Any) -> Any:
    """What equals the instruction to send such a command, to a worker or (None) to any."""
    addressed = {} if worker is None else {"worker": worker}
    return match(SendCommand, command=match(kind, **fields), **addressed)
