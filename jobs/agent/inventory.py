"""Checkpoint shards on this node: what is in memory and on disk, verification, deletion."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import structlog
from pydantic import ValidationError

from babysit.wire import MANIFEST_FILE, Tier, rank_directory
from jobs.agent import page_cache
from jobs.agent.errors import RefusedPathError
from jobs.commands import VerifyCheckpoint
from jobs.shards import ShardFile, ShardReport

_NEWEST = 3
"""Reported memory shards per rank: a rank keeps two, and a third may be half deleted."""
_FOUND = 10_000
"""Shards of checkpoints on disk after which no older checkpoint is reported: some 3 MB."""
HIDDEN = re.compile(r"\.rank-(?P<rank>\d+)\.(?P<run>.*)\.(?P<attempt>\d+)\.[0-9a-f]+")
"""Names of shards that are being written: :func:`babysit.checkpoint.shard.hidden_directory`."""
_RANK = re.compile(r"\.?rank-(?P<rank>\d+)(\.|$)")
_STEP_DIRECTORY = re.compile(r"step-\d+")
_HASH_BYTES = 16
_CHUNK_BYTES = 1 << 22
_log = structlog.get_logger(part="inventory")


def memory_shards(root: Path) -> tuple[ShardReport, ...]:
    """Complete shards under `root/step-…/rank-…`, newest first, up to three per rank."""
    by_rank: defaultdict[int, list[ShardReport]] = defaultdict(list)
    for manifest in sorted(root.glob(f"step-*/rank-*/{MANIFEST_FILE}"), reverse=True):
        shard = read(manifest)
        if shard is not None and len(by_rank[shard.rank]) < _NEWEST and _is_whole(shard):
            by_rank[shard.rank].append(shard)
    found = [shard for shards in by_rank.values() for shard in shards]
    return tuple(sorted(found, key=lambda shard: (-shard.step, shard.rank)))


def drop_others(root: Path, ranks: Collection[int]) -> None:
    """Delete the memory shards of all ranks but these. Blocks; errors are ignored.

    A worker whose ranks have changed cannot use the shards of its former ranks: a memory checkpoint
    serves a rank only where the rank saved it. They would fill the memory until the run is over.
    """
    for step in root.glob("step-*"):
        for path in step.glob("*rank-*"):
            found = _RANK.match(path.name)
            if found is not None and int(found["rank"]) not in ranks:
                with contextlib.suppress(OSError):  # a shard that stays takes room, and no more
                    (path / MANIFEST_FILE).unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # shards of these ranks are still there
            step.rmdir()


def whole_checkpoints(root: Path, run: str, attempt: int, above: int) -> tuple[ShardReport, ...]:
    """All shards of the whole checkpoints under `root` that an attempt saved after a step. Blocks.

    Sizes are checked, contents are not. Where a later attempt than `attempt` has saved, only what
    the last one saved counts: nobody here knows which part of the others it went on from.

    Args:
        root: The checkpoint directory; a missing one holds none.
        run: The run that must have written them.
        attempt: The oldest attempt that counts.
        above: The last step that does not.

    Returns:
        The newest first; at least one checkpoint if there is one, and about `_FOUND` shards.

    Raises:
        OSError: The directory cannot be read.
    """
    found: dict[int, list[ShardReport]] = {}
    newest, count = attempt, 0
    for directory in sorted(_steps_above(root, above), reverse=True):
        shards = _whole(directory, run, newest)
        if not shards:
            continue
        if shards[0].attempt > newest:
            found, newest, count = {}, shards[0].attempt, 0
        if count < _FOUND:
            found[shards[0].step] = shards
            count += len(shards)
    return tuple(shard for shards in found.values() for shard in shards)


def _steps_above(root: Path, above: int) -> list[Path]:
    if not root.exists():
        return []
    named = [path for path in root.iterdir() if _STEP_DIRECTORY.fullmatch(path.name)]
    return [path for path in named if int(path.name.removeprefix("step-")) > above]


def _whole(directory: Path, run: str, oldest: int) -> list[ShardReport]:
    """The shards of a checkpoint by rank; empty if one is missing, cut off or of another.

    `oldest` is the oldest attempt that counts.
    """
    manifests = sorted(directory.glob(f"rank-*/{MANIFEST_FILE}"))
    first = read(manifests[0], Tier.DIRECTORY) if manifests else None
    if first is None or first.attempt < oldest or len(manifests) != first.world_size:
        return []
    shards = [shard for path in manifests if (shard := read(path, Tier.DIRECTORY)) is not None]
    alike = {(s.run, s.attempt, s.step, s.world_size) for s in shards} == {
        (run, first.attempt, first.step, first.world_size)
    }
    ranks = [shard.rank for shard in shards] == list(range(first.world_size))
    return shards if alike and ranks and all(map(_is_whole, shards)) else []


def read(manifest: Path, tier: Tier = Tier.MEMORY) -> ShardReport | None:
    """The manifest as a report; None, with a log line, if it is unreadable."""
    try:
        return _parsed(manifest, tier)
    except (OSError, ValueError, TypeError, ValidationError) as error:
        _log.warning("manifest is unreadable, shard ignored", path=str(manifest), error=str(error))
        return None


def _parsed(manifest: Path, tier: Tier = Tier.MEMORY) -> ShardReport:
    raw = json.loads(manifest.read_bytes())
    here = {"tier": tier, "path": str(manifest.parent.parent)}
    return ShardReport.model_validate({**raw, **here})


def _is_whole(shard: ShardReport) -> bool:
    try:
        return not _wrong_size(shard)
    except OSError:
        return False


def _wrong_size(shard: ShardReport) -> str:
    """The first file of the wrong size, as a sentence; empty: none."""
    directory = rank_directory(shard.path, shard.rank)
    for file in shard.files:
        size = (directory / file.name).stat().st_size
        if size != file.bytes:
            return f"{directory / file.name}: {size} bytes, {file.bytes} expected (truncated?)"
    return ""


def verify(command: VerifyCheckpoint, run: str) -> tuple[str, str]:
    """Read the shards of `ranks` from their medium and compare them with their manifests. Blocks.

    Args:
        command: Names the shards.
        run: The run that must have written them.

    Returns:
        The first fault as a sentence (empty: sizes and hashes of all files agree), and what was
        read: see :data:`jobs.events.CheckpointChecked.medium`.

    Raises:
        OSError: A file is missing or unreadable. That may be temporary and says nothing about its
            content.
    """
    shards: list[ShardReport] = []
    for rank in command.ranks:
        manifest = rank_directory(command.path, rank) / MANIFEST_FILE
        try:
            shard = _parsed(manifest)
        except (ValueError, TypeError) as error:  # includes pydantic's ValidationError
            return f"{manifest}: not a valid manifest: {error}", ""
        if _of_another(shard, run):
            return f"{manifest}: belongs to run {shard.run}, not to {run}", ""
        if shard.attempt != command.attempt:
            return f"{manifest}: written by attempt {shard.attempt}, not {command.attempt}", ""
        shards.append(shard)
    media: set[str] = set()
    fault = next(filter(None, (_fault(shard, media) for shard in shards)), "")
    return fault, ", ".join(sorted(media))


def _of_another(shard: ShardReport, run: str) -> bool:
    """True if a manifest names another run. Manifests of older versions name none."""
    return shard.run not in {"", run}


def _fault(shard: ShardReport, media: set[str]) -> str:
    """The first fault of a shard; empty: none. Adds what was read to `media`."""
    directory = rank_directory(shard.path, shard.rank)
    faults = (_wrong_hash(directory, file, media) for file in shard.files)
    return _wrong_size(shard) or next(filter(None, faults), "")


def _wrong_hash(directory: Path, file: ShardFile, media: set[str]) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    with (directory / file.name).open("rb") as stream:
        if file.bytes:
            media.add(page_cache.drop(stream.fileno(), file.bytes))
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.blake2b:
        return f"{directory / file.name}: content differs from what was written (blake2b)"
    return ""


def delete(path: Path, attempt: int, run: str) -> None:
    """Delete the checkpoint of an attempt; a missing one is not an error. Blocks.

    Manifests are deleted first, so that a half-deleted checkpoint never looks complete.

    Raises:
        RefusedPathError: The path is not a directory named `step-…`, or a later attempt or another
            run has saved there since.
        OSError: The directory cannot be deleted.
    """
    if not path.is_absolute() or not _STEP_DIRECTORY.fullmatch(path.name) or path.is_symlink():
        raise RefusedPathError(
            f"{path}: refusing to delete; expected an absolute path that ends in step-…"
        )
    if not path.exists():
        return
    manifests = list(path.glob(f"rank-*/{MANIFEST_FILE}"))
    shards = [shard for shard in map(read, manifests) if shard is not None]
    if others := {shard.run for shard in shards if _of_another(shard, run)}:
        raise RefusedPathError(f"{path}: run {min(others)} has saved there too, not only {run}")
    later = [a for a in map(_writing, path.glob(".rank-*")) if a is not None and a > attempt]
    if later or any(shard.attempt > attempt for shard in shards):
        raise RefusedPathError(f"{path}: a later attempt than {attempt} has saved there since")
    for manifest in manifests:
        manifest.unlink(missing_ok=True)
    shutil.rmtree(path)


def _writing(hidden: Path) -> int | None:
    """The attempt that writes a shard to a hidden directory; None: its name does not say."""
    found = HIDDEN.fullmatch(hidden.name)
    return int(found["attempt"]) if found else None
