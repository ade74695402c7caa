"""A rank's shard of a checkpoint on disk: files, hashes, and a manifest that is written last.

`<root>/step-000000020/rank-00001/{files…, manifest.json}`. A shard is written to a hidden sibling
and renamed into place, so a rank directory is either complete or absent. Standard library only.
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
    """Path relative to the rank's directory, with `/`."""
    bytes: int
    blake2b: str
    """Hex digest, 16 bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`: the fields of the agent's shard report, and the writer."""

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
    """The attempt that wrote it; shards of different attempts do not belong together."""
    run: str = ""
    """The run that wrote it: two runs may share a directory by mistake.

    Empty: a stand-alone run, or a version that did not record it.
    """

    @property
    def writer(self) -> str:
        """The run and attempt, in names of what is not whole yet."""
        return f"{self.run}.{self.attempt}"

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the manifest of a rank's directory.

        Raises:
            ShardUnreadableError: There is none, or it cannot be read.
            ShardRefusedError: The file is not a valid manifest.
        """
        try:
            raw = json.loads((directory / MANIFEST_FILE).read_bytes())
            files = tuple(ShardFile(**entry) for entry in raw.pop("files"))
            return cls(**{**raw, "tier": Tier(raw["tier"])}, files=files)
        except FileNotFoundError:
            raise ShardUnreadableError(
                f"{directory}: no manifest, so the shard is incomplete"
            ) from None
        except OSError as error:
            raise ShardUnreadableError(f"{directory / MANIFEST_FILE}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardRefusedError(
                f"{directory / MANIFEST_FILE}: not a valid manifest: {error}"
            ) from error


class ShardWriter:
    """Writes and hashes the files of one shard."""

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self.manifest = manifest
        self.directory = directory
        self._durable = manifest.tier is Tier.DIRECTORY
        self._files: list[ShardFile] = []
        self._begun = time.perf_counter()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one file; on the directory tier it is flushed to disk.

        Raises:
            OSError: The disk is full, gone or read-only.
        """
        self._write(name, data)
        self._files.append(ShardFile(name, len(data), _blake2b(data).hexdigest()))

    def adopt(self, source: Path) -> None:
        """Add all files that another program wrote to `source`, by hard link or copy.

        Raises:
            OSError: The disk is full, gone or read-only.
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
        if self._durable:
            for folder in {target for target in self.directory.rglob("*") if target.is_dir()}:
                _sync(folder)

    def seal(self) -> None:
        """Write the manifest, which must be the last file.

        Raises:
            OSError: The disk is full, gone or read-only.
        """
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
"""Writes a staged state into a shard; called once per tier."""


@contextlib.contextmanager
def writing(manifest: Manifest) -> Iterator[ShardWriter]:
    """Open a hidden directory for a shard; on success, seal it and move it into place.

    Raises:
        OSError: A write failed, or a later attempt has saved there since. No file is left behind.
    """
    final = rank_directory(manifest.path, manifest.rank)
    for leftover in final.parent.glob(f".{final.name}.*"):  # left by a killed writer
        shutil.rmtree(leftover, ignore_errors=True)
    hidden = hidden_directory(final, manifest.writer)
    hidden.mkdir(parents=True)
    writer = ShardWriter(manifest, hidden)
    try:
        yield writer
        writer.seal()
        _refuse_if_overtaken(manifest, final)
        _put_in_place(hidden, final, manifest)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def hidden_directory(final: Path, writer: str) -> Path:
    """A name beside `final` that is never mistaken for a shard, with its writer: `run.attempt`."""
    return final.parent / f".{final.name}.{writer}.{uuid.uuid4().hex[:8]}"


def staging_directory(root: Path, rank: int, writer: str) -> Path:
    """Where a framework writes a rank's state before it becomes a shard, with its writer."""
    return root / f".staging-{rank:05d}.{writer}"


def _refuse_if_overtaken(manifest: Manifest, final: Path) -> None:
    """Refuse to replace a shard of a later attempt: a fenced attempt may still be running.

    Only attempts of the same run compare; other runs and stand-alone runs have their own numbers.
    """
    try:
        later = Manifest.read(final)
    except ShardRefusedError:
        return
    if manifest.run and manifest.run == later.run and manifest.attempt < later.attempt:
        raise FileExistsError(
            f"attempt {later.attempt} has saved there since; this is attempt {manifest.attempt}"
        )


def _put_in_place(hidden: Path, final: Path, manifest: Manifest) -> None:
    durable = manifest.tier is Tier.DIRECTORY
    if final.exists():  # from an attempt before a rollback
        old = hidden_directory(final, manifest.writer)
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
    """Read a shard and compare it with its manifest.

    Raises:
        ShardUnreadableError: A file is missing or cannot be read.
        ShardRefusedError: The size or the content of a file differs.
    """
    for file in manifest.files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise ShardRefusedError(f"{path}: expected {file.bytes} bytes, found {size}")
            if _digest(path) != file.blake2b:
                raise ShardRefusedError(
                    f"{path}: the content differs from what was written (blake2b)"
                )
        except OSError as error:
            raise ShardUnreadableError(f"{path}: {error.strerror}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def _blake2b(data: bytes | memoryview = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES)


def steps_in(root: Path) -> list[int]:
    """Steps that have a directory under `root`, newest first; empty if there is no `root`."""
    try:
        names = [path.name for path in root.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((int(m[1]) for n in names if (m := _STEP_NAME.fullmatch(n))), reverse=True)


def prune(root: Path, rank: int, keep: int) -> None:
    """Delete all but the newest `keep` shards of a rank, and incomplete ones older than those."""
    whole = [s for s in steps_in(root) if _is_whole(root, s, rank)]
    if len(whole) >= keep > 0:
        remove(root, rank, (s for s in steps_in(root) if s < whole[keep - 1]))


def prune_but(root: Path, rank: int, kept: Callable[[list[int]], set[int]]) -> None:
    """Delete the shards of a rank that `kept` does not name of the whole ones."""
    steps = steps_in(root)
    whole = [s for s in steps if _is_whole(root, s, rank)]
    keep = kept(whole)
    if whole:
        remove(root, rank, (s for s in steps if s < max(whole) and s not in keep))


def remove(root: Path, rank: int, steps: Iterable[int]) -> None:
    """Delete a rank's shards of these steps, manifests first. Errors are ignored."""
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
