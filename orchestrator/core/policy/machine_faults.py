"""Decides what a finding about a machine is worth: corroborated, repeated, or everybody's. Pure.

The problem: an Xid of a program shows wherever the program runs, a switch that fails makes every
machine behind it look faulty, and a machine that comes back again and again costs a restart each
time. The design: a sign that programs cause counts once for each run that met it on the device, and
not at all if the run met it on other devices too; signs of a kind that a shared part causes are
looked at together, by the labels of their nodes; and the third time within a month is for good.

Limits: runs are known by the workers that are on the node when the finding arrives. Labels are what
the cluster says of its topology; without them only the whole cluster is looked at.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Iterator

from monitors.failures import CAUSE_OF, Cause, FailureClass
from monitors.hardware.types import NodeAction, NodeFinding
from monitors.types import Severity
from orchestrator.core.model.entities import Node
from orchestrator.core.model.machine_record import Sighting
from orchestrator.core.model.states import NodeState

TOGETHER = dt.timedelta(minutes=5)
"""Signs this close together may have one cause: the window of the breaker (FAILURES row 27)."""
TOGETHER_NODES, TOGETHER_SHARE = 3, 0.10
"""This many machines, and more than this share of all, are everybody's trouble: as the breaker."""
DOMAIN_NODES, DOMAIN_SHARE = 2, 0.5
"""This many machines, and this share of those with the same label, are the trouble of what they
share (FAILURES row 5: two nodes on one switch)."""
DOMAINS = ("nvlink", "switch", "leaf", "rack", "spine", "zone")
"""Labels that name a shared part, the smallest first."""
_WIDE = dt.timedelta(minutes=10)
_WIDE_DEVICES = 3
"""A sign that a run meets on this many devices within that time is the run's. FAILURES row 2."""
REPEATS, REPEAT_WINDOW = 3, dt.timedelta(days=30)
"""A node that its machine's faults took away this often is not taken back by itself. Ours, after
NVSentinel, which wants a person for nodes that come back, and gpud: repeated, then inspected."""

SHARED = (
    frozenset({FailureClass.NETWORK, FailureClass.GPU_INTERCONNECT, FailureClass.WORKER_LOST}),
    frozenset({FailureClass.STORAGE}),
    frozenset({FailureClass.UNKNOWN}),  # heat, power, clocks
)
"""Families of classes that a switch or a rack's power, the storage, or the cooling may cause on
many machines."""
_TAKES_AWAY = frozenset(
    {
        NodeAction.DRAIN_AFTER_JOB,
        NodeAction.DRAIN_NOW,
        NodeAction.RESET,
        NodeAction.REBOOT,
        NodeAction.NEVER_USE,
    }
)


def takes_away(action: NodeAction) -> bool:
    """True if the node takes no new work because of the action."""
    return action in _TAKES_AWAY


def runs_that_met(node: Node, finding: NodeFinding, nodes: Collection[Node]) -> int:
    """The number of runs that met a sign on one device, each counted once, the newest too.

    A sighting whose runs were counted already, or that its run met on many devices, adds none: two
    runs on one node cannot be told apart, so both count as one.
    """
    counted: set[str] = set()
    met = 0
    for sighting in node.health.sightings:
        same = (sighting.rule, sighting.device) == (finding.rule, finding.device)
        recent = finding.time - sighting.at.timestamp() <= finding.window_seconds
        if not same or not recent or not counted.isdisjoint(sighting.runs):
            continue
        if not _is_wide(sighting, nodes):
            met += 1
            counted |= set(sighting.runs)
    return met


def _is_wide(sighting: Sighting, nodes: Iterable[Node]) -> bool:
    devices = {
        (node.id, other.device)
        for node in nodes
        for other in node.health.sightings
        if other.rule == sighting.rule
        and abs(other.at - sighting.at) <= _WIDE
        and not set(other.runs).isdisjoint(sighting.runs)
    }
    return len(devices) >= _WIDE_DEVICES


