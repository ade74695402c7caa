"""The agent's end of the fork server: starts it, requests forks, and receives their exits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import site
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import structlog

import babysit
from babysit import installation, stack_signal, wire
from jobs.agent import fork_server, interpreter, reaper
from jobs.agent.code import Code
from jobs.agent.errors import ForkServerLostError, LaunchError, NoCodeError
from jobs.config import AgentConfig
from jobs.environment import assigned

_ROOT = str(Path(babysit.__file__).parents[1])
"""Where the trainer's package lies: a checkout, or site-packages."""
_CHECKOUT = not installation.WHEEL_PACKAGES.is_dir()
_SECRETS = ("BABYSIT_TOKEN", "BABYSIT_DATABASE_URL")
"""Variables of the control plane that training must not see."""


class Listener(Protocol):
    """Receives events about processes, on the event loop."""

    def rank_started(self, key: str, pid: int) -> None:
        """The rank was forked."""

    def rank_exited(self, key: str, code: int) -> None:
        """The rank was reaped and its group killed. A negative code is a signal."""

    def fork_server_lost(self, *, was_warm: bool) -> None:
        """The fork server ended by itself, and its ranks die with it; start another one."""


_AUTO_START = Path(babysit.__file__).parent / "auto_start"
"""A directory whose `sitecustomize` calls `babysit.auto()`, where the run asks for that."""


def rank_environment(config: AgentConfig, base: dict[str, str]) -> dict[str, str]:
    """The environment common to all ranks of a worker.

    The spec's `env` wins over the variables that were submitted, and these over the agent's own.
    Where the environment of the submitter's shell was submitted, the agent's own counts only for
    the devices that the cluster assigned: the rest is from the shell that started the server.

    Like torchrun, it limits threads to one per process unless `OMP_NUM_THREADS` is set: ranks with
    one thread per core slow each other down. A checkout that the agent runs from is not on the
    ranks' PYTHONPATH: its `jobs` or `tests` would hide the user's own. A directory that a wheel was
    installed into stays: it may have the user's packages too, and of ours only `babysit`.
    """
    submitted = config.submitted
    own = {name: value for name, value in base.items() if name not in _SECRETS}
    inherited = own.pop("PYTHONPATH", "").split(os.pathsep)
    if submitted.shell is not None:
        own, inherited = assigned(own), []
    spec = config.spec.env
    environment = {"OMP_NUM_THREADS": "1", **own, **submitted.variables, **spec}
    wanted = environment.get("BABYSIT_AUTO", "").lower() in {"1", "true", "yes", "on"}
    paths = [
        str(_AUTO_START) if wanted else None,
        spec.get("PYTHONPATH"),
        submitted.variables.get("PYTHONPATH"),
        *(path for path in inherited if not (_CHECKOUT and path == _ROOT)),
    ]
    if joined := os.pathsep.join(path for path in paths if path):
        environment["PYTHONPATH"] = joined
    environment.update({reaper.ENV_WORKER: config.worker, "BABYSIT_RUN": config.run})
    environment.pop(wire.ENV_RANK_DIR, None)
    return environment


