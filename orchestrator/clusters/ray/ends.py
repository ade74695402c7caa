"""Words for how workers ended, from what Ray says."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.clusters.ray.facts import RayNode

NEVER = "agent never started"
LOST = "node lost"
FORGOTTEN = (
    "the Ray cluster was started anew, and its nodes with it: the control store (GCS) has no"
    " storage that outlives it"
)
"""The end of a worker of a former cluster; see :mod:`.identity`."""
_SENTENCES = (
    (" Some common causes include", ""),
    ("The actor is dead because its worker process has died. ", ""),
    ("The actor died because its node has died. ", ""),
)


def words(said: str) -> str:
    """The words of Ray, without its advice to its own users, at most 300 characters."""
    for found, instead in _SENTENCES:
        if found == _SENTENCES[0][0]:
            said = said.partition(found)[0]
        said = said.replace(found, instead)
    return f"{said.strip() or 'no reason is given':.300}"


def node_lost(node: str, said: str) -> str:
    """The end of a worker whose node Ray has declared dead."""
    return f"{LOST}: {node}: {words(said)}"


def actor_died(said: str, *, started: bool) -> str:
    """The end of a worker whose actor died on a node that lives."""
    if not started:
        return f"{NEVER}: its actor died: {words(said)}"
    return f"agent was ended with its actor: {words(said)}"


def no_room(wanted: Mapping[str, float], node: RayNode) -> str:
    """Why a node cannot take a worker now: other jobs have taken its place; empty: it can."""
    short = []
    for name, amount in wanted.items():
        total = node.total.get(name, 0.0)
        left = total - node.others.get(name, 0.0)
        if amount > left:
            sizes = [_amount(name, each) for each in (left, total, amount)]
            short.append(f"{sizes[0]} of {sizes[1]} {name} left, {sizes[2]} wanted")
    if not short:
        return ""
    return f"other jobs of the Ray cluster use {node.name}: {'; '.join(short)}"


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB" if name == "memory" else f"{amount:g}"
