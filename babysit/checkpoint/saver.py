"""Saves: staged by the training thread, written by one background thread.

Training waits for the copy out of its tensors, and for the previous save if that is still running.
A due save of a small state is never dropped: the memory tier promises zero lost steps. Of a large
state, a save to memory that would make training wait is left out, and their interval follows their
cost (:mod:`.cadence`). A save that fails is noted, and training continues.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from babysit.checkpoint import shard
from babysit.checkpoint.cadence import Cadence
from babysit.checkpoint.position import POSITION_FILE
from babysit.checkpoint.shard import Content, Manifest, ShardWriter
from babysit.errors import StateMismatchError
from babysit.numbers import said
from babysit.reporter import Reporter
from babysit.wire import Note, Plan, Tier, rank_directory, step_directory

INLINE_BYTES = 32 * 2**20
"""A memory shard up to this size is written by the training thread itself.

The write to tmpfs takes about as long as the copy out of the tensors (30 ms at 1 GB/s). In return,
a kill right after the save cannot lose the step. Larger shards are written in the background.
"""


@runtime_checkable
class DirectoryState(Protocol):
    """A state whose framework reads and writes a directory itself (such as DeepSpeed)."""

    def save(self, directory: Path) -> None:
        """Write all data of this rank to `directory`, which exists and is empty.

        Raises:
            OSError: The data cannot be written; the save is then noted as failed.
        """

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote."""


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """A save: the position of the run and the tiers to write."""

    step: int
    batch: int
    position: Callable[[], bytes]
    """Gives the content of `POSITION_FILE`, at the time of the copy."""
    tiers: tuple[Tier, ...]


