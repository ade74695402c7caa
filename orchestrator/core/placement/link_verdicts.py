"""The verdict on the link between two nodes, and on the node that is bad with more than one. Pure.

The problem: a bad measurement of a link says that one of two nodes, or the way between them, is
bad, and not which. The design is that of DLRover's network check: each end is tried again with
another partner. A node is to blame if its links to two other machines are bad, and both of these
are good with a third. A good link clears both of its ends.

Limits: with two machines nobody is to blame, nor where no link of the fleet is good. A rate is
judged only between two nodes alike, by the links of nodes like them.
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


def is_good(node: Node, now: dt.datetime, without: str = "") -> bool:
    """True if the newest trial of a node, with another machine than `without`, was good."""
    lately = [
        trial
        for trial in node.measured.links
        if now - trial.at <= WINDOW and trial.partner != without
    ]
    return bool(lately) and not lately[-1].bad


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
    found: dict[str, LinkTrial] = {}
    for trial in bad_trials(node, now):
        partner = nodes.get(trial.partner)
        takes_work = partner is not None and partner.state is NodeState.READY
        if partner is not None and takes_work and is_good(partner, now, without=node.id):
            found[partner.machine] = trial
    return [*found.values()] if len(found) >= PARTNERS else []
