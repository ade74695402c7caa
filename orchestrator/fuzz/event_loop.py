"""An event loop for many make-believe processes: its time is virtual, its order is fixed.

Everything that runs belongs to a process, which is a context variable: what a process starts is
its own. A process can be killed between any two steps of the loop, and then not one more line of
it runs, no `finally` either; or paused, and then it goes on later as if nothing had been.

asyncio's own loop can do none of that: it knows no processes, and it waits for real sockets and
clocks, whose order no seed decides. This one has neither sockets nor threads nor signals, so only
code runs on it that does all of its waiting through tasks, futures and timers.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import functools
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple, Unpack

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
Args = TypeVarTuple("Args")
WORLD = ""
"""The owner of tasks outside every process: the network, the hardware, the users."""
PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default=WORLD)
_CLOSING_ROUNDS = 10
"""A task may wait again while it ends, in a `finally`; none of ours does so more than twice."""
WORLD_CONTEXT = contextvars.Context()
"""For callbacks that no process takes with it when it dies."""


class _Step(asyncio.TimerHandle):
    """A callback, and the process that it belongs to."""

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: VirtualLoop,
        context: contextvars.Context | None,
    ) -> None:
        context = contextvars.copy_context() if context is None else context
        super().__init__(when, callback, args, loop, context)
        self.process = context.get(PROCESS, WORLD)


class _NumberedTask(asyncio.Task[Any]):
    """A task that hashes by its number: the order of a set of tasks is then the same each time.

    By default a task hashes by its address, which differs from process to process. A server that
    steps down cancels a set of tasks, and `asyncio.wait` gives one back: they would run in an order
    that no seed decides.
    """

    def __init__(self, number: int, work: Any, **options: Any) -> None:
        self._number = number  # first: asyncio hashes a task while it is being made
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._number


class _NumberedFuture(asyncio.Future[Any]):
    """A future that hashes by its number, as a task does."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs what is ready in the order it became so; then time jumps to the next timer.

    Attributes:
        steps: How many callbacks have run.
        failures: What callbacks and tasks raised. A run with one proves nothing.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.failures: list[str] = []
        self._now = 0.0
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._numbers = itertools.count()
        self._hashes = itertools.count()
        self._tasks: list[asyncio.Task[Any]] = []
        self._dead: set[str] = set()
        self._left: list[_Step] = []
        """Steps of the dead, never taken."""
        self._parked: dict[str, list[_Step]] = {}
        self._interrupts: dict[str, tuple[int, Callable[[], None]]] = {}

    # --- processes ------------------------------------------------------------------------------

    def spawn(self, process: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something as a process, or as one more task of it."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        task = self.create_task(work, context=context)
        note = functools.partial(self._note_failure, process)
        task.add_done_callback(note, context=WORLD_CONTEXT)
        return task

    def _note_failure(self, process: str, task: asyncio.Task[Any]) -> None:
        """Note what a task raised: nothing waits for it, and a run without it proves little.

        Ranks whose task ends by an error of the fuzzer look to the control plane like ranks that
        hang, and are restarted and restarted.
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"a task of {process or 'the world'} failed: {error!r}")

    def kill(self, process: str) -> None:
        """Not one more line of the process runs. A name that was killed can start nothing again."""
        self._dead.add(process)
        self._left.extend(self._parked.pop(process, ()))
        self._interrupts.pop(process, None)

    def killed(self, process: str) -> bool:
        """True if the process was killed."""
        return process in self._dead

    def pause(self, process: str) -> None:
        """The process stands still until it is resumed; its steps wait, in order."""
        if process not in self._dead:
            self._parked.setdefault(process, [])

    def resume(self, process: str) -> None:
        """The process goes on where it stood."""
        self._ready.extend(self._parked.pop(process, ()))

    def interrupt(self, process: str, steps: int, then: Callable[[], None]) -> None:
        """Call `then` once, after `steps` more steps of the process; a later call replaces it."""
        self._interrupts[process] = (steps, then)

    # --- running --------------------------------------------------------------------------------

    def run(self, until: asyncio.Future[Any], end: float = float("inf")) -> bool:
        """Run until a future is done; False when nothing is left to run, or `end` is reached."""
        asyncio._set_running_loop(self)
        try:
            while not until.done():
                if not self._ready and not self._jump(end):
                    return False
                self._take(self._ready.popleft())
        finally:
            asyncio._set_running_loop(None)
        return True

    def _jump(self, end: float) -> bool:
        """Go to the next moment at which something happens."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers or self._timers[0][0] > end:
            return False
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])
        return True

    def _take(self, step: _Step) -> None:
        process = step.process
        if step.cancelled():
            return
        if process in self._dead:
            self._left.append(step)
            return
        if process in self._parked:
            self._parked[process].append(step)
            return
        if process in self._interrupts and self._is_due(process):
            self._take(step)  # it may be dead or paused by now
            return
        self.steps += 1
        step._run()

    def _is_due(self, process: str) -> bool:
        left, then = self._interrupts[process]
        self._interrupts[process] = (left - 1, then)
        if left > 0:
            return False
        del self._interrupts[process]
        then()
        return True

    def close(self) -> None:
        """Let every task end, whatever process it was of, and forget all of them."""
        self._ready.extend(self._left)
        for parked in self._parked.values():
            self._ready.extend(parked)
        self._dead.clear()
        self._parked.clear()
        self._interrupts.clear()
        asyncio._set_running_loop(self)
        try:
            for _ in range(_CLOSING_ROUNDS):
                if not all(task.done() for task in self._tasks):
                    self._end_all()
        finally:
            asyncio._set_running_loop(None)
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.clear()
        self._timers.clear()

    def _end_all(self) -> None:
        """Cancel what is not done; some wait once more while they end."""
        for task in self._tasks:
            task.cancel()
        while self._ready:
            step = self._ready.popleft()
            if not step.cancelled():
                step._run()

    # --- what asyncio asks of a loop ------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run it after what is ready already."""
        step = _Step(self._now, callback, args, self, context)
        self._ready.append(step)
        return step

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it at a time."""
        step = _Step(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), step))
        return step

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run it after some seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return _NumberedFuture(next(self._hashes), self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **_: Any,
    ) -> asyncio.Task[Any]:
        """A task. It is kept: a killed one that is garbage collected would run its `finally`."""
        task = _NumberedTask(next(self._hashes), coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what a callback or an abandoned task raised: a defect."""
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        """Never: it would cost time and show nothing."""
        return False

    def is_running(self) -> bool:
        """Always: asyncio asks only from within."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it in the heap, where it is passed over: taking it out would cost more."""


class ProcessClock:
    """The clock of one process: its wall clock may be wrong, and jump."""

    def __init__(self, loop: VirtualLoop, ahead: float = 0.0) -> None:
        self.ahead = ahead
        """Seconds by which the wall clock is ahead."""
        self._loop = loop

    def now(self) -> dt.datetime:
        """The time on the wall clock."""
        return START + dt.timedelta(seconds=self._loop.time() + self.ahead)

    def monotonic(self) -> float:
        """Virtual seconds since the loop began; no jump of the wall clock moves them."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Wait; a process that is killed meanwhile never wakes."""
        await rest(self._loop, seconds)


async def rest(loop: VirtualLoop, seconds: float) -> None:
    """Let virtual time pass."""
    waker = loop.create_future()
    alarm = loop.call_later(max(0.0, seconds), _wake, waker)
    try:
        await waker
    finally:
        alarm.cancel()


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)
