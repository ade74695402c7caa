"""The agent's end of the standby interpreter: start it, have it fork ranks, hear of their ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import structlog

from babysit import wire
from jobs.agent import fork_server, reaper
from jobs.agent.errors import LaunchError, StandbyLostError
from jobs.config import AgentConfig

_SECRETS = ("BABYSIT_TOKEN", "BABYSIT_DATABASE_URL")
"""Of the control plane; training has no use for them."""


class Listener(Protocol):
    """Who is told about processes. Called on the event loop."""

    def rank_started(self, key: str, pid: int) -> None:
        """The rank was forked."""

    def rank_exited(self, key: str, code: int) -> None:
        """The rank's process was reaped; its group was killed. Negative code: that signal."""

    def standby_lost(self, *, was_warm: bool) -> None:
        """The standby ended by itself; its ranks are dying with it. Start another."""


def standby_environment(config: AgentConfig, base: dict[str, str]) -> dict[str, str]:
    """The environment common to all ranks of a worker.

    The user's `PYTHONPATH` goes before the agent's own. Threads are limited to one a process unless
    the spec says otherwise, as torchrun does: ranks that each start a thread per core slow each
    other down.
    """
    own = {name: value for name, value in base.items() if name not in _SECRETS}
    environment = {"OMP_NUM_THREADS": "1", **own, **config.spec.env}
    paths = (config.spec.env.get("PYTHONPATH"), base.get("PYTHONPATH"))
    if joined := os.pathsep.join(path for path in paths if path):
        environment["PYTHONPATH"] = joined
    environment.update({reaper.ENV_WORKER: config.worker, "BABYSIT_RUN": config.run})
    environment.pop(wire.ENV_RANK_DIR, None)
    return environment


class Launcher:
    """One standby interpreter, replaced when it is lost."""

    def __init__(self, config: AgentConfig, listener: Listener) -> None:
        self._config = config
        self._listener = listener
        self._log = structlog.get_logger(part="standby")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._pending: dict[str, asyncio.Future[int]] = {}
        self._preload = list(config.spec.preload)
        self.ready = asyncio.Event()
        """Set while the standby is warm."""

    @property
    def pid(self) -> int:
        """Process id of the standby; 0 when there is none."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start a standby; `ready` is set when it has imported what it should."""
        config = self._config
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs, (config.directory / "standby.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", fork_server.__file__, str(theirs.fileno())],
                env=standby_environment(config, dict(os.environ)),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._receive)
        spec = config.spec
        prepare = {"command": spec.command, "workdir": spec.workdir, "preload": self._preload}
        ours.send(json.dumps({"prepare": prepare}).encode())

    async def launch(self, key: str, environment: dict[str, str], log: Path) -> int:
        """Fork one rank. Ends of ranks are told to the listener under `key`.

        Returns:
            Its pid.

        Raises:
            StandbyLostError: there is no standby, or it ended meanwhile. LaunchError: the fork
            failed (memory, process limit), or the request is too large for one message.
        """
        if self._channel is None or not self.ready.is_set():
            raise StandbyLostError("no warm standby to fork from; wait for `ready`")
        spec = self._config.spec
        request = {"key": key, "command": spec.command, "workdir": spec.workdir}
        message = {"launch": {**request, "env": environment, "log": str(log)}}
        data = json.dumps(message).encode()
        if len(data) > fork_server.PACKET_BYTES:
            raise LaunchError(f"command and environment take {len(data)} bytes; shorten them")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        try:
            self._channel.send(data)
            return await future
        except OSError as error:
            raise StandbyLostError(f"the standby does not listen: {error}") from error
        finally:
            self._pending.pop(key, None)

    def close(self) -> None:
        """End the standby: it kills what it forked, and goes."""
        process, self._process = self._process, None
        self._disconnect()
        if process is not None:
            process.kill()
            process.wait()

    def _disconnect(self) -> None:
        self.ready.clear()
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _receive(self) -> None:
        if self._channel is None:
            return
        try:
            data = self._channel.recv(fork_server.PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._take(json.loads(data))
        else:
            self._lost()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": ready}:
                self._warm(ready)
            case {"started": str(key), "pid": int(pid)}:
                self._listener.rank_started(key, pid)
                self._answer(key, pid)
            case {"refused": str(key), "error": error}:
                self._answer(key, LaunchError(str(error)))
            case {"exited": str(key), "code": int(code)}:
                self._listener.rank_exited(key, code)

    def _answer(self, key: str, answer: int | Exception) -> None:
        future = self._pending.get(key)
        if future is None or future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _warm(self, ready: dict[str, Any]) -> None:
        for module, error in ready["errors"].items():
            self._log.error(
                "preload failed; ranks will try the import themselves", module=module, error=error
            )
        if ready["threads"] > 1:
            self._log.warning(
                "preload started threads, which forks do not have; if ranks hang, preload less",
                threads=ready["threads"],
            )
        self._log.info("standby is warm", pid=self.pid, seconds=round(ready["seconds"], 3))
        self.ready.set()

    def _lost(self) -> None:
        was_warm = self.ready.is_set()
        self._disconnect()
        process, self._process = self._process, None
        code = process.wait() if process else None
        if not was_warm:  # an import took it down: better cold than never
            self._preload = []
        self._log.error("standby lost", code=code, was_warm=was_warm, next_preload=self._preload)
        for key in list(self._pending):
            self._answer(key, StandbyLostError(f"the standby ended with code {code}"))
        self._listener.standby_lost(was_warm=was_warm)
