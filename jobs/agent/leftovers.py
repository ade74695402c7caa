"""Sweeps leftovers of killed writers in the directory and on tmpfs as the next attempt begins.

By then the processes of older attempts are confirmed dead, or fenced: their checkpoints that are
half-written never become whole. A leftover is a shard without its manifest, the staging directory
of a framework, or a whole shard of a checkpoint in which a peer's is missing.

Never swept: a checkpoint of which all shards are there, one that the attempt may load, and
everything of other runs and of later attempts.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

import structlog

from babysit.wire import MANIFEST_FILE, Tier, rank_directory, step_directory
from jobs.agent import inventory
from jobs.agent.gang import memory_checkpoints
from jobs.commands import StartAttempt
from jobs.config import AgentConfig
from jobs.shards import ShardReport

_STAGING = re.compile(r"\.staging-\d+\.(?P<run>.*)\.(?P<attempt>\d+)")
"""Names of :func:`babysit.checkpoint.shard.staging_directory`."""
_Key = tuple[int, int]
"""Attempt and step of a checkpoint."""
_log = structlog.get_logger(part="leftovers")


def sweep_before(command: StartAttempt, config: AgentConfig) -> None:
    """Sweep before an attempt: every node its tmpfs, the first one the directory too. Blocks.

    Errors are logged; the next attempt sweeps again.
    """
    roots = [(memory_checkpoints(config), Tier.MEMORY)]
    if config.spec.checkpoint.directory and command.node_rank == 0:
        roots.append((Path(config.spec.checkpoint.directory), Tier.DIRECTORY))
    for root, tier in roots:
        kept = {(c.attempt, c.step) for c in command.restore if c.tier == tier}
        try:
            gone = sweep(root, command.attempt, config.run, kept, tier)
        except OSError as error:
            _log.warning("leftovers not swept", path=str(root), error=str(error))
            continue
        for path in gone:
            _log.info("leftover of a dead attempt deleted", path=str(path))


def sweep(root: Path, attempt: int, run: str, kept: Collection[_Key], tier: Tier) -> list[Path]:
    """Delete what killed writers of a run's older attempts have left. Blocks.

    Args:
        root: Root directory of the tier.
        attempt: The attempt that begins; writers of older ones must be confirmed dead.
        run: The run.
        kept: Checkpoints that the attempt may load.
        tier: On tmpfs, a node has only the shards of its own ranks.

    Returns:
        The directories that were deleted.

    Raises:
        OSError: A directory cannot be read.
    """
    hidden = [*_half_written(root), *root.glob(".staging-*")]
    gone = [path for path in hidden if _is_older(path, attempt, run)]
    for orphan in _orphans(root, attempt, run, kept, tier):
        shard = rank_directory(step_directory(root, orphan.step), orphan.rank)
        (shard / MANIFEST_FILE).unlink(missing_ok=True)  # first: half deleted, it is not whole
        gone.append(shard)
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
        if path.parent != root:
            with contextlib.suppress(OSError):  # other shards are there
                path.parent.rmdir()
    return gone


def _half_written(root: Path) -> Iterator[Path]:
    return root.glob("step-*/.rank-*")


def _is_older(path: Path, attempt: int, run: str) -> bool:
    found = inventory.HIDDEN.fullmatch(path.name) or _STAGING.fullmatch(path.name)
    return found is not None and found["run"] == run and int(found["attempt"]) < attempt


def _orphans(
    root: Path, attempt: int, run: str, kept: Collection[_Key], tier: Tier
) -> list[ShardReport]:
    """Whole shards of older attempts whose checkpoints lack another one for ever."""
    shards = list(_shards(root, run))
    by_checkpoint: defaultdict[_Key, list[ShardReport]] = defaultdict(list)
    for shard in shards:
        if shard.attempt < attempt and (shard.attempt, shard.step) not in kept:
            by_checkpoint[shard.attempt, shard.step].append(shard)
    of_node = _ranks_of_node(root, run, shards)
    orphans = []
    for (number, step), here in by_checkpoint.items():
        needed = of_node[number] if tier is Tier.MEMORY else set(range(here[0].world_size))
        if needed <= {shard.rank for shard in here}:
            continue
        _look_again(step_directory(root, step))
        manifests = list(_manifests(root, step))
        there = [found for manifest in manifests if (found := inventory.read(manifest))]
        # One that cannot be read now may be the missing one.
        unknown = len(there) < len(manifests)
        if not unknown and not needed <= {s.rank for s in there if s.attempt == number}:
            orphans += here
    return orphans


def _manifests(root: Path, step: int | None = None) -> Iterator[Path]:
    name = "step-*" if step is None else step_directory(root, step).name
    return root.glob(f"{name}/rank-*/{MANIFEST_FILE}")


def _shards(root: Path, run: str) -> Iterator[ShardReport]:
    """Whole shards of a run, in the directories that their manifests name."""
    for manifest in _manifests(root):
        shard = inventory.read(manifest)
        if shard is None or shard.run != run:
            continue
        if manifest.parent == rank_directory(step_directory(root, shard.step), shard.rank):
            yield shard


def _ranks_of_node(
    root: Path, run: str, shards: Collection[ShardReport]
) -> defaultdict[int, set[int]]:
    """The ranks of each attempt that have written on this node, whole shards or not."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for shard in shards:
        found[shard.attempt].add(shard.rank)
    for path in _half_written(root):
        name = inventory.HIDDEN.fullmatch(path.name)
        if name and name["run"] == run:
            found[int(name["attempt"])].add(int(name["rank"]))
    return found


def _look_again(directory: Path) -> None:
    """Have a client of a file server look at the directory itself, not at its cache.

    A shard that another node has just written may be absent from the cache for a minute. A change
    of one's own makes the client compare, and drop what it had.
    """
    mark = directory / f".look.{uuid.uuid4().hex[:8]}"
    mark.touch()
    mark.unlink()