@dataclasses.dataclass(frozen=True, slots=True)
class Correlation:
    """A cause that several machines share."""

    subject: str
    """`rack r7`, or `the cluster`."""
    nodes: tuple[str, ...]
    everywhere: bool
    """True if no smaller part than the cluster explains it."""

    @property
    def cause(self) -> str:
        """The cause in words."""
        if self.everywhere:
            return "the network, the storage, the power or the cooling"
        return f"a part that {self.subject} shares, such as its switch or its power"


def correlation(
    nodes: Collection[Node], failure_class: FailureClass, now: dt.datetime
) -> Correlation | None:
    """The shared cause of signs of a class that came together; None: there is none.

    Faults of GPUs, which are in no family of `SHARED`, are one cause only if the cluster has them
    everywhere at once.
    """
    if CAUSE_OF[failure_class] is Cause.USER:
        return None  # a program that many machines run
    there = {node.id: node for node in nodes if node.state is not NodeState.GONE}
    family = next((each for each in SHARED if failure_class in each), None)
    kinds = family or frozenset({failure_class})
    ill = {n.id: n for n in there.values() if _shows(n, kinds, now, hard=family is None)}
    if family is not None:
        for label, value, members in _domains(there.values()):
            inside = [node for node in members if node.id in ill]
            machines, hurt = _machines(members), _machines(inside)
            whole = len(machines) == len(_machines(there.values()))
            enough = len(hurt) >= DOMAIN_NODES and len(hurt) >= DOMAIN_SHARE * len(machines)
            if enough and not whole and len(hurt) == len(_machines(ill.values())):
                names = tuple(sorted(node.id for node in inside))
                return Correlation(f"{label} {value}", names, everywhere=False)
    machines, hurt = _machines(there.values()), _machines(ill.values())
    if len(hurt) >= max(TOGETHER_NODES, int(TOGETHER_SHARE * len(machines)) + 1):
        return Correlation("the cluster", tuple(sorted(ill)), everywhere=True)
    return None


def _shows(node: Node, kinds: Collection[FailureClass], now: dt.datetime, *, hard: bool) -> bool:
    """True if a node has told of a class lately; `hard`: of what takes a node away alone."""
    return any(
        now - sighting.at <= TOGETHER
        and sighting.failure_class in kinds
        and sighting.severity is not Severity.INFO
        and (takes_away(sighting.action) or not hard)
        for sighting in node.health.sightings
    )


def _domains(nodes: Collection[Node]) -> Iterator[tuple[str, str, list[Node]]]:
    for label in DOMAINS:
        members: dict[str, list[Node]] = {}
        for node in nodes:
            if node.labels.get(label):
                members.setdefault(node.labels[label], []).append(node)
        yield from ((label, value, each) for value, each in sorted(members.items()))


def _machines(nodes: Iterable[Node]) -> set[str]:
    return {node.machine for node in nodes}


def is_repeat_offender(taken: Iterable[dt.datetime], now: dt.datetime) -> bool:
    """True if a node was taken away too often lately: only an operator takes it back."""
    return sum(now - each <= REPEAT_WINDOW for each in taken) >= REPEATS


def command(action: NodeAction, node: str, device: str) -> str:
    """The command for a person after the drain; empty: none. No cluster resets or reboots.

    babysit has no access to the machine, so it pages with the command.
    """
    back = f"`babysit nodes uncordon {node}`"
    if action is NodeAction.RESET:
        of = f" --id={device}" if device else ""
        return (
            f"when it is drained, reset the GPU on {node} (`nvidia-smi --gpu-reset{of}`, or"
            f" `amd-smi reset --gpureset`), or reboot; then {back}"
        )
    if action is NodeAction.REBOOT:
        return f"when it is drained, reboot {node} (`systemctl reboot`): it is then taken back"
    if action is NodeAction.NEVER_USE:
        return f"have {node} repaired; then {back}"
    return ""
