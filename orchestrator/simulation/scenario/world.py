"""A running scenario: the simulated site and its gangs execute the core's instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from jobs.commands import (
    CaptureStacks,
    DeleteCheckpoint,
    FindCheckpoints,
    Shutdown,
    StartAttempt,
    StopAttempt,
    VerifyCheckpoint,
)
from jobs.events import CheckpointDeleted, CheckpointsFound
from orchestrator.core.messages.events import EVENT, MaintenanceDue, RunReleased, RunSubmitted
from orchestrator.core.messages.gang_events import GangChecked
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    Instruction,
    LaunchWorker,
    Notify,
    ProbeWorker,
    SendCommand,
    StopWorker,
)
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.entities import Attempt, Entity, Node
from orchestrator.core.model.states import TERMINAL_RUN_STATES, NodeState
from orchestrator.simulation.scenario.failures import Mishaps
from orchestrator.simulation.scenario.gang import Gang, Phase
from orchestrator.simulation.scenario.metrics import Tally
from orchestrator.simulation.scenario.model import FailureModel, Scenario, SimulatedRun, TimedEvent
from orchestrator.simulation.scenario.population import everyone
from orchestrator.simulation.scenario.random_streams import Chance, failures
from orchestrator.simulation.scenario.saves import Surroundings
from orchestrator.simulation.scenario.site import Site
from orchestrator.simulation.scenario.virtual_time import Engine

Progress = Callable[[float], None]
"""Receives the passed share of the scenario's time, 0 to 1, from time to time."""
_PROGRESS_STEPS = 100
_AGAIN_SECONDS = 1.0
"""Pause of a failure that strikes training nodes only, while none trains."""


