"""Ray Train: babysit watches a `TorchTrainer` whose workers Ray starts and restarts.

    from babysit.integrations import ray as watched

    def loop(config):                                         # in each worker
        for step, batch in enumerate(loader, start=1):
            ...
            watched.report(step, loss=loss)
            ray.train.report({"step": step}, checkpoint=...)  # as ever

    TorchTrainer(loop, run_config=RunConfig(callbacks=[watched.watch()])).fit()

Start the driver with `babysit run -- python driver.py`. Steps, losses, checkpoints and failures of
the workers become those of the run, whose one rank is the driver. Ray does all restarts: babysit
opens incidents and sends alerts, and its monitors only observe. Without an agent nothing is
reported. Workers reach the driver through an actor of the job, so they need no address and no
token; they need babysit installed, and the driver needs Ray Train V2 (the default since Ray 2.51).

Nothing here raises into training, and no call waits: reports go through a queue and a thread. What
a worker reported in the last 50 ms before it was killed is lost.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from babysit.entry import init
from babysit.integrations.engine_relay import EngineRelay
from babysit.integrations.relayed_steps import Part
from babysit.numbers import real, said, whole
from babysit.ring import wall_clock

ENGINE = "ray"
_NAME = "babysit-{}"
"""Name of the mailbox of a job, in the namespace of the job."""
_PAUSE_SECONDS = 0.05
"""Between two deliveries of a process."""
_GIVE_UP_SECONDS = 120.0
"""A process that finds no mailbox for this long reports to nobody from then on."""
_MOST = 10_000
"""Reports that wait for delivery; of more, the oldest are lost."""
_TEXT = 4000

log = logging.getLogger("babysit")


def watch(*, step: str = "step", loss: str = "loss") -> ray.train.UserCallback:
    """Make the callback for `RunConfig(callbacks=[…])`, and begin to relay reports. Never raises.

    Call it once in the driver. Metrics of `ray.train.report` count as steps if no worker calls
    :func:`report`; Ray passes them on about every 2 s, when all workers have reported.

    Args:
        step: The name of the step among these metrics; without it, reports are counted.
        loss: The name of the loss.
    """
    try:
        run = init()
        if run.plan.run:
            _Driver(EngineRelay(run, ENGINE)).start()
        else:
            log.warning("no agent: start the driver with `babysit run --` to have it watched")
    except Exception as error:  # noqa: BLE001 (training must go on)
        log.warning("not watched: %s", said(error))
    return _Watch(step, loss)


def report(
    step: Any,
    loss: Any = None,
    *,
    grad_norm: Any = None,
    tokens: Any = None,
    learning_rate: Any = None,
    **metrics: Any,
) -> None:
    """Report a step from a worker's loop. Never raises, and never waits.

    Args:
        step: The step as the script counts it. After a restart by Ray it goes on from that of the
            checkpoint; steps that were reported before are not reported again.
        loss: Of this worker; the run has the mean of all that report. As for `run.report`,
            anything `float()` takes (for a GPU tensor this synchronises).
        grad_norm: Norm of the gradient; the run has the largest.
        tokens: Tokens of this worker in the step; the run has their sum.
        learning_rate: Learning rate of the step.
        metrics: Other numbers by name; the run has the mean. A run may have 16 names.
    """
    try:
        context = ray.train.get_context()
        values = {name: _number(name, value) for name, value in metrics.items()}
        part = Part(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            step=whole(step),
            time=wall_clock(),
            loss=_number("loss", loss),
            grad_norm=_number("grad_norm", grad_norm),
            tokens=_number("tokens", tokens),
            learning_rate=_number("learning_rate", learning_rate),
            metrics={name: value for name, value in values.items() if value is not None},
        )
    except Exception as error:  # noqa: BLE001 (values' own code, or Ray's; training must go on)
        _warn(f"report() is left out: {said(error)}")
        return
    _sender.send(("step", part))


class _Watch(ray.train.UserCallback):  # type: ignore[misc,unused-ignore]  # untyped base
    """Runs in the process of Ray's controller, which fails if a callback raises."""

    def __init__(self, step: str, loss: str) -> None:
        self._step, self._loss = step, loss
        self._reports = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """All workers have called `ray.train.report`."""
        del run_context
        try:
            self._reports += 1
            parts = [self._part(rank, len(metrics), each) for rank, each in enumerate(metrics)]
            _sender.send(("metrics", parts))
            if checkpoint is not None:
                named = self._step in metrics[0] if metrics else False
                _sender.send(("checkpoint", (parts[0].step if named else None, checkpoint)))
        except Exception as error:  # noqa: BLE001 (training must go on)
            _warn(f"metrics are left out: {said(error)}")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed; Ray restarts them, or gives up."""
        del run_context
        try:
            found = [_described(rank, error) for rank, error in worker_exceptions.items()]
            _sender.send(("failed", found))
        except Exception as error:  # noqa: BLE001 (training must go on)
            _warn(f"a failure is left out: {said(error)}")

    def _part(self, rank: int, world_size: int, metrics: Mapping[str, Any]) -> Part:
        step = whole(metrics[self._step]) if self._step in metrics else self._reports
        numbers = {
            str(name): _number(str(name), value)
            for name, value in metrics.items()
            if not isinstance(value, str)
        }
        return Part(
            rank=rank,
            world_size=world_size,
            step=step,
            time=wall_clock(),
            loss=numbers.pop(self._loss, None),
            metrics={n: v for n, v in numbers.items() if v is not None and n != self._step},
        )


def _described(rank: int, error: BaseException) -> dict[str, Any]:
    """The failure of a worker, as the note `engine_failed` has it."""
    text = said(error)
    inner = getattr(error, "health_check_failure", None) or error
    node = re.search(r"node_ip='([^']*)'", text)
    lost = ""
    if isinstance(inner, ray.exceptions.RayError):
        lost = "process"
        if "its node has died" in text or "node was terminated" in text.lower():
            lost = "node"
        if "OUT_OF_MEMORY" in text or isinstance(inner, ray.exceptions.OutOfMemoryError):
            lost = "memory"
        if getattr(inner, "preempted", False):
            lost = "preempted"
    if not lost:
        text = f"{type(error).__name__}: {text}"
    address = node[1] if node else ""
    return {"rank": int(rank), "node": address, "lost": lost, "text": text[-_TEXT:]}


class _Mailbox:
    """An actor that keeps reports until the driver takes them."""

    def __init__(self) -> None:
        self._items: collections.deque[Any] = collections.deque(maxlen=4 * _MOST)
        self._arrived = asyncio.Event()

    async def put(self, items: Sequence[Any]) -> None:
        """Keep reports."""
        self._items.extend(items)
        self._arrived.set()

    async def take(self, seconds: float) -> list[Any]:
        """All reports that are kept; waits at most `seconds` for the first."""
        if not self._items:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), seconds)
        found = list(self._items)
        self._items.clear()
        return found


class _Sender:
    """Delivers the reports of this process to the mailbox of its job, in a thread of its own."""

    def __init__(self) -> None:
        self._items: collections.deque[Any] = collections.deque(maxlen=_MOST)
        self._arrived = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._given_up = False

    def send(self, item: Any) -> None:
        """Take a report; never raises."""
        if self._given_up:
            return
        self._items.append(item)
        self._arrived.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._serve, name="babysit", daemon=True)
                    self._thread = thread
                    thread.start()

    def _serve(self) -> None:
        mailbox, missed_since = None, 0.0
        while True:
            self._arrived.wait()
            self._arrived.clear()
            try:
                name = _NAME.format(ray.get_runtime_context().get_job_id())
                mailbox = mailbox or ray.get_actor(name)
                missed_since = 0.0
                items = [self._items.popleft() for _ in range(len(self._items))]
                if items:
                    mailbox.put.remote(items)
            except Exception as error:  # noqa: BLE001 (Ray's or the network's; training must go on)
                if mailbox is not None:  # at first there is none: the driver has just begun
                    _warn(f"reports were not delivered to the driver: {said(error)}")
                mailbox = None
                now = time.perf_counter()
                missed_since = missed_since or now
                if now - missed_since > _GIVE_UP_SECONDS:
                    _warn(f"no mailbox of this job, so nothing is reported: {said(error)}")
                    self._given_up = True
                    return
                self._arrived.set()
                time.sleep(20 * _PAUSE_SECONDS)
            time.sleep(_PAUSE_SECONDS)


_sender = _Sender()


class _Driver:
    """Takes reports from the mailbox to the agent, in a thread of the driver."""

    def __init__(self, relay: EngineRelay) -> None:
        self._relay = relay
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="babysit", daemon=True)

    def start(self) -> None:
        """Begin, as soon as the driver has joined a Ray cluster."""
        self._thread.start()
        atexit.register(self._close)  # before that of Ray, which was imported earlier

    def _close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=5.0)

    def _serve(self) -> None:
        mailbox = None
        while True:
            closing = self._closing.is_set()
            try:
                if ray.is_initialized():
                    mailbox = mailbox or _open_mailbox()
                    wait = 0.0 if closing else 0.5
                    self._take(ray.get(mailbox.take.remote(wait), timeout=60))
                elif not closing:
                    self._closing.wait(0.1)
                self._relay.tick(time.perf_counter(), everything=closing)
            except Exception as error:  # noqa: BLE001 (Ray's or the network's; training must go on)
                mailbox = None
                _warn(f"reports of the workers wait: {said(error)}")
                self._closing.wait(1.0)
            if closing:
                return

    def _take(self, reports: Sequence[tuple[str, Any]]) -> None:
        for kind, content in reports:
            try:
                self._handle(kind, content)
            except Exception as error:  # noqa: BLE001 (of Ray's storage; the others must not be lost)
                _warn(f"a report of the workers ({kind}) is left out: {said(error)}")

    def _handle(self, kind: str, content: Any) -> None:
        now = time.perf_counter()
        if kind == "step":
            self._relay.step(content, now, by_process=True)
        elif kind == "metrics":
            for part in content:
                self._relay.step(part, now, by_process=False)
        elif kind == "failed":
            self._relay.failed(content, now)
        elif kind == "checkpoint":
            self._relay.tick(now)
            self._saved(*content)

    def _saved(self, step: int | None, checkpoint: Any) -> None:
        """Look at the files of Ray's storage: the new checkpoint, and those that are gone."""
        files = checkpoint.filesystem
        known = self._relay.saved
        gone = [old for old, path in known.items() if path != checkpoint.path]
        gone = [old for old in gone if _is_gone(files, known[old])]
        selector = pyarrow.fs.FileSelector(checkpoint.path, recursive=True)
        size = sum(info.size or 0 for info in files.get_file_info(selector))
        self._relay.checkpoint(step, checkpoint.path, size, gone)


def _is_gone(files: Any, path: str) -> bool:
    return bool(files.get_file_info(path).type == pyarrow.fs.FileType.NotFound)


def _open_mailbox() -> Any:
    """The mailbox of this job, on the node of the driver: it must not die with a worker's node."""
    context = ray.get_runtime_context()
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    kind: Any = ray.remote(_Mailbox)
    return kind.options(
        name=_NAME.format(context.get_job_id()),
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=1000,
        scheduling_strategy=here,
    ).remote()


def _number(name: str, value: Any) -> float | None:
    try:
        return real(value)
    except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
        _warn(f"{name} of a {type(value).__name__} is left out: {said(error)}")
        return None


_warned: set[str] = set()


def _warn(message: str) -> None:
    """Log a message, once per text and at most 100 texts."""
    if message not in _warned and len(_warned) < 100:
        _warned.add(message)
        log.warning("%s", message)
