"""References to runs, incidents and events: ids, unique prefixes, names. Shared by all stores."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from orchestrator.errors import NotFoundError

_LISTED_BY = {"run": "babysit ls", "incident": "babysit incidents ls"}
SHORTEST = 4
"""Minimum length of a prefix or suffix."""

_INSTRUCTIONS = 16


def ids_of(event: str) -> list[str]:
    """Ids in the journal of an event and of its first instructions; see `Turn.next_id`."""
    return [event, *(f"{event}.{number}" for number in range(1, _INSTRUCTIONS + 1))]


def pick_run(reference: str, candidates: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    """The id of the run that a reference means.

    Args:
        reference: An id, a name, or the first or last characters of an id.
        candidates: (id, name) of runs that match, newest first.
        names: Names of other runs, for a hint.

    Raises:
        NotFoundError: No or several runs match; the message lists similar names.
    """
    for id_, _ in candidates:
        if id_ == reference:
            return id_
    for id_, name in candidates:
        if name == reference:
            return id_
    return _only("run", reference, [id_ for id_, _ in candidates], names)


def pick_incident(reference: str, candidates: Sequence[str], ids: Sequence[str]) -> str:
    """The id of the incident that a reference means: an id, its first or its last characters.

    Raises:
        NotFoundError: No or several incidents match.
    """
    return reference if reference in candidates else _only("incident", reference, candidates, ids)


def is_part_of(reference: str, id_: str, *, suffix: bool = False) -> bool:
    """True if `reference` is all of `id_`, or at least 4 characters of its start (or its end)."""
    if len(reference) < SHORTEST:
        return reference == id_
    short, long = reference.upper(), id_.upper()
    return long.startswith(short) or (suffix and long.endswith(short))


def _only(what: str, reference: str, found: Sequence[str], known: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise NotFoundError(
            f"{reference!r} matches {len(found)} {what}s: {listed}; give more characters"
        )
    near = difflib.get_close_matches(reference, dict.fromkeys(known), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NotFoundError(f"no {what} {reference!r}{hint}; see `{_LISTED_BY[what]}`")
