"""Checkpoints that a script saves by itself, as files beside them record it. Blocks throughout.

`.babysit/RUN/` lies in the directory under which the script saves: a manifest for each checkpoint
that was found whole, with sizes and hashes; the list of those that were there before the run; and
`aside/`, for checkpoints that a run has left behind, out of sight of the script. Nothing is written
there before the script has saved something: some scripts refuse a directory that is not empty.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog
from pydantic import ValidationError

from babysit.wire import Tier
from jobs import checkpoint_pattern
from jobs.agent import page_cache
from jobs.agent.errors import RefusedPathError
from jobs.shards import ShardFile, ShardReport

_CHUNK_BYTES = 1 << 22
_HASH_BYTES = 16
_BEFORE = "before.json"
_NEVER = (1 << 63) - 1
"""A time (ns) that no file is younger than."""
_log = structlog.get_logger(part="script_records")

Signature = tuple[tuple[str, int, int], ...]
"""Names, sizes in bytes and times of change (ns) of the files of a checkpoint."""


class ScriptRecords:
    """The records of the checkpoints that match one pattern.

    Args:
        pattern: Absolute, with `{step}`.
        complete: The file that the script writes last; None: nobody knows.
        run: The run that writes them.
    """

    def __init__(self, pattern: str, complete: str | None, run: str) -> None:
        self._pattern, self._complete, self._run = pattern, complete, run
        self._directory = _fixed_part(pattern) / ".babysit" / run

    # what is there

    def found(self) -> Mapping[int, Path]:
        """Checkpoints by step, whole or not, without those from before the run.

        One from before the run that the run has written again since is the run's.
        """
        before = self._before()
        places = checkpoint_pattern.find(self._pattern)
        return {
            step: path
            for step, path in places.items()
            if step not in before or self._written_at(path, unreadable=0) > before[step]
        }

    def has_marker(self, path: Path) -> bool | None:
        """True if the script has written its last file; None: it has none, so nobody knows."""
        return None if self._complete is None else (path / self._complete).exists()

    def note_before(self, since: float = math.inf) -> None:
        """Before the first attempt that gets so far: what is there now is not this run's.

        `since`: Unix seconds from when on the run may have saved something.

        Raises:
            OSError: The list cannot be written.
        """
        if self._directory.exists():
            return
        there = checkpoint_pattern.find(self._pattern)
        old = {step: path for step, path in there.items() if _changed_at(path) < since}
        if old:
            written = {s: self._written_at(path, unreadable=_NEVER) for s, path in old.items()}
            self._write(self._directory / _BEFORE, json.dumps(written))

    def _before(self) -> Mapping[int, int]:
        """Steps from before the run, with the time (ns) at which each was written."""
        file = self._directory / _BEFORE
        try:
            return {int(step): int(time) for step, time in json.loads(file.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            why = "damaged; write the steps from before the run into it, or delete it if none is"
            raise OSError(errno.EIO, why, str(file)) from error

    def _written_at(self, path: Path, *, unreadable: int) -> int:
        """The time of the last file of a checkpoint in ns; 0: it has none."""
        try:
            if self._complete is not None:
                return (path / self._complete).stat().st_mtime_ns
            return max((time for _, _, time in signature(path)), default=0)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError:
            return unreadable

    # manifests

    def register(
        self, step: int, path: Path, attempt: int, hurry: Callable[[], bool]
    ) -> ShardReport | None:
        """Hash a checkpoint and write its manifest; None if it changed meanwhile.

        Once `hurry()` is true the rest is not hashed: then sizes alone tell damage.

        Raises:
            OSError: It cannot be read, or the manifest cannot be written.
        """
        before = signature(path)
        files = tuple(
            ShardFile(name=name, bytes=size, blake2b=_digest(_file(path, name), hurry))
            for name, size, _ in before
        )
        if signature(path) != before:
            return None
        shard = ShardReport(
            attempt=attempt,
            step=step,
            rank=0,
            world_size=1,
            tier=Tier.DIRECTORY,
            path=str(path),
            batch=0,
            files=files,
            run=self._run,
        )
        self._write(self._manifest(step), shard.model_dump_json())
        return shard

    def registered(self) -> list[ShardReport]:
        """All manifests of the run, the newest step first. Unreadable ones are left out."""
        found = []
        for file in self._directory.glob("step-*.json"):
            try:
                found.append(ShardReport.model_validate_json(file.read_bytes()))
            except (OSError, ValidationError) as error:
                _log.warning("manifest is unreadable", path=str(file), error=str(error))
        return sorted(found, key=lambda shard: -shard.step)

    def whole(self, attempt: int, above: int) -> tuple[ShardReport, ...]:
        """Checkpoints that the last attempt from `attempt` on saved after a step, newest first."""
        found = [s for s in self.registered() if s.attempt >= attempt and s.step > above]
        newest = max((shard.attempt for shard in found), default=0)
        return tuple(s for s in found if s.attempt == newest and not self._changed(s, Path(s.path)))

    def verify(self, path: str, attempt: int) -> tuple[str, str]:
        """Read a checkpoint and compare it with its manifest.

        Returns:
            As :func:`jobs.agent.inventory.verify`.

        Raises:
            OSError: A file cannot be read.
        """
        shard = next((s for s in self.registered() if s.path == path), None)
        if shard is None or shard.attempt != attempt:
            return "", ""  # written again, or deleted by the script: another report says so
        media: set[str] = set()
        for file in shard.files:
            place = _file(Path(path), file.name)
            if place.stat().st_size != file.bytes:
                return f"{place}: {place.stat().st_size} bytes, {file.bytes} expected", ""
            if file.blake2b and _digest(place, _patient, media) != file.blake2b:
                return f"{place}: content differs from what was written (blake2b)", ""
        return "", ", ".join(sorted(filter(None, media)))

    def delete(self, path: Path, attempt: int) -> None:
        """Delete a checkpoint and its manifest; a missing one is not an error.

        Raises:
            RefusedPathError: It is not one of the run's, or has changed since it was registered.
            OSError: It cannot be deleted.
        """
        shard = next((s for s in self.registered() if s.path == str(path)), None)
        if shard is None or shard.attempt != attempt:
            raise RefusedPathError(f"{path}: not a checkpoint that attempt {attempt} has saved")
        places = (path, self._aside(shard.step, path))
        place = next((each for each in places if not self._changed(shard, each)), None)
        # Out of sight first: the script must not find half of it, nor its next write meet a delete.
        gone = self._directory / "deleted" / str(shard.step) / path.name
        if place is None and not os.path.lexists(gone) and os.path.lexists(path):
            raise RefusedPathError(f"{path}: it has changed since attempt {attempt} saved it")
        if place is not None:
            _remove(gone)
            gone.parent.mkdir(parents=True, exist_ok=True)
            place.rename(gone)
        _remove(gone)
        self._manifest(shard.step).unlink(missing_ok=True)

    def forget(self, step: int) -> None:
        """The script has deleted a checkpoint."""
        self._manifest(step).unlink(missing_ok=True)

    # what an attempt goes on from

    def is_there(self, step: int, path: Path) -> bool:
        """True if a checkpoint lies at its place, or aside, as it was registered."""
        shard = next((s for s in self.registered() if s.path == str(path)), None)
        # The agent of rank 0 may move it from the second place to the first at this moment.
        places = (path, self._aside(step, path), path)
        return shard is not None and any(not self._changed(shard, place) for place in places)

    def leave_only(self, step: int, path: Path | None) -> list[Path]:
        """Put the checkpoint of a step at its place, and later ones aside.

        A checkpoint that was never found whole is put aside too: the death of its writer may have
        left half of it.

        Raises:
            OSError: One cannot be moved.
        """
        shard = self._shard_of(step)
        if path is not None and shard is not None and self._changed(shard, path):
            aside = self._aside(step, path)
            if not self._changed(shard, aside):
                if os.path.lexists(path):  # half of it, by an attempt that came to it again
                    self._put_aside(step, path)
                path.parent.mkdir(parents=True, exist_ok=True)
                aside.rename(path)
        moved = {later: place for later, place in self.found().items() if later > step}
        for later, place in moved.items():
            self._put_aside(later, place)
        return list(moved.values())

    def _put_aside(self, step: int, place: Path) -> None:
        """Move a checkpoint aside. Of several of one step the registered one can be moved back."""
        target, shard = self._aside(step, place), self._shard_of(step)
        if os.path.lexists(target):
            spare = self._spare(step, place)
            spare.parent.mkdir(parents=True, exist_ok=True)
            is_registered = shard is not None and shard.path == str(place)
            if shard is None or (is_registered and not self._changed(shard, place)):
                target.rename(spare)
            else:
                target = spare
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)

    def _shard_of(self, step: int) -> ShardReport | None:
        return next((s for s in self.registered() if s.step == step), None)

    def _spare(self, step: int, path: Path) -> Path:
        """A free place for another checkpoint of a step."""
        root = self._directory / "aside"
        numbered = (root / f"{step}.{number}" / path.name for number in itertools.count(2))
        return next(place for place in numbered if not os.path.lexists(place))

    def _changed(self, shard: ShardReport, place: Path) -> bool:
        try:
            sizes = {name: size for name, size, _ in signature(place)}
        except (FileNotFoundError, NotADirectoryError):
            return True
        return sizes != {file.name: file.bytes for file in shard.files}

    def _aside(self, step: int, path: Path) -> Path:
        return self._directory / "aside" / str(step) / path.name

    def _manifest(self, step: int) -> Path:
        return self._directory / f"step-{step}.json"

    def _write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        hidden = file.with_suffix(".new")
        hidden.write_text(text)
        hidden.replace(file)


def signature(path: Path) -> Signature:
    """The files of a checkpoint, which is a file itself or a directory.

    Raises:
        OSError: It is gone.
    """
    if not path.is_dir():
        stat = path.stat()
        return (("", stat.st_size, stat.st_mtime_ns),)
    return tuple(sorted(_entries(path)))


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    for directory, _, names in os.walk(path, onerror=_raise):
        for name in names:
            file = Path(directory, name)
            stat = file.stat()
            yield str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns


def _raise(error: OSError) -> None:
    raise error


def _changed_at(path: Path) -> float:
    """Unix seconds of the last change in a checkpoint; 0: it cannot be read."""
    try:
        own, files = path.stat().st_mtime, [ns / 1e9 for _, _, ns in signature(path)]
    except OSError:
        return 0.0
    return max(files, default=own)


def _fixed_part(pattern: str) -> Path:
    """The directory of a pattern in which nothing stands for anything else."""
    parts = Path(pattern).parts
    open_ = (i for i, part in enumerate(parts) if checkpoint_pattern.STEP in part or "*" in part)
    return Path(*parts[: next(open_, len(parts) - 1)])


def _file(path: Path, name: str) -> Path:
    return path / name if name else path


def _remove(path: Path) -> None:
    """Delete whatever is at a path; nothing there is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _patient() -> bool:
    return False


def _digest(file: Path, hurry: Callable[[], bool], media: set[str] | None = None) -> str:
    """The hash of a file; empty if it took too long.

    With `media` it is read from its medium, whose name is added.
    """
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size and media is not None:
            media.add(page_cache.drop(stream.fileno(), size))
        while chunk := stream.read(_CHUNK_BYTES):
            if hurry():
                return ""
            digest.update(chunk)
    return digest.hexdigest()
