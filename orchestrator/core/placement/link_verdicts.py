"""The verdict on the link between two nodes, and on the node that is bad with more than one. Pure.

The problem: a bad measurement of a link says that one of two nodes, or the way between them, is
bad, and not which. The design is that of DLRover's network check: each end is tried again with
another partner. A node is to blame if its links to two other machines are bad, and both of these
are good with a third, and were so while the node was bad: an outage of the network makes each link
bad for a while, and figures from before it acquit nobody. A good link clears both of its ends.

Limits: where a network falls apart, a node that meets only nodes of the other part looks bad. With
two machines nobody is to blame, nor where no link of the fleet is good. A rate is judged only
between two nodes alike, by the links of nodes like them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jobs.checks.measurement import LATENCY, RATE
from jobs.checks.results import LINK, CheckResult, Verdict
from monitors.hardware.limits import FleetLimits
from orchestrator.core.model.checking import PREFLIGHT, LinkTrial, Measured
from orchestrator.core.model.entities import Node
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import check_verdicts

WINDOW = dt.timedelta(hours=1)
"""Trials that are older say nothing about the link of today. An estimate of ours."""
PARTNERS = 2
"""Partners with which a node must be bad, as in the two rounds of DLRover's network check."""
LATENCY_MARGIN = 1000.0
"""Microseconds of a round trip above the median that may have other causes than the link. An
estimate of ours: within a data centre a round trip takes 20 to 200 us, and a lost packet costs
200,000."""
MOST_TRIALS = 8
"""Trials that are kept of a node."""
_LIMITS = FleetLimits()


class Judged(NamedTuple):
    """The results of a link, and what is wrong with it."""

    results: tuple[CheckResult, ...]
    bad: str
    """In words, with the figure and the limit; empty: the link is good."""


def judge(pair: tuple[Node, Node], results: Iterable[CheckResult], nodes: Iterable[Node]) -> Judged:
    """The results with the limits of the fleet."""
    one, other = pair
    machines = {one.machine, other.machine}
    like = [
        node for node in nodes if node.machine not in machines and check_verdicts.is_like(node, one)
    ]
    comparable = like if check_verdicts.is_like(other, one) else []
    named = [_named(result) for result in results]
    limited = tuple(_with_limit(result, comparable) for result in named)
    bad = "; ".join(words for result in limited if (words := _trouble(result, comparable)))
    return Judged(limited, bad)


def _named(result: CheckResult) -> CheckResult:
    """A program that hung has measured nothing; its rate is the result that is missing."""
    return result.model_copy(update={"check": RATE}) if result.check == LINK else result


def _with_limit(result: CheckResult, like: list[Node]) -> CheckResult:
    if result.figure is None:
        return result
    others = check_verdicts.figures(result, like)
    below = result.check == RATE
    limit = _LIMITS.lower(others) if below else _LIMITS.upper(others, LATENCY_MARGIN)
    return result.model_copy(update={"limit": limit})


def _trouble(result: CheckResult, like: list[Node]) -> str:
    if result.verdict is Verdict.FAILED:
        return result.reason
    if result.figure is None or result.limit is None:
        return ""
    of_rate = result.check == RATE
    if not (result.figure < result.limit if of_rate else result.figure > result.limit):
        return ""
    count = len(check_verdicts.figures(result, like))
    return (
        f"{'' if of_rate else 'a round trip of '}{result.figure:.4g} {result.unit}; the limit by"
        f" {count} like nodes is {result.limit:.4g} {result.unit}"
    )


def with_trial(measured: Measured, trial: LinkTrial) -> tuple[LinkTrial, ...]:
    """The trials with this one as the newest; one for each partner."""
    others = tuple(each for each in measured.links if each.partner != trial.partner)
    return (*others, trial)[-MOST_TRIALS:]


def bad_trials(node: Node, now: dt.datetime) -> list[LinkTrial]:
    """The bad trials since the last good one, oldest first."""
    found: list[LinkTrial] = []
    for trial in node.measured.links:
        if now - trial.at <= WINDOW:
            found = [*found, trial] if trial.bad else []
    return found


def is_good(node: Node, now: dt.datetime) -> bool:
    """True if the newest trial of a node was good."""
    lately = [trial for trial in node.measured.links if now - trial.at <= WINDOW]
    return bool(lately) and not lately[-1].bad


def _good_at(node: Node, without: str, since: dt.datetime) -> dt.datetime | None:
    """When the newest trial of a node, with another one than `without`, was good; None: never."""
    lately = [each for each in node.measured.links if each.partner != without]
    good = bool(lately) and not lately[-1].bad and lately[-1].at >= since
    return lately[-1].at if good else None


def has_failed(node: Node) -> bool:
    """True if the node was found to blame for bad links, and has had no good one since."""
    return any(
        each.result.check in {RATE, LATENCY} and each.result.verdict is Verdict.FAILED
        for each in node.measured.results
    )


def is_away(node: Node) -> bool:
    """True if the node is cordoned since it was found to blame."""
    cordoned = node.state is NodeState.CORDONED and node.by == PREFLIGHT
    return cordoned and has_failed(node)


def evidence(node: Node, nodes: Mapping[str, Node], now: dt.datetime) -> list[LinkTrial]:
    """The trials that prove that a node is to blame; empty: nothing proves it.

    A partner that has gone or was taken away since may have been the cause, good as it was before.
    """
    bad = bad_trials(node, now)
    found, goods = _proven(node, bad, nodes, since=bad[0].at if bad else now)
    if len(found) < PARTNERS or min(goods) > max(trial.at for trial in found):
        return []  # no link is known to have been good before the newest bad one
    return found


def proven_since(node: Node, nodes: Mapping[str, Node], now: dt.datetime) -> set[str]:
    """Machines with which a node was bad, and that were good later: one more trial decides.

    Empty where it does not.
    """
    found = [
        trial for trial in bad_trials(node, now) if _proven(node, [trial], nodes, since=trial.at)[0]
    ]
    machines = {nodes[trial.partner].machine for trial in found}
    return machines if len(machines) >= PARTNERS else set()


def _proven(
    node: Node, bad: Iterable[LinkTrial], nodes: Mapping[str, Node], since: dt.datetime
) -> tuple[list[LinkTrial], list[dt.datetime]]:
    """The bad trials whose partners were good with others since; the newest of each machine.

    And when these were.
    """
    found: dict[str, tuple[LinkTrial, dt.datetime]] = {}
    for trial in bad:
        partner = nodes.get(trial.partner)
        if partner is None or partner.state is not NodeState.READY:
            continue
        if (good_at := _good_at(partner, node.id, since)) is not None:
            found[partner.machine] = (trial, good_at)
    return [trial for trial, _ in found.values()], [at for _, at in found.values()]