def with_trainer(environment: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The environment with the trainer's package on PYTHONPATH, behind the user's own entries.

    Raises:
        OSError: The directory cannot be written.
    """
    paths = (environment.get("PYTHONPATH"), str(interpreter.trainer_path(directory)))
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _has_trainer(chosen: interpreter.Interpreter) -> bool:
    """True if babysit is installed for the interpreter: then nothing is put on its path."""
    return chosen.own and chosen.forks and _ROOT in {*site.getsitepackages()}


class ForkClient:
    """One fork server, replaced when it is lost."""

    def __init__(
        self, config: AgentConfig, listener: Listener, code: Code, group: str = ""
    ) -> None:
        self._config = config
        self._code = code
        self._workdir: str | None = None
        self._refusal: NoCodeError | None = None
        self._group = group
        self._listener = listener
        self._log = structlog.get_logger(part="fork_client")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._pending: dict[str, asyncio.Future[int]] = {}
        self._preload = list(config.spec.preload)
        self._environment = rank_environment(config, dict(os.environ))
        self._chosen: interpreter.Interpreter | None = None
        self.ready = asyncio.Event()
        """Set while the fork server is warm, or launches are refused."""

    @property
    def refused(self) -> bool:
        """True if there is no code to run: a launch raises why, and :meth:`start` tries again."""
        return self._refusal is not None

    @property
    def workdir(self) -> Path | None:
        """Where the ranks run; None: it is not known yet."""
        return None if self._workdir is None else Path(self._workdir)

    @property
    def pid(self) -> int:
        """Process id of the fork server; 0: none."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start a fork server; `ready` is set once it has imported the modules to preload.

        The first call gets the code of the run. Where there is none, launches are refused.
        """
        spec = self._config.spec
        if self._workdir is None:
            self._refusal = None
            self.ready.clear()
            try:
                self._workdir = str(await self._code.provide())
            except NoCodeError as error:
                self._log.error("no code to run", reason=str(error), final=error.final)
                self._refusal = error
                self.ready.set()
                return
        if self._chosen is None:
            chosen = await asyncio.to_thread(
                interpreter.choose, spec.command, self._workdir, self._environment
            )
            self._log.info("interpreter chosen", program=chosen.program, forks=chosen.forks)
            if not _has_trainer(chosen):
                self._add_trainer()
            self._chosen = chosen
        try:
            self._spawn(self._chosen)
        except OSError as error:  # a venv that was removed while it ran, say
            self._log.error("interpreter lost", program=self._chosen.program, error=str(error))
            self._chosen = interpreter.Interpreter(self._chosen.command)
            self._spawn(self._chosen)

    def _add_trainer(self) -> None:
        try:
            self._environment = with_trainer(self._environment, self._config.directory)
        except OSError as error:  # a full disk: a script that has no use for babysit still runs
            self._log.error("no directory for the trainer's package", error=str(error))

    def _spawn(self, chosen: interpreter.Interpreter) -> None:
        config = self._config
        # Where the command is executed anyway, the user's PYTHON* variables are not for the agent's
        # interpreter: they may be of another version.
        flags = ("-P",) if chosen.forks else ("-I", "-S")
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        preload = self._preload if chosen.forks else []
        prepare = {
            **self._request(chosen),
            "preload": preload,
            "cgroup": self._group,
            "stacks": stack_signal.__file__,
        }
        own.send(json.dumps({"prepare": prepare}).encode())  # first: it may end at once
        with contextlib.ExitStack() as on_error:
            on_error.callback(own.close)
            with other, _private(config.directory / "standby.log") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the user's interpreter, or ours
                    [chosen.program, *flags, fork_server.__file__, str(other.fileno())],
                    env=self._environment,
                    pass_fds=[other.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            on_error.pop_all()
        self._channel = own
        asyncio.get_running_loop().add_reader(own.fileno(), self._receive)

    def _request(self, chosen: interpreter.Interpreter) -> dict[str, Any]:
        return {
            "command": chosen.command,
            "forks": chosen.forks,
            "workdir": self._workdir,
        }

    async def launch(
        self,
        key: str,
        environment: dict[str, str],
        output: int,
        arguments: tuple[str, ...] = (),
    ) -> int:
        """Fork one rank that writes to `output`. The listener receives its exit under `key`.

        `arguments` are appended to the command.

        Returns:
            The pid of the rank.

        Raises:
            ForkServerLostError: There is no warm fork server, or it ended meanwhile.
            NoCodeError: There is no code to run.
            LaunchError: The fork failed (memory, process limit), or the request exceeds one
                message.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._channel is None or self._chosen is None or not self.ready.is_set():
            raise ForkServerLostError("no warm fork server; wait for `ready`")
        request = {**self._request(self._chosen), "key": key}
        request["command"] = [*self._chosen.command, *arguments]
        message = {"launch": {**request, "env": environment}}
        data = json.dumps(message).encode()
        if len(data) > fork_server.PACKET_BYTES:
            raise LaunchError(f"command and environment take {len(data)} bytes; shorten them")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        try:
            socket.send_fds(self._channel, [data], [output])
            return await future
        except OSError as error:
            raise ForkServerLostError(f"the fork server does not respond: {error}") from error
        finally:
            self._pending.pop(key, None)

    def close(self) -> None:
        """End the fork server, which kills its ranks first."""
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
                "preload failed; ranks will retry the import", module=module, error=error
            )
        if ready["threads"] > 1:
            self._log.warning(
                "preload started threads, which forks do not inherit; if ranks hang, preload less",
                threads=ready["threads"],
            )
        self._log.info("fork server is warm", pid=self.pid, seconds=round(ready["seconds"], 3))
        self.ready.set()

    def _lost(self) -> None:
        was_warm = self.ready.is_set()
        self._disconnect()
        process, self._process = self._process, None
        code = process.wait() if process else None
        if not was_warm and not self._preload and self._chosen is not None:
            # It does not even start: the ranks run without it, and say why they cannot.
            self._chosen = interpreter.Interpreter(self._chosen.command)
        if not was_warm:  # an import may have killed it: the next one preloads nothing
            self._preload = []
        self._log.error(
            "fork server lost", code=code, was_warm=was_warm, next_preload=self._preload
        )
        for key in list(self._pending):
            self._answer(key, ForkServerLostError(f"the fork server ended with code {code}"))
        self._listener.fork_server_lost(was_warm=was_warm)


def _private(path: Path) -> BinaryIO:
    """A log to append to, for this user alone: scripts print what they have in the environment."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
