"""Names of what babysit keeps in Ray: actors, and keys of Ray's key-value store."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote

LAUNCH, ACTOR, CLAIM, END, TOLD = "launch", "actor", "claim", "end", "told"
"""Keys of a worker: that it was ordered, the id of its actor, who may start its agent, how it
ended, and that the control plane has stored its end."""
LEFT = "left"
"""Key of a worker that was lost with its node: the machine that may still have what it left."""
ALL = "workers/"
"""With what the keys of all workers begin."""
STOPPED = "stopped"
"""The claim of a worker that was stopped before its agent started."""


class Key(NamedTuple):
    """A key of one worker."""

    run: str
    worker: str
    what: str


def key(run: str, worker: str, what: str) -> str:
    """The key in Ray's store."""
    return f"{prefix(run)}{quote(worker, safe='')}/{what}"


def prefix(run: str) -> str:
    """With what the keys of a run begin."""
    return f"{ALL}{quote(run, safe='')}/"


def parse(text: str) -> Key | None:
    """The parts of a key; None for a key that is not a worker's."""
    parts = text.split("/")
    if len(parts) != 4 or not text.startswith(ALL):
        return None
    return Key(unquote(parts[1]), unquote(parts[2]), parts[3])
