"""Checkpoints of a script that saves by itself: found as they appear, and what it goes on from.

The agent with rank 0 looks for them: all nodes of the run see the same directory. A checkpoint that
is whole is hashed, recorded and reported like one that babysit has saved, so it is read back,
trusted and chosen alike. Before an attempt starts, later ones are put aside: a script that looks
for its newest checkpoint finds the one that was chosen.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path

import structlog

from babysit.wire import Tier
from jobs import checkpoint_pattern
from jobs.agent.reporter import Reporter
from jobs.agent.script_records import ScriptRecords, Signature, signature
from jobs.clock import Clock
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.config import AgentConfig
from jobs.events import CheckpointDeleted, RankRestored, ShardWritten

LOOK_SECONDS = 2.0
"""Time between looks; one costs the listing of a directory."""
QUIET_SECONDS = 10.0
"""A checkpoint without a last file of its own counts as whole once nothing in it has changed for
this long. An estimate of ours: savers write without such pauses."""
LAST_SECONDS = 2.0
"""Time for hashes once an attempt is being stopped; of the rest only sizes are known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Resumption:
    """How the ranks of an attempt go on."""

    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    chosen: RestoreCandidate | None = None


class ScriptCheckpoints:
    """Follows the checkpoints of one run; does nothing where the spec has no `resume`."""

    def __init__(self, config: AgentConfig, reporter: Reporter, clock: Clock) -> None:
        self._resume = config.spec.resume
        self._run = config.run
        self._reporter, self._clock = reporter, clock
        self.records = records_of(config)
        self._begun = clock.now().timestamp()
        """Unix seconds of the start of this agent."""
        self._attempt = 0
        """The attempt whose checkpoints are looked for here; 0: none, or another agent does."""
        self._known: dict[int, Signature] = {}
        self._quiet: dict[int, tuple[Signature, float]] = {}
        self._looking = asyncio.Lock()
        self._hashes_until = math.inf
        """In monotonic seconds: a restart does not wait for the hash of a large checkpoint."""
        self._log = structlog.get_logger(part="script_checkpoints")

    async def begin(self, command: StartAttempt) -> Resumption:
        """Put in order what the ranks find on disk, and say how they go on.

        Raises:
            OSError: It cannot be read: then the run might begin anew, so it does not begin.
        """
        if self._resume is None:
            return Resumption()
        if self.records is None:
            return await asyncio.to_thread(self._by_place, command.attempt)
        first = 0 in command.ranks
        async with self._looking:
            self._attempt = 0
            resumption = await asyncio.to_thread(self._choose, self.records, command, first)
            self._attempt = command.attempt if first else 0
            self._hashes_until = math.inf
            shards = await asyncio.to_thread(self.records.registered)
            found = await asyncio.to_thread(self.records.found)
            self._known = {s.step: _signature(found[s.step]) for s in shards if s.step in found}
            self._quiet.clear()
        return resumption

    def started(self, command: StartAttempt, resumption: Resumption) -> None:
        """Report what the ranks were given: for the control plane they have loaded it."""
        chosen = resumption.chosen
        if chosen is None:
            return
        for rank in command.ranks:
            self._reporter.say(
                RankRestored(
                    rank=rank,
                    step=chosen.step,
                    checkpoint=chosen.id,
                    **self._reporter.fields(command.attempt, command.id),
                )
            )

    async def watch(self) -> None:
        """Look now and then, for as long as the agent lives."""
        while self.records is not None:
            await self._clock.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self, *, last: bool = False) -> None:
        """Look once, and report what has appeared or was deleted. `last`: the ranks are dead."""
        if self.records is None or not self._attempt:
            return
        if last:
            self._hashes_until = self._clock.monotonic() + LAST_SECONDS
        async with self._looking:
            try:
                found = await asyncio.to_thread(self.records.found)
                for step, path in sorted(found.items()):
                    await self._look_at(self.records, step, path)
            except OSError as error:
                self._log.warning("checkpoints of the script not read", error=str(error))
                return
            for step in sorted(self._known.keys() - found.keys()):
                self._say_deleted(self.records, step)
            if last:
                self._attempt = 0

    async def _look_at(self, records: ScriptRecords, step: int, path: Path) -> None:
        now = await asyncio.to_thread(_signature, path)
        known = self._known.get(step, ())
        if not now or known == now or _is_shrinking(known, now):
            return
        marked = await asyncio.to_thread(records.has_marker, path)
        if marked is None:
            before, since = self._quiet.get(step, ((), 0.0))
            if before != now:
                self._quiet[step] = (now, self._clock.monotonic())
                return
            marked = self._clock.monotonic() - since >= QUIET_SECONDS
        if not marked:
            return
        shard = await asyncio.to_thread(
            records.register,
            step,
            path,
            self._attempt,
            lambda: self._clock.monotonic() > self._hashes_until,
        )
        if shard is not None:
            self._known[step] = now
            self._quiet.pop(step, None)
            self._reporter.say(ShardWritten(shard=shard, **self._reporter.fields(self._attempt)))

    def _say_deleted(self, records: ScriptRecords, step: int) -> None:
        del self._known[step]
        written = next((s for s in records.registered() if s.step == step), None)
        if written is None:
            return
        records.forget(step)
        key = f"{self._run}/{written.attempt}/{Tier.DIRECTORY}/{step}"
        fields = self._reporter.fields(self._attempt)
        self._reporter.say(CheckpointDeleted(checkpoint=key, by_script=True, **fields))

    def _choose(self, records: ScriptRecords, command: StartAttempt, first: bool) -> Resumption:
        offered = [c for c in command.restore if c.tier == Tier.DIRECTORY]
        chosen = next((c for c in offered if records.is_there(c.step, Path(c.path))), None)
        if first:
            try:
                self._put_in_order(records, command.attempt, chosen)
            except OSError as error:
                # All ranks are given the same checkpoint anyway: a script that looks by itself may
                # miss it, but a run that begins anew throws work away.
                self._log.error(
                    "later checkpoints cannot be put aside: make the directory writable",
                    path=error.filename,
                    error=error.strerror,
                )
        if chosen is None:
            return Resumption()
        return self._filled(chosen.path, chosen.step, chosen)

    def _put_in_order(
        self, records: ScriptRecords, attempt: int, chosen: RestoreCandidate | None
    ) -> None:
        # The first attempt may have ended before it came to this.
        records.note_before(math.inf if attempt == 1 else self._begun)
        if attempt == 1:
            return
        step, path = (chosen.step, Path(chosen.path)) if chosen else (0, None)
        for moved in records.leave_only(step, path):
            self._log.info("put aside: the run goes on from before it", path=str(moved))

    def _by_place(self, attempt: int) -> Resumption:
        """One place that is written again and again, or none that is known."""
        resume = self._resume
        if resume is None or attempt == 1:
            return Resumption()
        if resume.checkpoints is None:
            return self._filled("", 0, None)
        place = checkpoint_pattern.find(resume.checkpoints).get(0)
        if place is None or (resume.complete and not (place / resume.complete).exists()):
            return Resumption()
        return self._filled(str(place), 0, None)

    def _filled(self, path: str, step: int, chosen: RestoreCandidate | None) -> Resumption:
        arguments = self._resume.args if self._resume is not None else ()
        variables = {"BABYSIT_RESUME": path, "BABYSIT_RESUME_STEP": str(step)} if path else {}
        return Resumption(checkpoint_pattern.fill(arguments, path, step), variables, chosen)


def records_of(config: AgentConfig) -> ScriptRecords | None:
    """The records of the run's own checkpoints; None: it has none that can be told apart."""
    resume = config.spec.resume
    if resume is None or resume.checkpoints is None or not resume.by_step:
        return None
    return ScriptRecords(resume.checkpoints, resume.complete, config.run)


def _is_shrinking(before: Signature, now: Signature) -> bool:
    """True if files of a whole checkpoint are gone: the script is deleting it."""
    return not {name for name, _, _ in before} <= {name for name, _, _ in now}


def _signature(path: Path) -> Signature:
    """As :func:`signature`; empty if it is gone."""
    try:
        return signature(path)
    except OSError:
        return ()
