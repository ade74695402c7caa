"""One Pod on one node: from its volumes to its last status, as a kubelet does it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from jobs.clock import SystemClock
from tests.kubernetes.api import ApiError, Object
from tests.kubernetes.containers import Command, Container
from tests.kubernetes.probes import Probes
from tests.kubernetes.volumes import NotReadyError, PodFiles, expand

if TYPE_CHECKING:
    from tests.kubernetes.kubelet import Kubelet

_POLL_SECONDS = 0.02
_RESTART_SECONDS = 1.0
"""Before a container that ended is started again (a kubelet: 10 s, doubled each time)."""


class ContainerRun:
    """A container of a Pod over all its restarts, and its status."""

    def __init__(self, spec: Object) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.container: Container | None = None
        self.restarts = 0
        self.ready = False
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.last: Object = {}

    def wait_for(self, reason: str, message: str = "") -> None:
        """It waits, for this reason."""
        self.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}

    def started(self, container: Container) -> None:
        """It runs."""
        self.container = container
        self.state = {"running": {"startedAt": now()}}

    def ended(self, code: int, reason: str = "") -> None:
        """It ended by itself, or was killed."""
        started = self.state.get("running", {}).get("startedAt", now())
        self.ready = False
        self.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason or ("Completed" if code == 0 else "Error"),
                "startedAt": started,
                "finishedAt": now(),
            }
        }

    def status(self) -> Object:
        """As the Pod's status holds it."""
        return {
            "name": self.name,
            "image": self.spec.get("image", ""),
            "imageID": "",
            "ready": self.ready,
            "started": "running" in self.state,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }


