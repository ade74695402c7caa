"""Logs of ranks that lie on the disks of nodes: asked of their agents, or their kept ends.

While the agent of a log is connected to this server, it reads the log. Otherwise the end that the
run database keeps is read: after the node was lost, after the run, and on a server that does not
lead. That one has the newest lines too, some seconds late, and for what lies before them it sends
people to the leader.
"""

from __future__ import annotations

from jobs.log_messages import ANSWER_BYTES
from jobs.log_pieces import LogPiece, piece_of
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.database.log_tails import KeptLog
from orchestrator.errors import NotFoundError, NotLeaderError, TemporaryError
from orchestrator.server.agent_logs import AgentLogs, LogDesk
from orchestrator.server.context import ControlPlane
from orchestrator.server.logs import LogFile


class RemoteLogs:
    """Implements :class:`orchestrator.server.logs.RunLogs` over agents and the run database."""

    def __init__(self, desk: LogDesk, controller: ControlPlane) -> None:
        self._desk, self._controller = desk, controller

    async def files(self, run: Run) -> list[LogFile]:
        """See the protocol. A log of which no end is kept shows while its attempt is the newest."""
        kept = await self._desk.tails.of_run(run.id)
        found = {(log.attempt, log.rank): self._file(log) for log in kept}
        attempt = self._controller.state.attempts.get(run.id)
        for seat in () if attempt is None else attempt.seats:
            for rank in seat.ranks:
                if (
                    attempt is not None
                    and (attempt.number, rank) not in found
                    and rank in attempt.started_ranks
                    and seat.worker in self._desk.connections
                ):
                    found[attempt.number, rank] = LogFile(
                        attempt=attempt.number,
                        rank=rank,
                        bytes=0,
                        written_at=attempt.started_at,
                        node=seat.node,
                    )
        if not found:
            self._refuse_elsewhere(run, "of this run, no end of a log is kept yet")
        return [found[key] for key in sorted(found)]

    def _file(self, log: KeptLog) -> LogFile:
        agent = self._desk.connections.get(log.worker)
        return LogFile(
            attempt=log.attempt,
            rank=log.rank,
            bytes=log.end,
            written_at=log.written_at,
            node=agent.node if agent is not None else "",
            kept_from=log.start,
        )

    async def piece(
        self, run: Run, attempt: int, rank: int, *, offset: int = 0, tail: int | None = None
    ) -> LogPiece:
        """See the protocol."""
        kept = await self._desk.tails.of_rank(run.id, attempt, rank)
        agent = await self._agent(run, attempt, rank, kept)
        is_kept = kept is not None and (tail is not None or offset >= kept.start)
        if agent is not None:
            try:
                return await agent.piece(attempt, rank, offset=offset, tail=tail)
            except NotFoundError:
                if kept is None:
                    raise
            except TemporaryError:  # a node that dies takes its time
                if not is_kept:
                    raise
        elif not is_kept:
            before = "what comes before the last lines of this log" if kept else "this log"
            self._refuse_elsewhere(run, f"{before} is on the node of rank {rank}")
        parts = await self._desk.tails.parts(run.id, attempt, rank)
        if parts:
            return piece_of(parts, offset=offset, tail=tail, most=ANSWER_BYTES)
        if run.state not in TERMINAL_RUN_STATES:
            raise TemporaryError(
                f"the agent of rank {rank} is not connected, and nothing of its log is kept yet:"
                " try again"
            )
        raise NotFoundError(
            f"there is no log of attempt {attempt}, rank {rank}: nothing of it was kept when its"
            " node left"
        )

    async def _agent(
        self, run: Run, attempt: int, rank: int, kept: KeptLog | None
    ) -> AgentLogs | None:
        """The agent on the node of a log, if it is connected here."""
        if kept is not None:
            return self._desk.connections.get(kept.worker)
        newest = self._controller.state.attempts.get(run.id)
        found: Attempt | None = newest
        if newest is None or newest.number != attempt:
            attempts = await self._controller.store.attempts(run.id)
            found = next((each for each in attempts if each.number == attempt), None)
        seats = () if found is None else found.seats
        worker = next((seat.worker for seat in seats if rank in seat.ranks), None)
        if worker is None:
            raise NotFoundError(f"there is no log of attempt {attempt}, rank {rank}")
        return self._desk.connections.get(worker)

    def _refuse_elsewhere(self, run: Run, why: str) -> None:
        """Send people to the leader if this server does not lead, and the run is not over."""
        if not self._controller.is_leader and run.state not in TERMINAL_RUN_STATES:
            raise NotLeaderError(
                f"{why}, and this server is not the leader, to which agents connect: ask the"
                " leader, or try again soon; the newest lines are here (babysit logs --tail 100)"
            )
