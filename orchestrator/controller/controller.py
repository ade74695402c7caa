"""The controller: what the API and the agent gateway talk to.

It seeks the lead, and while it leads, it hands requests and reports to the queue of that lead.
Everything that decides is made anew for each lead (`leadership`); the one path of a change is
queue, consumer, transaction, dispatcher. A server that does not lead refuses with NotLeaderError.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import ChainMap, Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping

from jobs.clock import Clock
from jobs.events import Event, Heartbeat, Hello, Report
from orchestrator.alerts.log import LogNotifier
from orchestrator.alerts.port import CountedNotifier, Notifier
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.controller import reconciliation
from orchestrator.controller.background_loops import cancel
from orchestrator.controller.database_trouble import DatabaseTrouble, tell
from orchestrator.controller.dispatcher import AgentLink
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.lead import Lead
from orchestrator.controller.lead_view import LeadView
from orchestrator.controller.leadership import Ports
from orchestrator.controller.reconciliation import LostRuns
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import (
    CHECKPOINT_REQUESTS,
    IncidentChanged,
    RunSubmitted,
)
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.messages.version_events import AgentRefused
from orchestrator.core.model.state import State
from orchestrator.core.model.states import WorkerState
from orchestrator.core.text import outcome
from orchestrator.database.port import Store
from orchestrator.errors import (
    ConflictError,
    NotFoundError,
    NotLeaderError,
)


class Controller(LeadView):
    """One controller of a control plane. Several may share a database; one of them leads.

    Attributes:
        store: The run database as people's requests read it, whether or not this controller leads.
            One with connections of its own may take its place.
        clock: Its time.
        events: Makes the controller's own events, and their ids.
        notices: Notices sent since this server started, by channel and result.
        set_aside: Events over which the core failed twice, by kind, since this server started.
        runs_here: True if ranks are processes of this server's user on this machine.
        takes_bundles: True if the code of runs is uploaded, for agents on other machines.
        ignored_fields: Fields of a run spec that have no effect here, with the reason.
        needed_fields: Fields that a run spec must set here, with what to do.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        clock: Clock,
        *,
        settings: ControllerSettings,
        agent_access: Callable[[str, str], AgentAccess],
        notifier: Notifier | None = None,
    ) -> None:
        self.store = store
        self.events = EventFactory(clock)
        self.clock = clock
        self._notifier = counted = CountedNotifier(notifier or LogNotifier())
        self.notices: Mapping[tuple[str, str], int] = counted.counts
        known = counted.trouble
        self.clicks_trouble: dict[str, str] = {}
        self.alerts_trouble: Mapping[str, str] = ChainMap(
            self.clicks_trouble, known if isinstance(known, MutableMapping) else {}
        )
        self.runs_here, self.takes_bundles = cluster.runs_here, cluster.takes_bundles
        self.needed_fields = cluster.needed_fields
        self.ignored_fields: Mapping[str, str] = {
            **cluster.ignored_fields,
            **counted.ignored_fields,
        }
        self.set_aside: Counter[str] = Counter()
        self.database = DatabaseTrouble()
        ports = Ports(
            store=store,
            cluster=cluster,
            clock=clock,
            notifier=counted,
            events=self.events,
            agent_access=agent_access,
            set_aside=self.set_aside,
            database=self.database,
            checks=settings.checks,
        )
        self._lead = Lead(ports, settings)
        self._lost_runs = LostRuns(counted)
        self._tasks: list[asyncio.Task[None]] = []

    # leading

    async def start(self) -> None:
        """Begin to seek the lead. Returns at once."""
        self._tasks = [
            asyncio.create_task(self._lead.seek()),
            asyncio.create_task(tell(self.database, self._notifier, self.clock)),
        ]

    async def stop(self) -> None:
        """Stop deciding and give the lease up. Runs go on."""
        leadership = self._leadership
        await cancel(self._tasks)
        if leadership is not None:
            await self._lead.election.release(leadership.epoch)

    # requests

    async def submit(self, event: Event) -> list[Instruction]:
        """Have one event of a person or a program decided on; what it led to, once stored.

        Raises:
            ConflictError, NotFoundError, InvalidError: It is refused; nothing changed.
            InternalError: The core failed over it; nothing changed.
            NotLeaderError, LeadershipLostError: Not stored here; ask the leader.
        """
        leadership = self._lead.or_refuse()
        if not isinstance(event, (RunSubmitted, IncidentChanged, *CHECKPOINT_REQUESTS)):
            await self._refuse_if_over(leadership.live.state, getattr(event, "run", None))
        return await leadership.queue.submit(event)

    async def _refuse_if_over(self, state: State, run: str | None) -> None:
        """A run that is over has left the state: say so, rather than that it is unknown."""
        if run is not None and run not in state.runs:
            over = await self.store.run(run)
            raise ConflictError(
                f"{over.name} is over: it {outcome(over.state, over.reason)}",
                run=over.id,
                state=over.state,
            )

    # agents

    async def report(self, worker: str, report: Report) -> None:
        """Have a numbered report of an agent stored, once, however often it comes.

        When this returns, and only then, the report may be acknowledged. Raises as `take`.
        """
        await self.take(worker, report)

    def take(self, worker: str, report: Report) -> Awaitable[object]:
        """Take a report of an agent, in the order of the calls; await the answer to acknowledge it.

        A report of a worker that is over is dropped. The answer raises NotLeaderError,
        LeadershipLostError or InternalError: the agent must send it again.

        Raises:
            NotLeaderError: This server does not lead.
        """
        leadership = self._lead.or_refuse()
        entity = leadership.live.state.workers.get(worker)
        return leadership.queue.report(worker, report, entity.run if entity else "")

    async def heartbeat(self, worker: str, heartbeat: Heartbeat) -> None:
        """Take a sign of life; it is not stored. NotLeaderError: the agent must connect anew.

        Waits for no transaction: a connection that is not read would make its agent seem silent.
        """
        leadership = self._lead.or_refuse()
        if not leadership.dispatcher.attached(worker):
            # Links end with the lead they came under: no command would reach this agent.
            raise NotLeaderError("this server has become the leader again since: connect again")
        entity = leadership.live.state.workers.get(worker)
        if entity is None:
            return
        leadership.live.heartbeat(worker, heartbeat)
        if entity.state is WorkerState.LOST:
            leadership.regained(worker)

    async def attach(
        self, worker: str, run: str, link: AgentLink, *, hello: Hello | None = None
    ) -> int:
        """Connect an agent and send what waits for it; the sequence of its last stored report.

        With its `hello`, what the agent knows is compared with what is stored.

        Raises:
            NotFoundError: The worker is over: the agent must end its ranks and leave.
            ConflictError: The database is older than the run or its agent: its ranks must go on.
            DatabaseUnavailableError: Nobody can tell which.
            NotLeaderError: This server does not lead.
        """
        leadership = self._lead.or_refuse()
        entity = leadership.live.state.workers.get(worker)
        if entity is None and not self.is_leader:  # another may have launched it
            raise NotLeaderError("this server may not be the leader any more: try again")
        if entity is None:
            await self._lost_runs.refuse_if_lost(self.store, worker, run)
        if hello is not None:
            await reconciliation.take_over(self.store, leadership.queue, leadership.live, hello)
            entity = leadership.live.state.workers.get(worker)
        if entity is None or entity.run != run or entity.state is WorkerState.ENDED:
            raise NotFoundError(f"worker {worker} of run {run} is not expected any more")
        leadership.live.contact.heard_of(worker)
        leadership.dispatcher.attach(worker, link)
        return leadership.live.last_sequence(worker)

    @contextlib.contextmanager
    def unread(self, worker: str) -> Iterator[None]:
        """Count no silence of an agent while entered: this server does not read its frames."""
        leadership = self._leadership
        if leadership is None:
            yield
            return
        leadership.live.contact.hold(worker)
        try:
            yield
        finally:
            leadership.live.contact.unhold(worker)

    async def refused(self, worker: str, run: str, reason: str) -> None:
        """Have it stored that an agent was refused, if its worker is expected. Raises nothing."""
        with contextlib.suppress(NotLeaderError):
            leadership = self._lead.or_refuse()
            if worker in leadership.live.state.workers:
                await leadership.queue.decide(AgentRefused, run=run, worker=worker, reason=reason)

    @property
    def servers(self) -> tuple[str, ...]:
        """URLs at which agents reach this server and those that may take over from it."""
        return self._lead.election.servers

    async def leader_address(self) -> str:
        """URL at which agents reach the server that leads; empty: none, this one, or unknown."""
        return await self._lead.election.leader_address()

    def detach(self, worker: str, link: AgentLink) -> None:
        """Note that a connection is gone. That alone means nothing; silence does."""
        if self._leadership is not None:
            self._leadership.dispatcher.detach(worker, link)

    def acknowledged(self, worker: str, command: str) -> None:
        """Note that an agent has taken a command: it is not sent again."""
        if self._leadership is not None:
            self._leadership.dispatcher.acknowledged(worker, command)