class PodRun:
    """Runs a Pod in a thread, and reports its status until it is removed.

    Attributes:
        address: The Pod's own, of 127.0.0.0/8.
    """

    def __init__(self, kubelet: Kubelet, pod: Object, address: str) -> None:
        self.kubelet, self.pod = kubelet, pod
        self.address = kubelet.address if pod["spec"].get("hostNetwork") else address
        self.name: str = pod["metadata"]["name"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.uid: str = pod["metadata"]["uid"]
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self.files = PodFiles(kubelet.api, pod, kubelet.places, kubelet.name, self.address)
        spec = pod["spec"]
        self.inits = [ContainerRun(item) for item in spec.get("initContainers", [])]
        self.containers = [ContainerRun(item) for item in spec["containers"]]
        self.over = threading.Event()
        """Set when the Pod is gone from this node."""
        self._deletion: float | None = None
        """Grace in seconds, once the Pod is to end."""
        self._removal = False
        """The Pod was deleted in the API, which waits for this node."""
        self._verdict: tuple[str, str] | None = None
        """Reason and message of a Pod that the node itself ended."""
        self._dead = False
        """The node is gone: do nothing more."""
        self._phase = "Pending"
        self._started_at = now()
        self._sent: Object = {}
        self._volumes: dict[str, Path] = {}
        self._thread = threading.Thread(target=self._run, name=f"pod {self.name}", daemon=True)

    # from outside

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def delete(self, grace: float) -> None:
        """The Pod is to end: SIGTERM now, SIGKILL after the grace. A shorter grace wins over an
        earlier one.
        """
        self._removal = True
        self._end(grace)
        if self.over.is_set():
            self._remove()

    def _end(self, grace: float) -> None:
        before = self._deletion
        self._deletion = grace if before is None else min(before, grace)

    def _remove(self) -> None:
        """Remove the Pod from the API and its files from the node."""
        self._clean()
        with contextlib.suppress(_LeaveError):
            self._call(lambda: self.kubelet.api.delete(self.path, grace=0, uid=self.uid))

    def fail(self, reason: str, message: str, grace: float = 0.0) -> None:
        """The node ends the Pod for a reason of its own (`Evicted`, `Terminated`, …): phase Failed;
        it stays in the API.
        """
        self._verdict = (reason, message)
        self._end(grace)

    def lose(self) -> None:
        """The node is gone, with all processes: nobody reports anything."""
        self._dead = True
        self.kill()

    def kill(self, reason: str = "", container: str | None = None) -> None:
        """SIGKILL to the containers (or one), whose end gets this reason (`OOMKilled`)."""
        for run in (*self.inits, *self.containers):
            if run.container is not None and container in {None, run.name}:
                run.container.kill(reason)

    def refresh(self) -> None:
        """Write the volumes of Secrets, ConfigMaps and tokens anew, as a kubelet does every minute
        or so.
        """
        self.files.volumes()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join(30)

    def log(self, container: str) -> Path:
        """The file with a container's output."""
        return self.files.disk / f"{container}.log"

    # the thread

    def _run(self) -> None:
        try:
            if self._prepare() and self._init():
                self._main()
            if not self._dead:
                self._conclude()
        except _LeaveError:
            pass
        finally:
            self._kill_all()
            self.over.set()
            # Deleted only now, or before: either way nobody else removes it.
            if self._removal:
                self._remove()

    def _prepare(self) -> bool:
        """Images and volumes; False: the Pod is to end before they are there."""
        self._report()
        for run in (*self.inits, *self.containers):
            fault = self.kubelet.image_faults.get(run.spec.get("image", ""))
            if fault is not None:
                run.wait_for(*fault)
                self._report()
                return self._until(lambda: False)
        return self._try_until(self._make_volumes)

    def _make_volumes(self) -> None:
        self._volumes = self.files.volumes()

    def _init(self) -> bool:
        for run in self.inits:
            while True:
                if not self._start(run) or not self._until(lambda r=run: self._look(r)):  # type: ignore[misc]
                    return False
                self._report()
                code = run.state["terminated"]["exitCode"]
                if code == 0:
                    break
                if self.pod["spec"].get("restartPolicy", "Always") == "Never":
                    return False
                if not self._pause_and_restart(run):
                    return False
        return True

    def _main(self) -> None:
        probes = [Probes(run, self.address) for run in self.containers]
        for run in self.containers:
            if not self._start(run):
                return
        self._phase = "Running"
        for probe in probes:
            probe.begin()
        self._report()
        policy = self.pod["spec"].get("restartPolicy", "Always")
        while self._until(lambda: self._any_news(probes)):
            self._report()
            waiting = [run for run in self.containers if "terminated" in run.state]
            for run in waiting:
                code = run.state["terminated"]["exitCode"]
                if policy == "Always" or (policy == "OnFailure" and code):
                    if not self._pause_and_restart(run) or not self._start(run):
                        return
                    probes[self.containers.index(run)].begin()
                    self._report()
            if all("terminated" in run.state for run in self.containers):
                return

    def _any_news(self, probes: list[Probes]) -> bool:
        ended = [self._look(run) for run in self.containers if "running" in run.state]
        changed = [probe.look() for probe in probes]
        return any(ended) or any(changed)

    def _conclude(self) -> None:
        """The containers end, and the last status goes out; a deleted Pod is removed."""
        if self._deletion is not None:
            self._stop_all()
        elif not all("terminated" in run.state for run in (*self.containers, *self.inits)):
            self._kill_all()
        codes = [
            run.state["terminated"]["exitCode"]
            for run in (*self.inits, *self.containers)
            if "terminated" in run.state
        ]
        complete = all("terminated" in run.state for run in self.containers)
        good = complete and not any(codes) and self._verdict is None
        self._phase = "Succeeded" if good else "Failed"
        self._report()

    def _stop_all(self) -> None:
        """SIGTERM, the grace (which may become shorter), SIGKILL."""
        running = [run for run in (*self.inits, *self.containers) if "running" in run.state]
        began = time.monotonic()
        for run in running:
            hook = run.spec.get("lifecycle", {}).get("preStop", {}).get("exec")
            if hook and run.container is not None:
                run.container.run(hook["command"], self._deletion or 0.0)
            if run.container is not None:
                run.container.signal(signal.SIGTERM)
        while not all(self._look(run) for run in running):
            self._check()
            if time.monotonic() - began >= (self._deletion or 0.0):
                self._kill_all()
                return
            time.sleep(_POLL_SECONDS)

    def _kill_all(self) -> None:
        for run in (*self.inits, *self.containers):
            if run.container is not None and "running" in run.state:
                run.container.kill()
                run.container.wait()
                self._look(run)

    def _clean(self) -> None:
        for directory in (self.files.disk, self.files.memory):
            shutil.rmtree(directory, ignore_errors=True)

    # parts

    def _start(self, run: ContainerRun) -> bool:
        """Start a container as soon as its variables can be made."""

        def start() -> None:
            environment = self.kubelet.image_environment | self._service_variables()
            environment |= {"HOSTNAME": self._hostname} | self.files.environment(run.spec)
            words = [*run.spec.get("command", []), *run.spec.get("args", [])]
            if not run.spec.get("command"):
                raise NotReadyError(
                    "no command: the stand-in has no images", "CreateContainerError"
                )
            command = Command(
                arguments=[expand(word, environment) for word in words],
                environment=environment,
                directory=run.spec.get("workingDir", "/"),
                mounts=[*self.kubelet.image_mounts, *self.files.mounts(run.spec, self._volumes)],
                hostname=self._hostname,
            )
            root = self.files.memory / "roots" / f"{run.name}-{run.restarts}"
            run.started(Container(command, root, self.log(run.name)))

        def failed(error: NotReadyError) -> None:
            run.wait_for(error.reason, str(error))

        return self._try_until(start, failed)

    @property
    def _hostname(self) -> str:
        return str(self.pod["spec"].get("hostname") or self.name)

    def _service_variables(self) -> dict[str, str]:
        url = httpx.URL(self.kubelet.api_url)
        return {
            "KUBERNETES_SERVICE_HOST": url.host,
            "KUBERNETES_SERVICE_PORT": str(url.port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(url.port),
        }

    def _pause_and_restart(self, run: ContainerRun) -> bool:
        run.last, run.restarts = run.state, run.restarts + 1
        run.wait_for("CrashLoopBackOff", "back-off restarting failed container")
        self._report()
        until = time.monotonic() + _RESTART_SECONDS
        if not self._until(lambda: time.monotonic() >= until):
            return False
        if run in self.inits:
            return True
        run.ready = False
        return True

    def _look(self, run: ContainerRun) -> bool:
        """Whether the container has ended; its state says how."""
        if "terminated" in run.state:
            return True
        if run.container is None or (code := run.container.poll()) is None:
            return False
        run.ended(code, run.container.killed_for)
        return True

    def _try_until(
        self, work: Callable[[], None], failed: Callable[[NotReadyError], None] | None = None
    ) -> bool:
        """Do something that may have to wait for an object; False: the Pod is to end first."""
        while True:
            try:
                self._call(work)
            except NotReadyError as error:
                if failed is not None:
                    failed(error)
                else:
                    for run in self.containers:
                        run.wait_for("ContainerCreating", str(error))
                self._report()
            else:
                return True
            until = time.monotonic() + 0.2
            if not self._until(lambda u=until: time.monotonic() >= u):  # type: ignore[misc]
                return False

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait; False: the Pod is to end first."""
        while True:
            self._check()
            if self._deletion is not None:
                return False
            if condition():
                return True
            time.sleep(_POLL_SECONDS)

    def _check(self) -> None:
        if self._dead:
            raise _LeaveError

    def _call(self, work: Callable[[], None]) -> None:
        """Call the API server, again and again while it is away; not while the kubelet is
        frozen.
        """
        while True:
            self._check()
            if self.kubelet.online.wait(0.1):
                try:
                    work()
                except (httpx.TransportError, ApiError) as error:
                    if isinstance(error, ApiError) and error.status < 500 and error.status != 429:
                        if error.status in {404, 409}:
                            return  # somebody removed the Pod
                        raise
                    time.sleep(0.2)
                else:
                    return

    def _report(self) -> None:
        """Bring the Pod's status in the API up to date."""
        ready = all(run.ready for run in self.containers)
        initialized = all(
            run.state.get("terminated", {}).get("exitCode") == 0 for run in self.inits
        )
        status: Object = {
            "phase": self._phase,
            "conditions": [
                condition("Initialized", initialized),
                condition("Ready", ready, "" if ready else "ContainersNotReady"),
                condition("ContainersReady", ready, "" if ready else "ContainersNotReady"),
            ],
            "hostIP": self.kubelet.address,
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._started_at,
            "containerStatuses": [run.status() for run in self.containers],
            "initContainerStatuses": [run.status() for run in self.inits],
        }
        if self._verdict is not None:
            status["reason"], status["message"] = self._verdict
        if status == self._sent:
            return
        self._sent = status

        def send() -> None:
            # Strategic: the conditions of others (PodScheduled, DisruptionTarget) stay. The
            # precondition keeps a namesake that came later untouched.
            body = {"metadata": {"uid": self.uid}, "status": status}
            self.kubelet.api.patch(
                f"{self.path}/status", body, kind="application/strategic-merge-patch+json"
            )

        self._call(send)


class _LeaveError(Exception):
    """The node is gone."""


def now() -> str:
    """The time, as the API writes it."""
    return SystemClock().now().strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, value: bool, reason: str = "") -> Object:
    """A condition of a Pod or node."""
    found = {"type": kind, "status": "True" if value else "False"}
    return {**found, "reason": reason}
