"""A make-believe world for tests of the core: what happens to runs, told step by step."""

from __future__ import annotations

import datetime as dt

from babysit.wire import Tier
from jobs.events import RankExited, ShardWritten
from jobs.shards import ShardFile, ShardReport
from monitors.failures import Failure, FailureClass
from monitors.types import Finding, FindingKind, Severity
from orchestrator.controller.sample_pipeline import Progress
from orchestrator.core.messages.events import FindingRaised, WorkerLost
from orchestrator.core.messages.instructions import SendCommand
from orchestrator.core.model.entities import Attempt
from tests.world_cluster import ClusterWorld, each_for_itself, on_its_own, reloaded, spec

__all__ = ["World", "each_for_itself", "on_its_own", "reloaded", "spec", "trained"]


def trained(steps: int, **fields: object) -> World:
    """A run of two ranks on four nodes that has trained to a step, saving every 10 steps."""
    world = World()
    world.submit(spec(**fields))
    world.trained_to(steps)
    return world


class World(ClusterWorld):
    """A cluster, its agents, and what happens to the runs on it."""

    def reach(self, step: int, run: str = "run-1") -> None:
        """Rank 0 reaches a step, of which the core hears if it wanted to."""
        attempt = self.attempt(run)
        self.progress[run] = Progress(attempt.number, step, self.now.timestamp())
        if step >= attempt.milestone:
            self._tell_progress(run)

    def save(self, step: int, run: str = "run-1") -> str:
        """Every rank writes its shard of a directory checkpoint; the checkpoint's id."""
        attempt = self.attempt(run)
        for seat in attempt.seats:
            for rank in seat.ranks:
                shard = self.shard(attempt, step, rank, Tier.DIRECTORY)
                self.do(
                    self.event(
                        ShardWritten,
                        run=run,
                        worker=seat.worker,
                        attempt=attempt.number,
                        shard=shard,
                    )
                )
        return f"{run}/{attempt.number}/directory/{step}"

    def remember(self, step: int, run: str = "run-1") -> None:
        """Every rank keeps a memory checkpoint of a step."""
        attempt = self.attempt(run)
        for seat in attempt.seats:
            agent = self.agents[seat.worker]
            agent.memory = [self.shard(attempt, step, rank, Tier.MEMORY) for rank in seat.ranks]

    @staticmethod
    def shard(attempt: Attempt, step: int, rank: int, tier: Tier) -> ShardReport:
        """A made-up shard."""
        return ShardReport(
            attempt=attempt.number,
            step=step,
            rank=rank,
            world_size=attempt.world_size,
            tier=tier,
            path=f"/checkpoints/{attempt.run}/step-{step:09d}",
            batch=step,
            files=(ShardFile(name="data", bytes=10, blake2b="00" * 16),),
        )

    def die(
        self,
        rank: int = 0,
        failure: Failure | None = None,
        *,
        last_step: int = 0,
        run: str = "run-1",
    ) -> None:
        """A rank dies."""
        attempt = self.attempt(run)
        seat = next(s for s in attempt.seats if rank in s.ranks)
        failure = failure or Failure(
            failure_class=FailureClass.SIGNAL,
            reason="killed by SIGKILL, sender unknown",
            signature="SIGKILL",
        )
        self.do(
            self.event(
                RankExited,
                run=run,
                worker=seat.worker,
                attempt=attempt.number,
                rank=rank,
                code=-9,
                failure=failure,
                last_step=last_step,
            )
        )

    def end(self, run: str = "run-1") -> None:
        """Every rank ends well."""
        attempt = self.attempt(run)
        for seat in attempt.seats:
            for rank in seat.ranks:
                self.do(
                    self.event(
                        RankExited,
                        run=run,
                        worker=seat.worker,
                        attempt=attempt.number,
                        rank=rank,
                        code=0,
                        last_step=attempt.step,
                    )
                )

    def find(
        self,
        kind: FindingKind = FindingKind.LOSS_SPIKE,
        *,
        onset: int = 25,
        batch: int | None = None,
        run: str = "run-1",
        rank: int | None = None,
        evidence: dict[str, object] | None = None,
    ) -> None:
        """A monitor raises a finding."""
        finding = Finding(
            kind=kind,
            severity=Severity.CRITICAL,
            attempt=self.attempt(run).number,
            rank=rank,
            onset_step=onset,
            onset_batch=onset if batch is None else batch,
            detected_step=onset + 3,
            onset_time=self.now.timestamp(),
            detected_time=self.now.timestamp(),
            reason=f"{kind} since step {onset}",
            evidence=evidence or {},
        )
        self.do(self.event(FindingRaised, run=run, attempt=finding.attempt, finding=finding))

    def trained_to(self, step: int, run: str = "run-1") -> None:
        """Bring the gang up and train to a step, saving on the way."""
        self.settle()
        every = self.run(run).spec.checkpoint.every_steps
        for reached in range(self.attempt(run).start_step + 1, step + 1):
            self.now += dt.timedelta(seconds=1)
            self.reach(reached, run)
            if reached % every == 0:
                self.save(reached, run)
                self.settle()

    def lose_contact(self, worker: str, run: str = "run-1") -> None:
        """An agent is not heard of any more; the cluster does not say that it is dead."""
        self.do(self.event(WorkerLost, run=run, worker=worker, confirmed=False, reason="no word"))

    # what the core has ordered so far

    def told(self, kind: str) -> list[SendCommand]:
        """Commands of a kind sent so far."""
        return [i for i in self.carried if isinstance(i, SendCommand) and i.command.kind == kind]

    def offered(self) -> list[tuple[int, str]]:
        """Steps and tiers that the newest attempt was told to load, best first."""
        return [(c.step, c.tier) for c in self.told("start_attempt")[-1].command.restore]
