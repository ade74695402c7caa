"""A rank's shard of a checkpoint on disk: files, hashes, and a manifest that is written last.

`<root>/step-000000020/rank-00001/{files…, manifest.json}`. A shard is made in a hidden sibling and
renamed into place, so a rank directory either is whole or is not there. Standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from babysit.errors import ShardRefusedError, ShardUnreadableError
from babysit.wire import MANIFEST_FILE, Tier, rank_directory, step_directory

_HASH_BYTES = 16
_STEP_NAME = re.compile(r"step-(\d{9,})")


@dataclasses.dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of a shard."""

    name: str
    """Relative to the rank's directory, with `/`."""
    bytes: int
    blake2b: str
    """Hex digest, 16 bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says: the fields of the agent's shard report, and who wrote it."""

    step: int
    rank: int
    world_size: int
    tier: Tier
    path: str
    """The checkpoint's directory (not the rank's)."""
    batch: int
    files: tuple[ShardFile, ...] = ()
    copy_seconds: float = 0.0
    write_seconds: float = 0.0
    attempt: int = 0
    """Shards of one step may stem from different attempts, before and after a rollback; they do not
    mix."""
    run: str = ""
    """Whose it is: two runs may have been given one directory. Empty: of a stand-alone run, or from
    before manifests said so."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The manifest of a rank's directory.

        Raises:
            ShardUnreadableError: There is none, or it cannot be read.
            ShardRefusedError: It is no manifest.
        """
        try:
            raw = json.loads((directory / MANIFEST_FILE).read_bytes())
            files = tuple(ShardFile(**entry) for entry in raw.pop("files"))
            return cls(**{**raw, "tier": Tier(raw["tier"])}, files=files)
        except FileNotFoundError:
            raise ShardUnreadableError(
                f"{directory}: no manifest, so the shard is not whole"
            ) from None
        except OSError as error:
            raise ShardUnreadableError(f"{directory / MANIFEST_FILE}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardRefusedError(f"{directory / MANIFEST_FILE}: unreadable: {error}") from error


class ShardWriter:
    """Writes the files of one shard and hashes them."""

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self.manifest = manifest
        self.directory = directory
        self._durable = manifest.tier is Tier.DIRECTORY
        self._files: list[ShardFile] = []
        self._begun = time.perf_counter()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one file; on a durable tier it is flushed to the disk.

        Raises:
            OSError: The disk is full, gone or read-only.
        """
        self._write(name, data)
        self._files.append(ShardFile(name, len(data), _blake2b(data).hexdigest()))

    def adopt(self, source: Path) -> None:
        """Take over every file that another program wrote into `source`.

        Raises:
            OSError: As :meth:`write`.
        """
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            name = path.relative_to(source).as_posix()
            target = self.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(path)
            except OSError:  # another file system
                shutil.copyfile(path, target)
            if self._durable:
                _sync(target)
            self._files.append(ShardFile(name, target.stat().st_size, _digest(target)))

    def seal(self) -> None:
        """Write the manifest, last."""
        seconds = time.perf_counter() - self._begun
        self.manifest = dataclasses.replace(
            self.manifest, files=tuple(self._files), write_seconds=seconds
        )
        self._write(MANIFEST_FILE, json.dumps(self.manifest.to_json()).encode())

    def _write(self, name: str, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with (self.directory / name).open("wb", buffering=0) as file:
            while view:
                view = view[file.write(view) :]
            if self._durable:
                os.fsync(file.fileno())


Content = Callable[[ShardWriter], None]
"""Writes a staged state into a shard; called once for each tier."""


@contextlib.contextmanager
def writing(manifest: Manifest) -> Iterator[ShardWriter]:
    """A hidden directory to write a shard into; at a clean exit it is sealed and put in place.

    Raises:
        OSError: As :meth:`ShardWriter.write`, or a later attempt has saved there since. Nothing is
            left behind.
    """
    final = rank_directory(manifest.path, manifest.rank)
    for leftover in final.parent.glob(f".{final.name}.*"):  # of a writer that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    hidden = hidden_directory(final)
    hidden.mkdir(parents=True)
    writer = ShardWriter(manifest, hidden)
    try:
        yield writer
        writer.seal()
        _refuse_if_overtaken(manifest, final)
        _put_in_place(hidden, final, durable=manifest.tier is Tier.DIRECTORY)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def hidden_directory(final: Path) -> Path:
    """A name beside `final` that nobody takes for a shard."""
    return final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}"


def _refuse_if_overtaken(manifest: Manifest, final: Path) -> None:
    """A fenced attempt may live on: what it saves must not take the place of a later one's shard.

    Attempts are numbered within a run; stand-alone runs, and other runs', do not compare.
    """
    try:
        there = Manifest.read(final)
    except ShardRefusedError:
        return
    if manifest.run and manifest.run == there.run and manifest.attempt < there.attempt:
        raise FileExistsError(
            f"attempt {there.attempt} has saved there since, and this is attempt {manifest.attempt}"
        )


def _put_in_place(hidden: Path, final: Path, *, durable: bool) -> None:
    if final.exists():  # of an attempt before a rollback
        old = hidden_directory(final)
        final.rename(old)
        shutil.rmtree(old)
    if durable:
        _sync(hidden)
    hidden.rename(final)
    if durable:
        _sync(final.parent)
        _sync(final.parent.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(manifest: Manifest, directory: Path) -> None:
    """Read a shard back.

    Raises:
        ShardUnreadableError: A file is missing, or cannot be read.
        ShardRefusedError: A file is of another size, or of other content.
    """
    for file in manifest.files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise ShardRefusedError(f"{path}: {size} bytes, and {file.bytes} were written")
            if _digest(path) != file.blake2b:
                raise ShardRefusedError(f"{path}: the content is not what was written (blake2b)")
        except OSError as error:
            raise ShardUnreadableError(f"{path}: {error.strerror}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _blake2b(data: bytes | memoryview = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES)


def steps_in(root: Path) -> list[int]:
    """Steps that have a directory under `root`, newest first."""
    try:
        names = [path.name for path in root.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(m[1]) for n in names if (m := _STEP_NAME.fullmatch(n))), reverse=True)


def prune(root: Path, rank: int, keep: int) -> None:
    """Remove all but the newest `keep` shards of a rank, and its unfinished ones below those."""
    whole = [s for s in steps_in(root) if _is_whole(root, s, rank)]
    if len(whole) >= keep > 0:
        remove(root, rank, (s for s in steps_in(root) if s < whole[keep - 1]))


def remove(root: Path, rank: int, steps: Iterable[int]) -> None:
    """Remove a rank's shards of these steps; the manifest goes first."""
    for step in steps:
        checkpoint = step_directory(root, step)
        final = rank_directory(checkpoint, rank)
        (final / MANIFEST_FILE).unlink(missing_ok=True)
        for path in (final, *checkpoint.glob(f".{final.name}.*")):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # another rank's shard is still there
            checkpoint.rmdir()


def _is_whole(root: Path, step: int, rank: int) -> bool:
    return (rank_directory(step_directory(root, step), rank) / MANIFEST_FILE).exists()
