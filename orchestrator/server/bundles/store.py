"""The bundle store: the code of runs by its sha256, verified on arrival and on reading.

The design: a bundle is a file `<sha256>.tar` in the `bundles` directory of the home. Where the
setting `bundles` names a URL, that store has every bundle, and the home has copies of those that
this server has used. Without it, servers on PostgreSQL keep small bundles in the run database
likewise, since the home of a Pod is lost with the Pod.

An arriving bundle goes to a part file and gets its name only when its hash is right, so a reader
never sees half of one. A file whose content no longer has its hash is moved aside, and counts as
missing: the next `submit` of the same code uploads it again.

Limits: a bundle is hashed once for each change of its file, not for each agent that reads it.
Agents check the hash of what they get.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import structlog
from starlette.concurrency import run_in_threadpool

from jobs.clock import Clock
from orchestrator.database.bundle_parts import SqlBundles
from orchestrator.errors import InvalidError, NotFoundError, TemporaryError, TooLargeError
from orchestrator.server.bundles.in_database import (
    MOST_BYTES,
    MOST_BYTES_OF_ALL,
    DatabaseStore,
)
from orchestrator.server.bundles.remote import RemoteStore, Stored
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
_BLOCK = 2**20
_PART_SECONDS = 3600.0
"""Age from which on the file of an upload is one that nobody continues."""


class _DamagedError(TemporaryError):
    """A bundle came from the shared store with another hash: the next try may go well."""


class BundleStore:
    """Bundles by id. For one server; several share bundles through the URL of the settings."""

    def __init__(
        self, settings: Settings, clock: Clock, in_database: SqlBundles | None = None
    ) -> None:
        self.limit = settings.bundle_bytes
        """Most bytes of a bundle."""
        self.most = settings.retention_bytes
        """Bytes above which bundles of ended runs go early."""
        self._directory = settings.home / "bundles"
        self._shared: RemoteStore | DatabaseStore | None = None
        if settings.bundles:
            self._shared = RemoteStore(settings.bundles)
        elif settings.database_url and in_database is not None:
            self._shared = DatabaseStore(in_database, clock)
            self.most = min(self.most, MOST_BYTES_OF_ALL)
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One for each bundle in use: of a thousand agents that ask at once, one causes a copy from
        the shared store."""
        self._verified: dict[str, tuple[int, int, int]] = {}
        """Bundles whose hash is right, each with the marks of the file that was read."""

    async def has(self, bundle: str) -> bool:
        """True if a bundle is there and whole, also for other servers; it counts as used now.

        Raises:
            TemporaryError: The store does not answer.
        """
        try:
            async with self._locks.setdefault(bundle, asyncio.Lock()):
                await run_in_threadpool(self._share, bundle)
        except (NotFoundError, _DamagedError):
            return False
        return True

    def risk(self, bundle: str) -> str | None:
        """A sentence if a bundle would be lost with the home of this server, else None."""
        if not isinstance(self._shared, DatabaseStore):
            return None
        with contextlib.suppress(OSError):
            if self._path(bundle).stat().st_size <= MOST_BYTES:
                return None
        return (
            f"its code is larger than {MOST_BYTES // 2**20} MiB, so it is in the home of one server"
            " alone: if that is lost, the run cannot restart. List in .babysitignore what the run"
            " does not need, or set BABYSIT_BUNDLES of the servers (bundles.url of the Helm chart)"
        )

    async def file(self, bundle: str) -> Path:
        """The file of a bundle, whose content was verified; it counts as used now.

        Raises:
            NotFoundError: The store does not have it, or has it damaged.
            TemporaryError: The store does not answer.
        """
        async with self._locks.setdefault(bundle, asyncio.Lock()):
            return await run_in_threadpool(self._file, bundle)

    async def receive(self, bundle: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a bundle as it arrives; its size in bytes.

        Raises:
            TooLargeError: It is larger than the limit; reading stops there.
            InvalidError: Its content has another hash than its id says.
            TemporaryError: There is no room, or the store does not answer.
        """
        part = self._directory / f".{bundle}.{secrets.token_hex(8)}.part"
        try:
            with self._explained():
                await run_in_threadpool(self._directory.mkdir, 0o700, parents=True, exist_ok=True)
                size, digest = await self._spool(part, chunks)
            if digest != bundle:
                raise InvalidError(
                    f"the bundle arrived with the sha256 {digest}, and not with that of its id,"
                    f" {bundle}: upload it again"
                )
            if self._shared is not None:
                await run_in_threadpool(self._shared.put, bundle, part)
            with self._explained():
                await run_in_threadpool(self._take_in, part, bundle)
        finally:
            with contextlib.suppress(OSError):  # not in a thread: it must be done when cancelled
                part.unlink()
        return size

    async def all(self) -> list[Stored]:
        """Every bundle of this store and of the copies at home."""
        return await run_in_threadpool(self._all)

    async def remove(self, bundle: str) -> None:
        """Delete a bundle everywhere, if it is there."""
        await run_in_threadpool(self._remove, bundle)

    async def remove_parts(self) -> None:
        """Delete what uploads left behind that were never ended."""
        await run_in_threadpool(self._remove_parts)

    # --- in threads -----------------------------------------------------------------------------

    async def _spool(self, part: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
        """Write chunks to a file; their size and hash. Threads do the work of large blocks."""
        sha256, size, block = hashlib.sha256(), 0, bytearray()

        def flush(data: bytes) -> None:
            sha256.update(data)
            file.write(data)

        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > self.limit:
                    raise TooLargeError(
                        f"a bundle may have {self.limit:,} bytes at most (BABYSIT_BUNDLE_BYTES of"
                        " the server): list in .babysitignore what the run does not need"
                    )
                block += chunk
                if len(block) >= _BLOCK:
                    await run_in_threadpool(flush, bytes(block))
                    block.clear()
            await run_in_threadpool(flush, bytes(block))
            file.flush()
            await run_in_threadpool(os.fsync, file.fileno())
        return size, sha256.hexdigest()

    def _take_in(self, part: Path, bundle: str) -> None:
        path = self._path(bundle)
        part.replace(path)
        _sync_directory(self._directory)
        self._verified[bundle] = _marks(path)

    def _file(self, bundle: str) -> Path:
        path = self._path(bundle)
        with self._explained():
            if not self._is_whole(bundle, path) and not self._copied(bundle):
                raise NotFoundError(
                    f"the bundle {bundle} is not in the store {self._where}: submit its code again"
                )
            with contextlib.suppress(OSError):  # on a read-only disk it is old, and there
                now = self._clock.now().timestamp()
                os.utime(path, (now, now))
            self._verified[bundle] = _marks(path)
        return path

    def _share(self, bundle: str) -> None:
        """Put a bundle that is at home into the shared store, if that lost it or is new.

        Raises:
            NotFoundError: It is not at home either.
        """
        path = self._file(bundle)
        if self._shared is not None and not self._shared.has(bundle):
            self._shared.put(bundle, path)

    def _is_whole(self, bundle: str, path: Path) -> bool:
        try:
            marks = _marks(path)
        except FileNotFoundError:
            return False
        if self._verified.get(bundle) == marks:
            return True
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == bundle:
            return True
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        _log.error("a bundle is damaged and counts as missing", bundle=bundle, moved_to=str(aside))
        return False

    def _copied(self, bundle: str) -> bool:
        """Copy a bundle from the shared store; False: it is not there.

        Raises:
            _DamagedError: It is not whole.
        """
        if self._shared is None:
            return False
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._directory / f".{bundle}.{secrets.token_hex(8)}.part"
        try:
            if not self._shared.get(bundle, part):
                return False
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != bundle:
                # Not deleted: it may be the only copy, and the fault that of the way here.
                raise _DamagedError(
                    f"the bundle {bundle} arrived damaged from the store {self._where}: its sha256"
                    f" is {found}. If it stays so, submit its code again"
                )
            self._take_in(part, bundle)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _all(self) -> list[Stored]:
        found = {each.id: each for each in (self._shared.all() if self._shared else ())}
        for path in self._directory.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                shared = found.get(path.stem, Stored(path.stem, 0, 0.0))
                changed = max(shared.changed, status.st_mtime)
                found[path.stem] = Stored(path.stem, status.st_size, changed)
        return list(found.values())

    def _remove(self, bundle: str) -> None:
        if self._shared is not None:
            self._shared.remove(bundle)
        with self._explained():
            self._path(bundle).unlink(missing_ok=True)
        self._verified.pop(bundle, None)

    def _remove_parts(self) -> None:
        old = self._clock.now().timestamp() - _PART_SECONDS
        for path in (*self._directory.glob(".*.part"), *self._directory.glob("*.damaged")):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < old:
                    path.unlink()

    def _path(self, bundle: str) -> Path:
        return self._directory / f"{bundle}.tar"

    @property
    def _where(self) -> str:
        if isinstance(self._shared, RemoteStore):
            return "that BABYSIT_BUNDLES names"
        return f"of {self._directory}" + (" or the run database" if self._shared else "")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TemporaryError(
                f"the bundle store {self._directory} cannot be used: {error.strerror or error};"
                " nothing was submitted"
            ) from error


def _marks(path: Path) -> tuple[int, int, int]:
    """Marks that change when a file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
