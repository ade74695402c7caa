"""The effect of each failure on the simulated world, and the findings of the monitors about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from monitors.failures import Evidence, Failure, FailureClass
from monitors.hang import HangSettings
from monitors.non_finite import LOST_REPORTS
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.messages.events import FindingRaised
from orchestrator.simulation.scenario.gang import Gang, Phase
from orchestrator.simulation.scenario.model import FailureModel, Mishap
from orchestrator.simulation.scenario.random_streams import Chance
from orchestrator.simulation.scenario.site import Agent, Site
from orchestrator.simulation.scenario.virtual_time import Engine

_HANG = HangSettings()
_STRAGGLER_STEPS = 50
"""Steps until a straggler monitor can tell a slow node from the others."""


class Witness(Protocol):
    """Receives every disturbance of a run, with the name of its cause."""

    def stopped(self, run: str, by: str) -> None:
        """The cause makes the run restart."""

    def marked(self, run: str, by: str) -> None:
        """The cause does not stop the run."""


class Mishaps:
    """Applies failures to the agents and gangs on the nodes that they strike."""

    def __init__(
        self,
        engine: Engine,
        site: Site,
        chance: Chance,
        gangs: Mapping[str, Gang],
        witness: Witness,
    ) -> None:
        self._engine, self._site, self._chance = engine, site, chance
        self._gangs, self._witness = gangs, witness
        self._effects: Mapping[Mishap, Callable[[FailureModel, str], bool]] = {
            Mishap.CRASH: self._crash,
            Mishap.GPU_FAULT: self._gpu_fault,
            Mishap.NODE_LOSS: self._node_loss,
            Mishap.HANG: self._hang,
            Mishap.LOSS_SPIKE: partial(self._anomaly, FindingKind.LOSS_SPIKE),
            Mishap.LOSS_BLIP: partial(self._anomaly, FindingKind.LOSS_BLIP),
            Mishap.NAN: partial(self._anomaly, FindingKind.NON_FINITE),
            Mishap.CORRUPTION: self._corruption,
            Mishap.STRAGGLER: self._straggler,
            Mishap.SLOW_STORAGE: self._slow_storage,
            Mishap.PREEMPTION: self._preemption,
            Mishap.OUTAGE: self._outage,
        }

    def happen(self, model: FailureModel, node: str) -> bool:
        """Apply a failure to a node. True if it disturbed a run."""
        return self._effects[model.does](model, node)

    # ranks

    def _crash(self, model: FailureModel, node: str) -> bool:
        what = model.failure_class
        failure = Failure(failure_class=what, reason=model.name, signature=f"{what} {model.name}")
        return self._kill_one(model, node, failure)

    def _gpu_fault(self, model: FailureModel, node: str) -> bool:
        failure = Failure(
            failure_class=FailureClass.GPU_HARDWARE,
            reason=f"{model.name}: Xid 79, fallen off the bus",
            signature="xid 79",
            source=Evidence.KERNEL,
        )
        return self._kill_one(model, node, failure)

    def _kill_one(self, model: FailureModel, node: str, failure: Failure) -> bool:
        """Kill a rank of one gang on the node, chosen at random."""
        agents = self._trainers(node)
        if not agents:
            return False
        agent = self._chance.of(f"victim/{model.name}").choice(agents)
        gang = self._gangs[agent.run]
        self._witness.stopped(gang.id, model.name)
        gang.die(gang.ranks.first_of(agent.worker), failure, since=self._engine.now)
        return True

    def _trainers(self, node: str) -> list[Agent]:
        """Agents on the node whose ranks can still be disturbed."""
        return [
            agent
            for agent in self._site.hosts[node].agents.values()
            if agent.run in self._gangs
            and agent.worker in self._gangs[agent.run].workers
            and self._gangs[agent.run].phase in {Phase.STARTING, Phase.TRAINING}
        ]

    # nodes

    def _node_loss(self, model: FailureModel, node: str) -> bool:
        host = self._site.hosts[node]
        if not host.up or host.away:
            return False
        hit = self._trainers(node)
        for agent in hit:
            self._witness.stopped(agent.run, model.name)
            self._gangs[agent.run].stall()
        self._site.lose(host)
        return bool(hit)

    def _outage(self, model: FailureModel, node: str) -> bool:
        lasts = self._chance.delay(model.lasts, f"lasts/{model.name}")
        hosts = self._site.cut_off(model.level, node, lasts)
        hit = {agent.run for host in hosts for agent in self._trainers(host.info.id)}
        for run in sorted(hit):
            gang = self._gangs[run]
            self._witness.stopped(run, model.name)
            outside = [worker for worker in gang.workers if self._site.reaches(worker)]
            if outside:
                failure = Failure(
                    failure_class=FailureClass.NETWORK,
                    reason=f"{model.name}: a peer does not answer",
                    signature="peer does not answer",
                )
                gang.die(gang.ranks.first_of(outside[0]), failure, since=self._engine.now)
            else:
                gang.stall()
        return bool(hit)

    def _preemption(self, model: FailureModel, node: str) -> bool:
        hit = self._trainers(node)
        for agent in hit:
            self._witness.stopped(agent.run, model.name)
            self._gangs[agent.run].catch_up()
        self._site.mark(node, "draining", model.name)
        lasts = self._chance.delay(model.lasts, f"lasts/{model.name}")
        self._engine.after(lasts, partial(self._site.mark, node, "ready", f"{model.name} is over"))
        return bool(hit)

    def _straggler(self, model: FailureModel, node: str) -> bool:
        hit = self._trainers(node)
        for agent in hit:
            self._witness.marked(agent.run, model.name)
        host = self._site.hosts[node]
        host.slowdown = model.slowdown
        self._repace_on(node)
        for agent in hit:
            gang = self._gangs[agent.run]
            find = partial(self._find, FindingKind.STRAGGLER, gang, gang.step, model.name)
            self._engine.after(_STRAGGLER_STEPS * gang.run.step_seconds, find)
        lasts = self._chance.delay(model.lasts, f"lasts/{model.name}")
        self._engine.after(lasts, partial(self._recover, node))
        return bool(hit)

    def _recover(self, node: str) -> None:
        self._site.hosts[node].slowdown = 1.0
        self._repace_on(node)

    def _repace_on(self, node: str) -> None:
        for agent in self._site.hosts[node].agents.values():
            if agent.run in self._gangs:
                self._gangs[agent.run].repace()

    def _slow_storage(self, model: FailureModel, node: str) -> bool:  # noqa: ARG002 (all nodes)
        lasts = self._chance.delay(model.lasts, f"lasts/{model.name}")
        self._storage(model.slowdown)
        self._engine.after(lasts, partial(self._storage, 1.0))
        return bool(self._gangs)

    def _storage(self, slowdown: float) -> None:
        self._site.storage_slowdown = slowdown
        for gang in self._gangs.values():
            gang.repace()

    # findings

    def _hang(self, model: FailureModel, node: str) -> bool:
        """Stall a gang; the finding follows when the silence exceeds the run's hang limit."""
        for agent in self._trainers(node):
            gang = self._gangs[agent.run]
            if gang.phase is Phase.TRAINING:
                self._witness.stopped(gang.id, model.name)
                gang.stall()
                after = gang.run.spec.monitors.hang.after
                pace = _HANG.median_factor * gang.run.step_seconds
                limit = max(_HANG.floor_seconds, pace) if after == "auto" else after
                rank = gang.ranks.first_of(agent.worker)
                find = partial(self._find, FindingKind.HANG, gang, gang.step, model.name, rank=rank)
                self._engine.after(limit, find)
                return True
        return False

    def _anomaly(self, kind: FindingKind, model: FailureModel, node: str) -> bool:
        """Start an anomaly; its finding follows after the monitor's persistence (NaN: one step)."""
        return self._begin_anomaly(kind, model, node, delay=None)

    def _corruption(self, model: FailureModel, node: str) -> bool:
        """Corrupt silently; the loss shows it only after the model's `lasts`."""
        delay = self._chance.delay(model.lasts, f"lasts/{model.name}")
        return self._begin_anomaly(FindingKind.LOSS_SPIKE, model, node, delay=delay)

    def _begin_anomaly(
        self, kind: FindingKind, model: FailureModel, node: str, delay: float | None
    ) -> bool:
        for agent in self._trainers(node):
            gang = self._gangs[agent.run]
            if gang.phase is Phase.TRAINING:
                steps = LOST_REPORTS if kind is FindingKind.NON_FINITE else _persistence(gang)
                wait = steps * gang.run.step_seconds if delay is None else delay
                onset = gang.step + 1
                find = partial(self._find, kind, gang, onset, model.name, since=self._engine.now)
                self._engine.after(wait, find)
                return True
        return False

    def _find(
        self,
        kind: FindingKind,
        gang: Gang,
        onset: int,
        name: str,
        rank: int | None = None,
        since: float | None = None,
    ) -> None:
        """Raise the finding, unless a rollback has removed its onset from the run's history."""
        now = self._gangs.get(gang.id)
        if now is None or now.phase not in {Phase.TRAINING, Phase.STUCK}:
            return
        if now is not gang and (kind is FindingKind.HANG or now.start_step < onset):
            return
        now.catch_up()
        if kind is FindingKind.LOSS_BLIP:
            self._witness.marked(gang.id, name)
        elif kind not in {FindingKind.STRAGGLER, FindingKind.HANG}:  # reported at its begin
            self._witness.stopped(gang.id, name)
        finding = Finding(
            kind=kind,
            severity=Severity.CRITICAL,
            attempt=now.number,
            rank=rank,
            onset_step=onset,
            onset_batch=onset,
            detected_step=max(onset, now.step),
            onset_time=self._engine.moment(since).timestamp(),
            detected_time=self._engine.moment().timestamp(),
            reason=f"{name}: {kind} since step {onset}",
        )
        self._engine.tell(
            FindingRaised,
            run=gang.id,
            attempt=now.number,
            finding=finding,
            actor=f"monitor:{kind}",
        )


def _persistence(gang: Gang) -> int:
    return gang.run.spec.monitors.loss_spike.persistence
