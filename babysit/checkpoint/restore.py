"""The choice of the checkpoint to load: the first one whose shards are valid on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from babysit import collective, rng
from babysit.checkpoint import position, shard
from babysit.checkpoint.saver import DirectoryState
from babysit.checkpoint.shard import Manifest
from babysit.errors import NothingLoadedError, ShardRefusedError, ShardUnreadableError
from babysit.wire import Candidate, Plan, Tier, rank_directory, step_directory


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The common decision of all ranks."""

    candidate: Candidate | None
    """The checkpoint to load; None: there are no candidates, or none can be loaded."""
    rejected: tuple[dict[str, Any], ...]
    """`{id, reason, unreadable}` of the earlier candidates; unreadable ones may still be sound."""

    def require(self, plan: Plan) -> None:
        """Refuse to start from step 0 if there were candidates.

        Raises:
            NothingLoadedError: There were candidates, and none can be loaded.
        """
        if plan.restore and self.candidate is None:
            why = self.rejected[0]["reason"] if self.rejected else "see the log of another rank"
            raise NothingLoadedError(
                f"none of {len(plan.restore)} checkpoints can be loaded ({why}): check that"
                f" {plan.restore[0].path} is readable, or start from step 0 on purpose (`babysit"
                " rollback RUN --to 0`; without an agent, with another directory)"
            )


def agreed(plan: Plan) -> Plan:
    """The plan with rank 0's candidates, as ranks alone each list the directory themselves.

    File servers show a new directory to different hosts at different times. A collective if
    torch.distributed is initialised. An agent's plan is the same on all ranks anyway.
    """
    if plan.run or plan.world_size == 1 or (group := collective.process_group()) is None:
        return plan
    listed = [plan.restore]
    group.broadcast_object_list(listed, src=0)
    return dataclasses.replace(plan, restore=listed[0])


def choose(plan: Plan) -> Choice:
    """Try the plan's candidates in order; a collective if torch.distributed is initialised.

    Without a process group each rank decides alone.
    """
    rejected: list[dict[str, Any]] = []
    for candidate in plan.restore:
        reason, unreadable = "", False
        try:
            _check(candidate, plan)
        except ShardRefusedError as error:
            reason, unreadable = str(error), isinstance(error, ShardUnreadableError)
        if collective.minimum(int(not reason))[0]:
            return Choice(candidate, tuple(rejected))
        if reason:  # otherwise another rank refused it, and gives the reason
            rejected.append({"id": candidate.id, "reason": reason, "unreadable": unreadable})
    return Choice(None, tuple(rejected))


def _check(candidate: Candidate, plan: Plan) -> None:
    """Verify the part of a candidate that this rank is responsible for.

    If the world size has not changed, that is the rank's own shard. Otherwise every shard will be
    read: each rank verifies its share of them, or all of them if the ranks cannot communicate.

    Raises:
        ShardRefusedError: A shard is missing, incomplete or damaged.
    """
    checkpoint = Path(candidate.path)
    ranks: Sequence[int] = (plan.rank,)
    if candidate.world_size != plan.world_size:
        ranks = range(candidate.world_size)
    manifests = [_manifest(candidate, rank_directory(checkpoint, rank), rank) for rank in ranks]
    shared = candidate.tier is Tier.DIRECTORY and collective.process_group() is not None
    for manifest in manifests:
        mine = manifest.rank % plan.world_size == plan.rank
        if mine or not shared or len(ranks) == 1:
            shard.verify(manifest, rank_directory(checkpoint, manifest.rank))


def _manifest(candidate: Candidate, directory: Path, rank: int) -> Manifest:
    manifest = Manifest.read(directory)
    if manifest.run and manifest.run != candidate.run:
        raise ShardRefusedError(
            f"{directory}: belongs to run {manifest.run}, not to {candidate.run or 'this one'}"
        )
    found = (manifest.step, manifest.rank, manifest.world_size, manifest.attempt)
    expected = (candidate.step, rank, candidate.world_size, candidate.attempt)
    if found != expected:
        raise ShardRefusedError(
            f"{directory}: (step, rank, world size, attempt) is {found}, not {expected}"
        )
    return manifest


def load(state: Any, candidate: Candidate, rank: int) -> dict[str, Any]:
    """Load a verified candidate into the state; returns the saved position of the rank.

    Raises:
        StateMismatchError: The checkpoint does not fit the state.
        OSError: The files cannot be read.
    """
    own = rank_directory(candidate.path, rank % candidate.world_size)
    if isinstance(state, DirectoryState):
        state.load(own)
    else:
        from babysit.checkpoint import tensors  # noqa: PLC0415  # imports torch

        tensors.load(state, Path(candidate.path), rank, candidate.world_size)
    return position.load(own)


def resized(
    resumed: dict[str, Any], candidate: Candidate, plan: Plan, warn: Callable[[str], None]
) -> None:
    """Adapt a position that another number of ranks saved, and say what is not exact.

    A rank that had no shard of its own would draw the same numbers as the one whose shard it reads,
    so its generators continue from other states.
    """
    before, now = candidate.world_size, plan.world_size
    if before == now:
        return
    if plan.rank >= before:
        resumed["rng"] = rng.derived(resumed["rng"], plan.rank)
    resumed["position"].resized = (
        f"each of {now} ranks goes on at the batch of the epoch at which {before} ranks were, so"
        f" samples of this epoch are {'left out' if now > before else 'drawn twice'}, and numbers"
        " of batches (quarantine) name other data than before; with torch's DistributedSampler and"
        " batches of one size, the rest is dealt out anew, and numbers keep their samples"
    )
    warn(
        f"the checkpoint was saved by {before} ranks, and this attempt has {now}: ranks draw other"
        " random numbers. Keep the world size to resume bit for bit"
    )


def newest_in(directory: Path) -> tuple[Candidate, ...]:
    """Complete checkpoints in the directory of a stand-alone run, newest first."""
    found = []
    for step in shard.steps_in(directory):
        checkpoint = step_directory(directory, step)
        try:
            first = Manifest.read(rank_directory(checkpoint, 0))
            for rank in range(first.world_size):
                Manifest.read(rank_directory(checkpoint, rank))
        except ShardRefusedError:
            continue
        found.append(
            Candidate(
                id=checkpoint.name,
                step=step,
                tier=Tier.DIRECTORY,
                path=str(checkpoint),
                world_size=first.world_size,
                attempt=first.attempt,
                run=first.run,
            )
        )
    return tuple(found)
