"""Which checkpoints an attempt is offered, and which ones retention may delete. Pure.

Trust says what is known of the bytes, the marks say what is known of the past: a doubted or
superseded checkpoint is passed over, whatever its trust. Only a person's `--force` overrules that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from babysit.wire import Tier
from orchestrator.core.model.decisions import Rollback, RollbackTo
from orchestrator.core.model.entities import Attempt, Checkpoint, Run
from orchestrator.core.model.states import Trust
from orchestrator.core.policy import doubt


def trusted(
    checkpoints: Sequence[Checkpoint],
    *,
    before_step: int | None,
    to_step: int | None,
    homes: Mapping[int, str],
    world_size: int,
    forced: bool = False,
) -> list[Checkpoint]:
    """The checkpoints that are safe to load, in the order in which they are tried.

    Whether they can be read is not promised: ranks check sizes and hashes, and fall back along the
    list.

    Args:
        checkpoints: All that is known of the run. Doubted and superseded ones are passed over.
        before_step: Onset of an anomaly: only good ones from before it are safe. None: a crash, for
            which the newest complete one will do, memory before directory at the same step.
        to_step: Step that a person chose: this one or older. None: no choice.
        homes: Worker of each rank of the next attempt: a memory checkpoint is of use only where its
            shards are.
        world_size: Ranks of the next attempt: memory cannot be resharded.
        forced: The checkpoint of `to_step` is tried even if it is bad.
    """

    def usable(checkpoint: Checkpoint) -> bool:
        tried = forced and checkpoint.step == to_step and checkpoint.trust is Trust.BAD
        if checkpoint.deleted_at is not None or not (tried or doubt.may_load(checkpoint)):
            return False
        if to_step is not None and checkpoint.step > to_step:
            return False
        if before_step is not None and (
            checkpoint.trust is not Trust.GOOD or checkpoint.step >= before_step
        ):
            return False
        if checkpoint.tier is Tier.MEMORY:
            return checkpoint.world_size == world_size and dict(checkpoint.homes) == dict(homes)
        return True

    return sorted(
        filter(usable, checkpoints),
        key=lambda c: (-c.step, c.tier is not Tier.MEMORY, -c.attempt),
    )


def has_lost_its_past(run: Run, before: Attempt | None, checkpoints: Sequence[Checkpoint]) -> bool:
    """True if a start from step 0 would throw work away that nobody decided to give up.

    That is so where the last attempt loaded or saved checkpoints that turned out bad. After a
    rollback, by a person or for an anomaly, it is decided already.
    """
    if before is None or isinstance(run.decision, Rollback | RollbackTo):
        return False
    return any(
        checkpoint.tier is Tier.DIRECTORY
        and checkpoint.trust is Trust.BAD
        and (checkpoint.attempt == before.number or checkpoint.id in before.candidates)
        for checkpoint in checkpoints
    )


MAY_BE_WRITTEN = 2
"""Newest half-written checkpoints of the live attempt that may still be under way: ranks save in
the background, so one rank may begin a save while another is at the one before."""


def select_for_deletion(
    checkpoints: Sequence[Checkpoint],
    keep: int,
    in_use: Sequence[str],
    attempt: int,
    *,
    full: bool = False,
) -> list[Checkpoint]:
    """Directory checkpoints that retention may delete while `attempt` is the newest.

    Never the newest `keep`, the newest good one, a pinned one, a doubted one, or one in use.

    Half-written ones that nobody writes any more go first, also where nothing was ever saved whole:
    else a full disk stays full. Bad and superseded ones go once the run has saved a newer step, and
    superseded ones beyond the newest `keep`, or all of them where there is no room (`full`). None
    of these counts among the kept. Those of another engine are its own to delete.
    """
    directory = sorted(
        (
            c
            for c in checkpoints
            if c.tier is Tier.DIRECTORY and c.deleted_at is None and not c.keeper
        ),
        key=lambda c: (c.step, c.attempt),
        reverse=True,
    )
    half = [c for c in directory if c.trust is Trust.WRITING]
    under_way = {c.id for c in [c for c in half if c.attempt == attempt][:MAY_BE_WRITTEN]}
    spent = [c for c in half if c.id not in under_way and not c.pinned]
    sound = [c for c in directory if doubt.may_load(c)]
    if not sound:
        return spent
    newest_good = next((c for c in sound if c.trust is Trust.GOOD), None)
    verified = next((c for c in sound if c.trust in {Trust.VERIFIED, Trust.GOOD}), None)
    kept = {c.id for c in (*sound[:keep], newest_good, verified) if c is not None} | set(in_use)
    left = [c for c in directory if c.superseded and c.trust is not Trust.BAD]
    spent += [c for i, c in enumerate(left) if full or i >= keep or c.step < sound[0].step]
    useless = {Trust.BAD, Trust.WRITING}  # ranks save in order: an older one never becomes whole
    spent += [c for c in directory if c.trust in useless and c.step < sound[0].step]
    found = {c.id: c for c in (*spent, *sound)}
    return [c for c in found.values() if c.id not in kept and not c.pinned]
