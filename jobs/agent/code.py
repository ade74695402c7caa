"""Gets the code of a run onto its node: fetched with the worker's own token, verified, unpacked.

A server that is away, or restarts, is asked again. What no further try can mend ends the run: a
bundle that the control plane does not have, or a workdir that the image does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import ssl
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from jobs.agent.errors import NoCodeError
from jobs.clock import Clock
from jobs.config import AgentConfig

GIVE_UP_SECONDS = 180.0
"""How long a bundle is asked for. The control plane waits 300 s for a worker that it launched; the
rest is for unpacking and the fork server's imports."""
_SOCKET_SECONDS = 30.0
"""A server that sends nothing for this time is asked again."""
_BACKOFF_SECONDS = (0.5, 10.0)
_BLOCK = 2**20
_PATIENT = {http.client.TOO_MANY_REQUESTS, *range(500, 600)}
"""Statuses that may be others a moment later."""


class _TryAgainError(Exception):
    """The bundle could not be fetched this time."""


class _RefusedError(Exception):
    """The server has said no: another server may say yes, and this one will not."""


class Code:
    """The code of one worker's run.

    Args:
        config: The worker.
        urls: The URLs at which agents reach servers that may lead, likeliest first.
        clock: For pauses.
        chance: For their length.
    """

    def __init__(
        self,
        config: AgentConfig,
        urls: Callable[[], Sequence[str]],
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self._config, self._urls, self._clock, self._chance = config, urls, clock, chance
        self._log = structlog.get_logger(part="code")

    async def provide(self) -> Path:
        """The workdir of the ranks, with the code of the run in it.

        Raises:
            NoCodeError: There is none, and why.
        """
        workdir = self._config.spec.workdir
        if self._config.bundle is None:
            if workdir.startswith("/"):
                return Path(workdir)
            return await asyncio.to_thread(_in_image, workdir)
        place = self._config.directory / "code"
        bundle = self._config.directory / "code.tar"
        await self._fetch(self._config.bundle, bundle)
        try:
            await asyncio.to_thread(unpack, bundle, place)
        except (OSError, tarfile.TarError) as error:
            raise NoCodeError(f"the code of the run cannot be unpacked: {error}") from error
        finally:
            bundle.unlink(missing_ok=True)
        return place

    async def _fetch(self, bundle: str, file: Path) -> None:
        """Fetch a bundle into a file, from whichever server has it.

        Raises:
            NoCodeError: All servers refuse, or none gives it in :data:`GIVE_UP_SECONDS`.
        """
        until = self._clock.monotonic() + GIVE_UP_SECONDS
        refusals: dict[str, str] = {}
        tries, why = 0, "no server is known"
        while True:
            known = [*dict.fromkeys(self._urls())]
            url = known[tries % len(known)] if known else ""
            tries += 1
            try:
                if url:
                    await self._download(url, bundle, file)
                    return
            except _RefusedError as error:
                why = refusals[url] = str(error)
            except _TryAgainError as error:
                why = str(error)
                refusals.pop(url, None)
            if known and refusals.keys() >= set(known) and tries > 2 * len(known):
                raise NoCodeError(f"no server gives the code of the run: {why}", final=True)
            if self._clock.monotonic() >= until:
                raise NoCodeError(
                    f"the code of the run could not be fetched in {GIVE_UP_SECONDS:.0f} s,"
                    f" {tries} tries: {why}"
                )
            if tries & (tries - 1) == 0:
                self._log.warning("bundle not fetched, will retry", tries=tries, reason=why)
            await self._clock.sleep(self._pause(tries))

    def _pause(self, tries: int) -> float:
        """Full jitter: the agents of a large run must not come back together."""
        least, most = _BACKOFF_SECONDS
        return self._chance.uniform(least, min(most, least * 2 ** min(tries, 10)))

    async def _download(self, url: str, bundle: str, file: Path) -> None:
        """Ask one server, in a thread that ends soon after this is cancelled."""
        cancelled = threading.Event()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def work() -> None:
            error: Exception | None = None
            try:
                download(url, bundle, self._config, file, cancelled=cancelled)
            except Exception as raised:  # noqa: BLE001 (it is raised where it is awaited)
                error = raised
            with contextlib.suppress(RuntimeError):  # the agent has ended meanwhile
                ended.get_loop().call_soon_threadsafe(_settle, ended, error)

        # A daemon: the agent ends at once, whatever a server is slow with.
        threading.Thread(target=work, name="bundle", daemon=True).start()
        try:
            await ended
        finally:
            cancelled.set()


def _settle(ended: asyncio.Future[None], error: Exception | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


def _in_image(workdir: str) -> Path:
    """A directory that is relative to that of the agent, the WORKDIR of the image."""
    found = Path(os.path.normpath(Path.cwd() / workdir))
    if not found.is_dir():
        raise NoCodeError(f"the workdir {found} is not in the image", final=True)
    return found


def bundle_url(url: str, bundle: str) -> str:
    """The URL of a bundle at a server, from that of its agents' endpoint.

    Raises:
        ValueError: It is not a URL of `ws:` or `wss:`.
    """
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(f"expected a URL such as wss://host:port/agent, got {url}")
    return parts._replace(scheme=scheme, path=f"{parts.path.rstrip('/')}/bundles/{bundle}").geturl()


def download(
    url: str, bundle: str, config: AgentConfig, file: Path, *, cancelled: threading.Event
) -> None:
    """Fetch a bundle once, and check its hash. The token goes out when the server is verified.

    Raises:
        _TryAgainError, _RefusedError: It is not fetched, and why.
    """
    headers = {"Authorization": f"Bearer {config.token}"}
    try:
        where = urlsplit(bundle_url(url, bundle))
        with contextlib.closing(_connect(where.scheme, where.netloc, config.ca)) as connection:
            connection.request("GET", where.path, headers=headers)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise _failure(answer, where.netloc)
            found = _copy(answer, file, cancelled)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _TryAgainError(f"{url}: {error or type(error).__name__}") from error
    if found != bundle:
        raise _TryAgainError(f"{where.netloc} sent a damaged bundle: its sha256 is {found}")


def _connect(scheme: str, netloc: str, ca: Path | None) -> http.client.HTTPConnection:
    if scheme == "https":
        context = ssl.create_default_context(cafile=ca)
        return http.client.HTTPSConnection(netloc, timeout=_SOCKET_SECONDS, context=context)
    return http.client.HTTPConnection(netloc, timeout=_SOCKET_SECONDS)


def _failure(answer: http.client.HTTPResponse, netloc: str) -> Exception:
    try:
        message = str(json.loads(answer.read(2**16))["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = answer.reason
    said = f"{netloc} answered {answer.status}: {message}"
    return _TryAgainError(said) if answer.status in _PATIENT else _RefusedError(said)


def _copy(answer: http.client.HTTPResponse, file: Path, cancelled: threading.Event) -> str:
    sha256 = hashlib.sha256()
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy:
        while data := answer.read(_BLOCK):
            if cancelled.is_set():
                raise OSError("cancelled")
            sha256.update(data)
            copy.write(data)
    return sha256.hexdigest()


def unpack(bundle: Path, place: Path) -> None:
    """Unpack a bundle; nothing of it lies outside of the directory, whatever its names say.

    Raises:
        OSError, tarfile.TarError: It cannot be.
    """
    if not hasattr(tarfile, "data_filter"):  # it came with Python 3.11.4
        raise OSError("the Python of the image is too old to unpack it safely: use 3.11.4 or newer")
    fresh = place.with_name(f"{place.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    with tarfile.open(bundle, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        tar.extractall(fresh, members=_members(tar), filter="data")
    fresh.rename(place)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members one by one, so that a tar of many files takes little memory."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
