"""The one import of the Python client: requests and watches as JSON, in threads.

The problem: the client blocks, has a class for each kind of object (which drops fields that it does
not know), and reads a token once a minute, or never.

The design: one function for requests and one for watches, on the client's transport and its
credentials; objects are JSON as the server wrote them. Requests run in a pool of threads of their
own, so that a server that hangs cannot keep the rest of the control plane from its threads. A
request that fails by an error that passes is tried again here: 429 after the time that the server
names, 5xx and lost connections after a pause, 401 once, with the credentials read again.

Limits: a POST whose answer was lost is tried again like the others, and the second try answers 409.
Callers take 409 as *there is one already*.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import threading
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog
import urllib3
from kubernetes import client, config

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.kubernetes.merge import Json

T = TypeVar("T")
_log = structlog.get_logger(__name__)
CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
PATIENCE_SECONDS = 5.0
"""For how long a request is tried again, unless the caller has more patience."""
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds between two tries; the last for ever."""
WATCH_SECONDS = 540
"""The server ends a watch after this; the next one continues where it ended."""
SILENT_SECONDS = 120.0
"""A watch that says nothing for this time is opened again. Most servers send a bookmark a minute;
that of 1.20 sends none on some watches of what does not change."""
THREADS = 16
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PATCH = "application/merge-patch+json"


