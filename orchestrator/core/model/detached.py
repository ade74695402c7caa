"""A copy of the state for another thread, as the state itself is not safe for threads."""

from __future__ import annotations

from typing import TypeGuard

from orchestrator.core.model.derived import Derived
from orchestrator.core.model.state import State


def detached(state: State) -> State:
    """A copy to be read by another thread; later turns change nothing in it.

    Copies the dictionaries; the entities, which never change, are shared. Whatever is derived from
    them is made anew by its first reader, as it fills caches of its own.
    """
    made = State.__new__(State)
    for name, value in {**vars(state), "_node_table": None, "derived": Derived()}.items():
        setattr(made, name, _copied(value))
    return made


def _copied(value: object) -> object:
    """A copy of a dictionary, with those in it, of a set or of a list; anything else as it is."""
    if isinstance(value, dict):
        made = value.copy()
        made.update({key: each.copy() for key, each in value.items() if _is_container(each)})
        return made
    return value.copy() if isinstance(value, set | list) else value


def _is_container(value: object) -> TypeGuard[dict[str, object] | set[str]]:
    return isinstance(value, dict | set)
