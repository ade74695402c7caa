"""The code that runs on the nodes: the actor of a worker, and the search for what an actor left.

Ray sends this module by value, so it needs nothing of babysit to be loaded, and can say where
babysit is missing. The standard library and ray only.

The agent is a process of its own below the actor. The kernel kills it when the actor's process
ends, however that happens (PR_SET_PDEATHSIG), and the agent's reaper then kills the ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv

_FOLLOW = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
"""Becomes a program that the kernel kills with the thread that has started it (prctl(2)). In a
process of its own: no code may run between fork and exec in a process with threads."""
_REAP = (
    "import sys\n"
    "from babysit import installation\n"
    "installation.add_packages()\n"
    "from jobs.agent.reaper import end_worker\n"
    "sys.exit(bool(end_worker(sys.argv[1])))\n"
)
_PAUSE = 1.0
"""Seconds between tries to end what survives SIGKILL, or to reach Ray's store."""
_LAST_WORDS = 0.5
"""Seconds for the answers under way before the actor's process ends. Nothing depends on them."""
_OWN = frozenset({"RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_LD_PRELOAD_ON_WORKERS", "OMP_NUM_THREADS"})
"""Variables that Ray sets for one worker process of its own. With its OMP_NUM_THREADS each rank of
a node would take all cores that were reserved for all of them."""
_NEVER = "agent never started"