class ApiError(ClusterError):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: HTTP status; 0: no answer came.
        reason: The server's word for it, such as `AlreadyExists`; empty: it gives none.
        retry_after: Seconds that the server asks to wait; 0: it does not say.
    """

    def __init__(
        self, message: str, *, status: int, reason: str = "", retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason
        self.retry_after = retry_after

    @property
    def passes(self) -> bool:
        """True if the same request may succeed later."""
        if self.status == 409:  # two writers met; an object of that name stays
            return self.reason == "Conflict"
        return self.status in {0, 429} or self.status >= 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """How the API server is found."""

    kubeconfig: Path | None = None
    context: str = ""
    namespace: str = ""


class Api:
    """The API server.

    Attributes:
        namespace: Where the objects of runs are.
        calls: Requests so far, by verb; a watch counts once for each connection.
    """

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access, self._clock = access, clock
        self.namespace, self._client = _connect(access)
        self.calls: dict[str, int] = {}
        self._counting = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kubernetes")

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> Json:
        """One request; errors that pass are tried again for `patience` seconds.

        Raises:
            ApiError: The server refuses it, or cannot be reached.
        """
        started, renewed = self._clock.monotonic(), False
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                return await self._in_thread(self._request, method, path, body, query or {})
            except ApiError as error:
                if error.status == 401 and not renewed:
                    renewed = True
                    await self._in_thread(self._renew)
                    continue
                wait = max(pause, error.retry_after)
                spent = self._clock.monotonic() - started + wait
                if not error.passes or spent > patience:
                    raise
                _log.info("API request fails, will retry", path=path, error=str(error))
                await self._clock.sleep(wait)
        raise AssertionError("unreachable")

    async def watch(
        self, path: str, version: str, query: Mapping[str, str | int]
    ) -> AsyncGenerator[Json]:
        """Events of a collection after a resource version, until the server ends the connection.

        A connection that says nothing for `SILENT_SECONDS` is over as well. If its network is dead,
        it shows in the next one.

        Raises:
            ApiError: The watch cannot be opened, or broke off. Status 410: the version is too old.
        """
        self._count("WATCH")
        stream = _Stream(asyncio.get_running_loop())
        asked = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": WATCH_SECONDS,
        }
        thread = threading.Thread(
            target=stream.read, args=(lambda: self._open(path, asked),), daemon=True
        )
        thread.start()
        try:
            async for line in stream.lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _of_status(event["object"], f"watch {path}")
                yield event
        except urllib3.exceptions.ReadTimeoutError:
            return
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"watch {path}: {_words(error)}", status=0) from error
        finally:
            stream.close()

    async def close(self) -> None:
        """Release the threads. Requests under way are waited for no longer."""
        self._threads.shutdown(wait=False)
        self._client.rest_client.pool_manager.clear()

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            found = loop.run_in_executor(self._threads, functools.partial(work, *arguments))
        except RuntimeError as error:
            raise ApiError("Kubernetes: the cluster is closed", status=499) from error
        return await found

    def _count(self, verb: str) -> None:
        with self._counting:
            self.calls[verb] = self.calls.get(verb, 0) + 1

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str | int],
    ) -> Json:
        self._count(method)
        what = f"{method} {path}"
        with _explained(what):
            response = self._call(method, path, body, query, READ_SECONDS)
            answer = response.data
        if not 200 <= response.status < 300:
            raise _of_answer(response.status, answer, response.headers.get("Retry-After", ""), what)
        made: Json = json.loads(answer or b"{}")
        return made

    def _open(self, path: str, query: Mapping[str, str | int]) -> urllib3.BaseHTTPResponse:
        what = f"watch {path}"
        with _explained(what):
            response = self._call("GET", path, None, query, SILENT_SECONDS)
            if response.status == 200:
                return response
            answer = response.data
        if response.status == 401:
            self._renew()  # the next connection has the new credentials
        raise _of_answer(response.status, answer, response.headers.get("Retry-After", ""), what)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str | int],
        read_seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        api = self._client
        headers = {
            "Accept": "application/json",
            "Content-Type": _PATCH if method == "PATCH" else "application/json",
        }
        api.update_params_for_auth(headers, [], ["BearerToken"])
        response: urllib3.BaseHTTPResponse = api.rest_client.pool_manager.request(
            method,
            f"{api.configuration.host}{path}{'?' if query else ''}{urllib.parse.urlencode(query)}",
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            preload_content=False,
            retries=False,  # decided here, where the clock is
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
        )
        return response

    def _renew(self) -> None:
        """Read the credentials again: a token of a service account lives for an hour or so."""
        _log.info("credentials are read again")
        _, self._client = _connect(self._access)


class _Stream:
    """Lines of a response that a thread reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._closed = False

    def read(self, connect: Callable[[], urllib3.BaseHTTPResponse]) -> None:
        """Read until the end, in a thread; the last item is an error or None."""
        last: Exception | None = None
        try:
            self._response = response = connect()
            with contextlib.closing(response):
                if self._closed:
                    response.close()
                for line in _lines(response):
                    self._put(line)
        except Exception as error:  # noqa: BLE001 - it is raised where the lines are read
            last = error
        self._put(last)

    def _put(self, item: bytes | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines as they come."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        """Have the thread end."""
        self._closed = True
        if self._response is not None:
            # urllib3 before 2.3 cannot: then the thread ends with the next bookmark.
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
                self._response.shutdown()


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError, config.ConfigException) as error:
        raise ApiError(
            f"Kubernetes: {what}: {_words(error)}. Check that the API server runs and can be"
            " reached",
            status=0,
        ) from error


def _of_answer(code: int, answer: bytes, wait: str, what: str) -> ApiError:
    try:
        said = json.loads(answer or b"{}")
    except ValueError:  # a proxy's page
        said = {}
    said = said if isinstance(said, dict) else {}
    return _of_status({**said, "code": code}, what, float(wait) if wait.isdigit() else 0.0)


def _of_status(status: Mapping[str, Any], what: str, wait: float = 0.0) -> ApiError:
    code, said = int(status.get("code") or 0), str(status.get("message", "no message"))
    hint = ""
    if code == 401:
        hint = ". Check the token of the service account, or the kubeconfig"
    elif code == 403 and " cannot " in said:  # the other 403s are of quotas and of admission
        hint = ". Grant it in the Role or ClusterRole of babysit's service account"
    message = f"Kubernetes: {what}: {code} {said}{hint}"
    reason = str(status.get("reason", ""))
    return ApiError(message, status=code, reason=reason, retry_after=wait)


def _words(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _connect(access: Access) -> tuple[str, Any]:
    """The namespace and the client.

    Raises:
        ClusterError: There is no configuration, or it is wrong.
    """
    made = client.Configuration()
    namespace = ""
    try:
        if access.kubeconfig is None and not access.context and _NAMESPACE.exists():
            config.load_incluster_config(client_configuration=made)
            namespace = _NAMESPACE.read_text().strip()
        else:
            path = None if access.kubeconfig is None else str(access.kubeconfig.expanduser())
            context = access.context or None
            config.load_kube_config(path, context=context, client_configuration=made)
            _, current = config.list_kube_config_contexts(path)
            named = [each for each in _contexts(path) if each["name"] == context] or [current]
            namespace = named[0]["context"].get("namespace", "")
    except (config.ConfigException, OSError, KeyError, TypeError) as error:
        raise ClusterError(
            f"no access to Kubernetes: {_words(error)}. Run inside a Pod with a service account, or"
            " set BABYSIT_KUBERNETES_KUBECONFIG and BABYSIT_KUBERNETES_CONTEXT"
        ) from error
    made.connection_pool_maxsize = 2 * THREADS
    return access.namespace or namespace or "default", client.ApiClient(made)


def _contexts(path: str | None) -> list[Any]:
    contexts, _ = config.list_kube_config_contexts(path)
    return list(contexts)
