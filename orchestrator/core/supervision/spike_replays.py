"""The verdict of a replayed spike, with the nodes on which its steps were computed again.

A loss that differs is evidence about a node only where the rank was on two nodes: then one of the
two computed wrongly. On the same node, a fault that comes and goes and a script that repeats its
steps only for a while look alike. A loss that comes back on other nodes clears all machines; on the
same nodes, one that makes the same mistake twice is not ruled out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monitors.replica_memory import Outcome
from orchestrator.core.attempts.replay_seats import PLACES
from orchestrator.core.model.entities import Incident
from orchestrator.core.text import counted, named


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """The places of a replay, as far as they are known."""

    elsewhere: bool = False
    """True if no rank was on the node where it had been."""
    suspects: tuple[str, ...] = ()
    """Nodes of which one computed wrongly; empty: the replay is evidence against none."""
    said: str = ""
    """A clause for people; empty: the places are not known."""


def where(incident: Incident, evidence: Mapping[str, Any]) -> Where:
    """Judge a replay by the places of its ranks.

    Args:
        incident: The spike, with the places in its evidence.
        evidence: That of the finding: the outcome, and the ranks whose losses differ.
    """
    places = incident.evidence.get(PLACES)
    if not places:
        return Where()
    ranks, moved = int(places["ranks"]), int(places["moved"])
    seats = places.get("seats", ())
    if moved == 0:
        doubt = _ON_THE_SAME.get(evidence["outcome"], "")
        return Where(said=f"on the same {'node' if len(seats) == 1 else 'nodes'} as before{doubt}")
    elsewhere = moved == ranks
    said = "each rank on another node than before" if elsewhere else (
        f"{moved} of {counted(ranks, 'rank')} on other nodes than before"
    )  # fmt: skip
    said += f" ({_listed(seats)})" if seats else ""
    if evidence["outcome"] != Outcome.HARDWARE:
        return Where(elsewhere, said=said)
    suspects = tuple(sorted(_suspects(seats, evidence.get("ranks", ()))))
    if suspects:
        said += f": {' or '.join(suspects)} computed wrongly"
    return Where(elsewhere, suspects, said)


_ON_THE_SAME: dict[str, str] = {
    Outcome.DATA: ": a machine that makes the same mistake twice is not ruled out",
    Outcome.HARDWARE: ": no evidence against a node",
}


def _listed(seats: Sequence[Mapping[str, Any]]) -> str:
    """`rank 0: node-1, now node-0`."""
    return named([f"{_ranks(s['ranks'])}: {s['then']}, now {s['now']}" for s in seats], most=4)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def _suspects(seats: Sequence[Mapping[str, Any]], ranks: Sequence[int]) -> Iterator[str]:
    """Both nodes of the one rank whose loss differs, if it has changed its node."""
    for seat in seats:
        if len(ranks) == 1 and ranks[0] in seat["ranks"] and seat["then"] != seat["now"]:
            yield from {seat["then"], seat["now"]} - {""}