class WorkerActor:
    """One worker of babysit: it starts one agent, once, and ends when the agent has ended."""

    def __init__(self) -> None:
        self._starting = asyncio.Lock()
        self._over = asyncio.Event()
        self._answer: str | None = None
        self._how = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    async def start(self, order: Mapping[str, Any]) -> str:
        """Start the agent, unless it was started before.

        Returns:
            Why it never starts; empty: it was started.
        """
        async with self._starting:
            if self._answer is None:
                loop = asyncio.get_running_loop()
                self._answer = await loop.run_in_executor(None, self._start, order, loop)
            return self._answer

    async def wait(self) -> str:
        """How the agent ended, once no process of the worker is left."""
        await self._over.wait()
        return self._how

    async def stop(self, grace: float) -> None:
        """Begin to end the agent: SIGINT, and after the grace SIGKILL. Returns at once."""
        process = self._process
        if process is None or self._stopping.is_set():
            return
        self._stopping.set()
        process.send_signal(signal.SIGINT)
        timer = threading.Timer(grace, process.kill)
        timer.daemon = True
        timer.start()

    async def pid(self) -> int:
        """The agent's pid; 0: it was not started."""
        return self._process.pid if self._process else 0

    def _start(self, order: Mapping[str, Any], loop: asyncio.AbstractEventLoop) -> str:
        actor = ray.get_runtime_context().get_actor_id()
        _put(order, "claim", actor)
        holder = _get(order, "claim")
        if holder != actor:
            return f"{_NEVER}: {holder or 'nobody'} has claimed the worker"
        threading.Thread(target=_end_with_raylet, daemon=True).start()
        started: queue.Queue[str] = queue.Queue()
        # The agent dies with the thread that starts it: this one lives as long as the process.
        keeper = threading.Thread(target=self._keep, args=(order, started, loop), daemon=True)
        keeper.start()
        return started.get()

    def _keep(
        self,
        order: Mapping[str, Any],
        started: queue.Queue[str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        place = places(order)
        try:
            self._process = _spawn(order, place)
        except OSError as error:
            how = f"{_NEVER}: {error}"
            started.put(how)
        else:
            started.put("")
            how = _how(self._process.wait(), place["directory"] / "output.log")
        end_processes(order["worker"])
        remove(place)
        self._how = how
        _store_end(order, how)
        loop.call_soon_threadsafe(self._over.set)
        threading.Event().wait(_LAST_WORDS)
        os._exit(0)


def places(order: Mapping[str, Any]) -> dict[str, Path]:
    """The directories of a worker on its node: on disk and, where there is one, on tmpfs."""
    name = f"babysit-{order['worker']}"
    directory = Path(order.get("directory") or tempfile.gettempdir()) / name
    shared = Path("/dev/shm")  # noqa: S108 - the name below it is the worker's own
    memory = shared / name if os.access(shared, os.W_OK) else directory / "memory"
    return {"directory": directory, "memory": memory}


def remove(place: Mapping[str, Path]) -> None:
    """Remove the directories of a worker that is gone."""
    for path in place.values():
        shutil.rmtree(path, ignore_errors=True)


def end_processes(worker: str) -> None:
    """Kill what is left of a worker whose agent has ended. Returns when nothing is left."""
    environment = {k: v for k, v in os.environ.items() if k != "BABYSIT_WORKER"}
    clean = 0
    # Two clean looks in a row: during an exec a process shows no environment.
    while clean < 2:
        done = subprocess.run(  # noqa: S603 - the command is ours
            [sys.executable, "-P", "-c", _REAP, worker],
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        clean = clean + 1 if done.returncode == 0 else 0
        if done.returncode:
            threading.Event().wait(_PAUSE)


def sweep(order: Mapping[str, Any]) -> bool:
    """End what an actor left that was killed. A task on the actor's node.

    Returns:
        True: no process of the worker is left.
    """
    end_processes(order["worker"])
    remove(places(order))
    return True


def _end_with_raylet() -> None:
    """End this process with the raylet of its node, on which Ray declares the node dead.

    Ray's own look is at the raylet's pid, which stays where nobody reaps the dead raylet: the
    ranks of a node that is dead for Ray would train on beside their successors.
    """
    try:
        raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    except (KeyError, ValueError, OSError):  # in a container with pids of its own
        return
    select.select([raylet], [], [])
    os._exit(1)


def _spawn(order: Mapping[str, Any], place: Mapping[str, Path]) -> subprocess.Popen[bytes]:
    command = list(order["command"])
    if not command:
        if importlib.util.find_spec("babysit") is None:
            raise OSError(
                f"babysit is not installed for {sys.executable} on this node: add it to the image,"
                " or to ray.runtime_env.pip of the spec"
            )
        command = [sys.executable, "-P", "-m", "babysit.agent"]
    directory = place["directory"]
    directory.mkdir(mode=0o700, parents=True)
    config = {
        **json.loads(order["config"]),
        "directory": str(directory),
        "log_directory": str(directory / "logs"),
        "memory_directory": str(place["memory"]),
    }
    if order["ca"] is not None:
        config["ca"] = str(directory / "ca.crt")
        _write(directory / "ca.crt", order["ca"])
    _write(directory / "config.json", json.dumps(config))
    stub = [sys.executable, "-I", "-S", "-c", _FOLLOW, str(os.getpid())]
    output = os.open(directory / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # The environment is in a file in memory: nothing of it is on a disk.
    with os.fdopen(os.memfd_create("environment"), "r+b") as file:
        file.write(order["environment"].encode())
        file.seek(0)
        try:
            return subprocess.Popen(  # noqa: S603 - the command is ours
                [*stub, *command, str(directory / "config.json")],
                stdin=file,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(order),
                start_new_session=True,
            )
        finally:
            os.close(output)


def _environment(order: Mapping[str, Any]) -> dict[str, str]:
    """The actor's environment, with its devices, and without what is the actor's process's own."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN}
    return {
        **inherited,
        **(order["runtime_env"].get("env_vars") or {}),
        "BABYSIT_WORKER": order["worker"],
        "BABYSIT_NODE_ADDRESS": ray.util.get_node_ip_address(),
    }


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _how(code: int, output: Path) -> str:
    if code < 0:
        return f"agent was killed by {signal.Signals(-code).name}"
    words = f"agent exited with code {code}"
    with contextlib.suppress(OSError):
        lines = output.read_text(errors="replace").strip().splitlines()
        if code and lines:
            words = f"{words}: {lines[-1]:.300}"
    return words


def _put(order: Mapping[str, Any], what: str, value: str) -> None:
    """Store a value, unless there is one."""
    internal_kv._internal_kv_put(  # noqa: SLF001 - Ray's only store that survives a driver
        order["keys"][what], value, overwrite=False, namespace=order["store"]
    )


def _get(order: Mapping[str, Any], what: str) -> str | None:
    found = internal_kv._internal_kv_get(  # noqa: SLF001 - as above
        order["keys"][what], namespace=order["store"]
    )
    return None if found is None else found.decode()


def _store_end(order: Mapping[str, Any], how: str) -> None:
    """Store how the worker ended. Tried until it is stored: nobody else knows."""
    while True:
        try:
            _put(order, "end", how)
        except Exception:  # noqa: BLE001 - whatever Ray raises while its control store is away
            threading.Event().wait(_PAUSE)
        else:
            return