class World:
    """The complete state of one simulation."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.engine = Engine(scenario.begin)
        self.engine.carry_out = self._carry_out
        self.engine.changed = self._changed
        self._chance = Chance(scenario.seed)
        self.site = Site(scenario, self.engine, self._chance)
        self.tally = Tally(self.engine, self._busy_nodes)
        self.gangs: dict[str, Gang] = {}
        self.slow_seconds: dict[str, float] = {}
        """Run → seconds that its finished gangs lost to a pace below the undisturbed one."""
        self.happened: dict[str, list[int]] = {model.name: [0, 0] for model in scenario.failures}
        """Failure → how often it happened, and how often it disturbed a run."""
        self._simulated: dict[str, SimulatedRun] = {}
        self._awaited: set[tuple[float, str]] = set()
        """Second and node of each scheduled begin or end of maintenance."""
        around = Surroundings(
            self.engine, self.site, self._chance, scenario.recovery, self.tally.stopped
        )
        self._begin_gang = partial(self._new_gang, around)
        self._mishaps = Mishaps(self.engine, self.site, self._chance, self.gangs, self.tally)

    def run(self, progress: Progress = lambda _: None) -> None:
        """Simulate from the start to the end of the scenario."""
        scenario, engine = self.scenario, self.engine
        self.site.open()
        for event in scenario.events:
            engine.at(event.at, partial(self._timed, event))
        for run in everyone(scenario):
            self._simulated[run.spec.name] = run
            engine.at(run.submit, partial(self._submit, run))
        for model in scenario.failures:
            nodes = list(self.site.hosts)
            self._await(model, failures(model, scenario, nodes, self._chance))
        self.tally.sample_until(scenario.seconds)
        for step in range(1, _PROGRESS_STEPS + 1):
            engine.run(scenario.seconds * step / _PROGRESS_STEPS)
            progress(step / _PROGRESS_STEPS)
        for gang in self.gangs.values():
            gang.catch_up()
            self._count_slow(gang)
        self.tally.close()

    def simulated(self, run: str) -> SimulatedRun:
        """The simulated characteristics of a run.

        Raises:
            KeyError: The scenario has no such run.
        """
        return self._simulated[run]

    # input of the scenario

    def _submit(self, run: SimulatedRun) -> None:
        self.engine.tell(RunSubmitted, run=run.spec.name, spec=run.spec, actor="operator:owner")

    def _timed(self, event: TimedEvent) -> None:
        """Submit an event of the scenario after the gangs have reported their progress."""
        for gang in self.gangs.values():
            gang.catch_up()
        fields = event.of_the_core(self.engine.identity(), self.engine.moment())
        self.engine.submit(EVENT.validate_python(fields))

    def _await(self, model: FailureModel, upcoming: Iterator[tuple[float, str]]) -> None:
        at, node = next(upcoming, (None, ""))
        if at is not None and at <= self.scenario.seconds:
            self.engine.at(at, partial(self._happen, model, node, upcoming))

    def _happen(
        self, model: FailureModel, node: str, upcoming: Iterator[tuple[float, str]]
    ) -> None:
        if model.strikes == "training":
            training = self._training_nodes()
            if not training:
                if self._is_awaited():
                    again = partial(self._happen, model, node, upcoming)
                    self.engine.after(_AGAIN_SECONDS, again)
                return
            node = self._chance.of(f"strikes/{model.name}").choice(training)
        self.happened[model.name][0] += 1
        self.happened[model.name][1] += self._mishaps.happen(model, node)
        self._await(model, upcoming)

    def _is_awaited(self) -> bool:
        """True while a run may still train."""
        known = self.tally.runs.values()
        return len(known) < len(self._simulated) or any(
            each.run.state not in TERMINAL_RUN_STATES for each in known
        )

    def _training_nodes(self) -> list[str]:
        gangs = [gang for gang in self.gangs.values() if gang.phase is Phase.TRAINING]
        agents = (self.site.agents.get(worker) for gang in gangs for worker in gang.workers)
        return [agent.host.info.id for agent in agents if agent is not None]

    # instructions of the core

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case LaunchWorker():
                self.site.launch(instruction)
            case StopWorker():
                self.site.stop(instruction)
            case ProbeWorker():
                self.site.probe(instruction)
            case BroadcastCommand():
                self._order(instruction)
            case SendCommand(command=Shutdown()):
                self.site.leave(instruction.worker)
            case SendCommand(command=DeleteCheckpoint() as command):
                self.engine.tell(
                    CheckpointDeleted,
                    run=instruction.run,
                    worker=instruction.worker,
                    attempt=command.attempt,
                    checkpoint=command.checkpoint,
                )
            case SendCommand(command=FindCheckpoints() as command):
                self.engine.tell(  # every save of a simulated gang is reported
                    CheckpointsFound,
                    run=instruction.run,
                    worker=instruction.worker,
                    attempt=command.attempt,
                )
            case Notify(asks=True):
                self.engine.tell(AskDelivered, run=instruction.run, incident=instruction.incident)
            case Notify(run=None):
                self._page()

    def _order(self, order: BroadcastCommand) -> None:
        gang = self.gangs.get(str(order.run))
        match order.command:
            case StartAttempt():
                self._begin_gang(order)
            case StopAttempt() if gang is not None:
                gang.stop(order)
            case CaptureStacks() if gang is not None:
                gang.capture_stacks()
            case VerifyCheckpoint(checkpoint=checkpoint):
                self._read_back(order, checkpoint)

    def _new_gang(self, around: Surroundings, order: BroadcastCommand) -> None:
        before = self.gangs.get(str(order.run))
        if before is not None:
            before.phase = Phase.OVER
            self._count_slow(before)
        self.gangs[str(order.run)] = Gang(self._simulated[str(order.run)], order, around)

    def _count_slow(self, gang: Gang) -> None:
        self.slow_seconds[gang.id] = self.slow_seconds.get(gang.id, 0.0) + gang.slow_seconds

    def _read_back(self, order: BroadcastCommand, checkpoint: str) -> None:
        """Report the verification of a checkpoint, at once if it ended in the past."""
        stored = self.engine.state.checkpoints[checkpoint]
        due = self.gangs[stored.run].saves.read_back_at(stored.step)
        if due is None:
            seconds = self._chance.delay(self.scenario.recovery.read_back, "read back")
            due = self.engine.now + seconds
        checked = partial(
            self.engine.tell,
            GangChecked,
            run=stored.run,
            attempt=stored.attempt,
            workers=order.workers,
            checkpoint=checkpoint,
        )
        if due <= self.engine.now:
            checked()
        else:
            self.engine.at(due, checked)

    def _page(self) -> None:
        """Schedule the release of the freeze by the person on call."""
        after = self.scenario.operator.releases_after
        if after is not None:
            self.engine.after(after, self._release)

    def _release(self) -> None:
        if self.engine.state.fleet.hold is not None:
            reason = "looked at it, and it is over"
            self.engine.tell(RunReleased, run=None, reason=reason, actor="operator:on-call")

    # changes of the core

    def _changed(self, entities: Sequence[Entity]) -> None:
        self.tally.changed(entities)
        for entity in entities:
            match entity:
                case Attempt():
                    gang = self.gangs.get(entity.run)
                    if gang is not None and gang.number == entity.number:
                        gang.heard(entity.milestone)
                case Node():
                    self._await_maintenance(entity)
                    if entity.state is NodeState.CORDONED and entity.by == "babysit":
                        self.site.cordoned(entity.id)

    def _await_maintenance(self, node: Node) -> None:
        """Schedule events for the windows of a node, which the controller finds by polling."""
        for window in node.maintenance:
            for moment in (window.begins, window.ends):
                at = (moment - self.scenario.begin).total_seconds()
                if (at, node.id) not in self._awaited:
                    self._awaited.add((at, node.id))
                    self.engine.at(at, self._maintain)

    def _maintain(self) -> None:
        for node in self.engine.state.due_maintenance(self.engine.moment()):
            self.engine.tell(MaintenanceDue, node=node, actor="controller")

    def _busy_nodes(self) -> int:
        return sum(bool(host.agents) for host in self.site.hosts.values())
