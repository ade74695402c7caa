"""Dry run: the future of a run if it were submitted now. Pure; nothing is changed."""

from __future__ import annotations

import datetime as dt

from jobs.spec import RunSpec
from orchestrator.core.model.entities import Run
from orchestrator.core.model.state import State
from orchestrator.core.model.time_ledger import Ledger
from orchestrator.core.placement import snapshot, wait_reasons
from orchestrator.core.policy import admission
from orchestrator.core.policy.time_limits import longest_grace
from orchestrator.core.scheduling import Eviction, Pending, Plan, Wait, plan
from orchestrator.core.text import named
from orchestrator.core.views import waiting
from orchestrator.core.views.models import DryRunView, EvictionView

_RUN = "dry-run"


def try_out(state: State, spec: RunSpec, now: dt.datetime) -> DryRunView:
    """Run one scheduling pass with a run that nobody has submitted.

    While everything is held, the pass is the one that would follow the release.


    Raises:
        InvalidError, ConflictError: The submission would be refused.
    """
    admission.check(state, spec, now)
    run = Run(id=_RUN, name=spec.name, spec=spec, submitted_at=now, ledger=Ledger(since=now))
    outcome = plan(snapshot.snapshot(state, now, [run]), now)
    nodes = outcome.placements.get(_RUN, ())
    more = outcome.growth.get(_RUN, ())
    wait = outcome.waits.get(_RUN)
    before = waiting.ahead_of(state, outcome, wait, run, now) if wait else []
    ahead = [state.runs[other].name for other in before]
    evicts = [_view(state, each) for each in outcome.evictions if each.by == _RUN]
    why = Pending.HELD if state.fleet.hold else wait.why if wait is not None else None
    return DryRunView(
        name=spec.name,
        starts=bool(nodes) and not state.fleet.hold,
        nodes=list(nodes),
        more_nodes=list(more),
        domains=_domains(state, nodes),
        underlying=None if why is None else why.value,
        place=None if wait is None or wait.why is Pending.TOO_LARGE else len(ahead) + 1,
        ahead=ahead,
        starts_at=None if state.fleet.hold else _starts_at(state, wait, evicts, now),
        evicts=evicts,
        sentences=_sentences(state, spec, outcome, evicts, ahead),
    )


def _view(state: State, eviction: Eviction) -> EvictionView:
    return EvictionView(
        run=eviction.run,
        name=state.runs[eviction.run].name,
        nodes=list(eviction.nodes),
        why=eviction.why,
        lost_gpu_seconds=eviction.lost_gpu_seconds,
    )


def _domains(state: State, nodes: tuple[str, ...]) -> dict[str, list[str]]:
    """Topology level → the domains of the nodes, for the levels that are labelled."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        for level, domain in state.nodes[node].labels.items():
            found.setdefault(level, set()).add(domain)
    return {level: sorted(domains) for level, domains in found.items()}


def _sentences(
    state: State, spec: RunSpec, outcome: Plan, evicts: list[EvictionView], ahead: list[str]
) -> list[str]:
    wait, hold = outcome.waits.get(_RUN), state.fleet.hold
    sentences = []
    if hold:
        sentences.append(f"Everything is held, so nothing starts before `babysit release`: {hold}.")
    start = "then start" if hold else "start now"
    if wait is None:
        sentences.append(f"{spec.name} would {start}, on {named(outcome.placements[_RUN])}.")
        if more := outcome.growth.get(_RUN):
            sentences.append(f"It would also get {named(more)}.")
        return sentences
    place = None if wait.why is Pending.TOO_LARGE else len(ahead) + 1
    cause = f" ({wait.detail})" if wait.detail and not evicts else ""
    nodes = "1 node" if wait.missing == 1 else f"{wait.missing} nodes"
    why = wait_reasons.status(wait.why, pack=spec.placement.pack)
    would = f"would {'then ' * bool(hold)}wait for {nodes}"
    sentences.append(
        f"{spec.name} {would}: {why}{cause}. {waiting.in_line(place, ahead, 'would be')}"
    )
    sentences.extend(
        f"{each.name} would be preempted: it saves and leaves {named(each.nodes)} ({each.why});"
        f" that costs up to {each.lost_gpu_seconds:.0f} GPU s."
        for each in evicts
    )
    if evicts:
        sentences.append(f"They would have {_grace(state, evicts):.0f} s to save.")
    elif wait.starts_at is not None:
        sentences.append(
            f"Its nodes are expected to be free at {wait.starts_at:%Y-%m-%d %H:%M:%S} UTC."
        )
    return sentences


def _grace(state: State, evicts: list[EvictionView]) -> float:
    return longest_grace(state.runs[each.run] for each in evicts)


def _starts_at(
    state: State, wait: Wait | None, evicts: list[EvictionView], now: dt.datetime
) -> dt.datetime | None:
    if evicts:
        return now + dt.timedelta(seconds=_grace(state, evicts))
    return None if wait is None else wait.starts_at