class Saver:
    """Saves the shards of one rank."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self._plan = plan
        self._reporter = reporter
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._stage: Any = None
        self._staged_bytes = 0
        self._saved: set[tuple[int, Tier]] = set()
        self._checked = False
        self._placed = False
        """True once a position was saved: no later one raises."""
        self._held: Any = None
        self._cadence = Cadence(plan.save.memory_every_steps)
        self._skipped = 0
        """Saves to memory that were due while another save was under way."""
        self._deferred: set[Tier] = set()
        self._failing: set[Tier] = set()
        """Tiers to which the last save failed."""
        self._refused: set[Tier] = set()
        """Tiers to which a framework could not write, and to which nothing was saved since."""

    def due(self, step: int, *, last: bool, now: bool) -> tuple[Tier, ...]:
        """The tiers to which this step must be saved, the nearest first; empty: none.

        Args:
            step: The step that has just been computed.
            last: True if the run ends with this step, which makes the directory tier due.
            now: True if the script requests a save: to the directory tier, or else to memory.
        """
        policy = self._plan.save
        self._cadence.step(step, time.perf_counter())
        in_memory = bool(policy.memory_directory) and self._cadence.due(step)
        in_directory = bool(policy.directory) and (
            last or now or _divides(policy.every_steps, step)
        )
        if now and not policy.directory:
            in_memory = bool(policy.memory_directory)
        in_memory |= Tier.MEMORY in self._deferred
        in_directory |= Tier.DIRECTORY in self._deferred
        tiers = (Tier.MEMORY,) * in_memory + (Tier.DIRECTORY,) * in_directory
        return tuple(tier for tier in tiers if (step, tier) not in self._saved)

    def check(self, state: Any) -> None:
        """Refuse a state that could not be saved or restored; only the first, if any is saved.

        Raises:
            StateMismatchError: Names the part, and says what to do.
        """
        saves = self._plan.save.directory or self._plan.save.memory_directory
        if self._checked or not saves or isinstance(state, DirectoryState):
            return
        from babysit.checkpoint.gradients import HeldGradients  # noqa: PLC0415  # imports torch
        from babysit.checkpoint.state import Parts  # noqa: PLC0415

        Parts(state).check()
        self._held = HeldGradients()
        self._checked = True

    def defer(self, tiers: tuple[Tier, ...], why: str) -> None:
        """Make up for a due save at the next step after which it loses nothing."""
        self._deferred.update(tiers)
        self._reporter.warn(f"a save was due {why}: it waits for the end of an optimizer step")

    def gradients_held(self, state: Any) -> bool:
        """True if a save now would lose gradients that the script accumulates by hand."""
        return self._held is not None and isinstance(state, dict) and self._held(state)

    def save(self, state: Any, saved: Saved) -> None:
        """Stage a state and write it; returns when training may continue. Failures are noted.

        Raises:
            StateMismatchError: The first state of the run could not be saved or restored.
        """
        self.check(state)
        if self._skips(saved):
            return
        begun = time.perf_counter()
        self.wait()
        self._cadence.blocked(time.perf_counter() - begun)
        self._deferred.clear()
        self._saved = {(saved.step, tier) for tier in saved.tiers}
        begun = time.perf_counter()
        # A tmpfs that is full must not cost the saves to the directory.
        nearest = next((tier for tier in saved.tiers if tier not in self._refused), saved.tiers[0])
        try:
            position, staged = saved.position(), self._staged(state, nearest)
        except Exception as error:
            if isinstance(error, StateMismatchError) and not self._placed:
                raise
            # Code of the state's parts; training must go on.
            self._refused.add(nearest)
            for tier in saved.tiers:
                self.failed(saved.step, tier, error)
            return
        self._placed = True

        def content(writer: ShardWriter) -> None:
            staged(writer)
            writer.write(POSITION_FILE, position)

        copy_seconds = time.perf_counter() - begun
        self._cadence.blocked(copy_seconds)
        inline, later = self._divided(saved.tiers)
        for tier in inline:
            self._write(tier, saved, content, copy_seconds)
        try:
            if self._thread is None:
                # The interpreter joins these threads at exit, so the last save always completes.
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="babysit-save")
            self._pending = self._thread.submit(
                self._write_all, later, saved, content, copy_seconds
            )
        except RuntimeError:  # the interpreter ends, or may start no more threads
            self._write_all(later, saved, content, copy_seconds)

    def _skips(self, saved: Saved) -> bool:
        """True if a save is left out, since training would wait for the one under way.

        That is a save to memory alone, of a large state; the next one that is due makes up for it.
        """
        busy = self._pending is not None and not self._pending.done()
        large = self._staged_bytes > INLINE_BYTES
        if not (busy and large and saved.tiers == (Tier.MEMORY,)):
            return False
        self._skipped += 1
        if self._skipped == 1:
            self._reporter.warn(
                f"step {saved.step} is not saved to memory: a save is under way, and training does"
                " not wait for it; said once"
            )
        return True

    def _divided(self, tiers: tuple[Tier, ...]) -> tuple[tuple[Tier, ...], tuple[Tier, ...]]:
        """Split tiers into those to write at once and those to write in the background."""
        small = self._staged_bytes <= INLINE_BYTES
        inline = tuple(tier for tier in tiers if tier is Tier.MEMORY and small)
        return inline, tiers[len(inline) :]

    def wait(self) -> None:
        """Wait until no save is running."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.exception()  # `_write` has noted what went wrong

    def forget_after(self, step: int) -> None:
        """Delete this rank's memory saves of later steps, which the rollback made invalid."""
        if root := self._plan.save.memory_directory:
            later = [s for s in shard.steps_in(Path(root)) if s > step]
            shard.remove(Path(root), self._plan.rank, later)

    def _root(self, tier: Tier) -> Path:
        policy = self._plan.save
        return Path(policy.memory_directory if tier is Tier.MEMORY else policy.directory)

    def _staged(self, state: Any, nearest: Tier) -> Content:
        if isinstance(state, DirectoryState):
            return self._saved_by_framework(state, self._root(nearest))
        if self._stage is None:
            from babysit.checkpoint.tensors import TensorStage  # noqa: PLC0415  # imports torch

            self._stage = TensorStage()
        content: Content = self._stage.stage(state)
        self._staged_bytes = self._stage.bytes
        return content

    def _saved_by_framework(self, state: DirectoryState, root: Path) -> Content:
        staging = self._staging(root)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            state.save(staging)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # it would keep a full disk full
            raise
        files = (path for path in staging.rglob("*") if path.is_file())
        self._staged_bytes = sum(path.stat().st_size for path in files)
        return lambda writer: writer.adopt(staging)

    def _staging(self, root: Path) -> Path:
        # Runs that share a directory must not write into each other's.
        writer = f"{self._plan.run}.{self._plan.attempt}"
        return shard.staging_directory(root, self._plan.rank, writer)

    def _write_all(
        self, tiers: tuple[Tier, ...], saved: Saved, content: Content, copy_seconds: float
    ) -> None:
        begun = time.perf_counter()
        for tier in tiers:
            self._write(tier, saved, content, copy_seconds)
            if tier is Tier.MEMORY:
                self._adapt(copy_seconds, copy_seconds + time.perf_counter() - begun)
        for tier in saved.tiers:
            shutil.rmtree(self._staging(self._root(tier)), ignore_errors=True)

    def _adapt(self, copy_seconds: float, seconds: float) -> None:
        """Save a large state to memory as often as its cost allows; says so when that changes."""
        before = self._cadence.interval
        self._cadence.saved(copy_seconds, seconds)
        self._cadence.agree(Path(self._plan.save.memory_directory), self._plan.attempt)
        if self._cadence.interval != before:
            self._reporter.warn(
                f"a save to memory takes {seconds:.2f} s, of which training waits"
                f" {copy_seconds:.2f} s: one every {self._cadence.interval} steps from now on"
            )

    def _write(self, tier: Tier, saved: Saved, content: Content, copy_seconds: float) -> None:
        manifest = Manifest(
            step=saved.step,
            rank=self._plan.rank,
            world_size=self._plan.world_size,
            tier=tier,
            path=str(step_directory(self._root(tier), saved.step)),
            batch=saved.batch,
            copy_seconds=copy_seconds,
            attempt=self._plan.attempt,
            run=self._plan.run,
        )
        try:
            try:
                written = self._sealed(manifest, content)
            except OSError as error:
                # Of the copies in memory, one sound one is enough: the others make room.
                if tier is not Tier.MEMORY or not _is_full(error) or not self._make_room():
                    raise
                written = self._sealed(manifest, content)
            self._written(written)
        except Exception as error:  # noqa: BLE001 (nothing may fail in silence)
            self.failed(saved.step, tier, error)

    def _sealed(self, manifest: Manifest, content: Content) -> Manifest:
        with shard.writing(manifest) as writer:
            content(writer)
        return writer.manifest

    def _make_room(self) -> bool:
        """Delete this rank's saves in memory but the newest; False: there was nothing to delete."""
        root, rank = Path(self._plan.save.memory_directory), self._plan.rank
        before = shard.steps_in(root)
        shard.prune(root, rank, 1)
        return shard.steps_in(root) != before

    def _written(self, manifest: Manifest) -> None:
        policy = self._plan.save
        self._refused.discard(manifest.tier)
        if manifest.tier in self._failing:
            self._failing.discard(manifest.tier)
            self._reporter.note(Note.SAVE_RESUMED, step=manifest.step, tier=manifest.tier)
        if manifest.tier is Tier.MEMORY:
            self._prune_memory(manifest.rank)
            return
        self._reporter.note(
            Note.SHARD,
            step=manifest.step,
            tier=manifest.tier,
            path=manifest.path,
            files=[dataclasses.asdict(file) for file in manifest.files],
            batch=manifest.batch,
            seconds={"copy": manifest.copy_seconds, "write": manifest.write_seconds},
        )
        shard.prune(Path(policy.directory), manifest.rank, policy.directory_keep)

    def _prune_memory(self, rank: int) -> None:
        root, keep = Path(self._plan.save.memory_directory), self._plan.save.memory_keep
        if self._staged_bytes <= INLINE_BYTES:
            shard.prune(root, rank, keep)
        else:
            shard.prune_but(root, rank, lambda steps: self._cadence.kept(steps, keep))

    def failed(self, step: int, tier: Tier, error: Exception) -> None:
        """Note a save that failed."""
        where = rank_directory(step_directory(self._root(tier), step), self._plan.rank)
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        text = f"{kind}{said(error)}"
        self._failing.add(tier)
        self._reporter.warn(f"step {step} is not saved to {where}: {text}")
        full = _is_full(error)
        self._reporter.note(Note.SAVE_FAILED, step=step, tier=tier, error=text, full=full)


def _is_full(error: Exception) -> bool:
    """True if the file system, or the user's quota of it, is full."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
