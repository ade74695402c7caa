"""Contact with agents, judged by time in which the server could listen.

The problem: a server that is starved, paused or behind with its work reads nothing. Judged by a
clock of its own, every healthy agent is then silent, and every run hangs.

The design: silence counts on the time of :class:`Attention`, which advances by little between two
turns of the event loop, however much time went by. An agent whose frames this server itself does
not read (`hold`) is never silent. Heartbeats that come late say where the ranks were long ago, and
not where they are: the look for hangs leaves them out (:meth:`AgentContact.late`).

Limits: real silence is noticed later on a server that is behind, by as much as it is behind.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from jobs.clock import Clock

LOOK_SECONDS = 0.5
"""Interval of the looks at the event loop."""
MOST_SECONDS = 1.0
"""Time between two looks that counts as listening, at most."""
LAG_LOOKS = 120
"""Looks of which the longest lag is shown: a minute of a server that is well."""
LARGE_LAG_SECONDS = 2.0
"""A lag that is shown to people: otherwise a dead rank is detected in 0.1 s."""
LATE_SECONDS = 3.0
"""Delay of a heartbeat, beyond the least of the last minute, from which it is an old one."""
_DELAYS_KEPT = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Lag:
    """How far a server is behind with its work, seconds."""

    queue: float = 0.0
    """How long the oldest request or report waits for its transaction, or for the one under way."""
    loop: float = 0.0
    """The longest delay of the event loop in the last minute."""

    @property
    def sentence(self) -> str:
        """The lag for people; empty while both are below `LARGE_LAG_SECONDS`."""
        late = []
        if self.queue >= LARGE_LAG_SECONDS:
            late.append(f"the oldest report or request waits for {self.queue:.0f} s")
        if self.loop >= LARGE_LAG_SECONDS:
            late.append(f"the event loop was up to {self.loop:.0f} s late in the last minute")
        return "; ".join(late)


class Attention:
    """A clock that advances only while the server listens, and the lag of its event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listened = 0.0
        self._looked = clock.monotonic()
        self._lags: deque[float] = deque(maxlen=LAG_LOOKS)

    def now(self) -> float:
        """Seconds in which the server could listen; only differences have a meaning."""
        return self._listened + self._since()

    @property
    def lag(self) -> float:
        """Longest delay of the event loop at the last looks, seconds."""
        overdue = self._clock.monotonic() - self._looked - LOOK_SECONDS
        return max(0.0, overdue, *self._lags)

    async def keep(self) -> None:
        """Look at the event loop, again and again, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self._lags.append(max(0.0, self._clock.monotonic() - self._looked - LOOK_SECONDS))
            self._listened += self._since()
            self._looked = self._clock.monotonic()

    def _since(self) -> float:
        return min(max(0.0, self._clock.monotonic() - self._looked), MOST_SECONDS)


@dataclasses.dataclass(slots=True)
class _Heard:
    """Signs of life of one agent."""

    at: float
    """When it was last heard of, on the time of `Attention`."""
    held: int = 0
    """How many connections of the agent this server has ceased to read."""
    delays: deque[float] = dataclasses.field(
        default_factory=lambda: deque[float](maxlen=_DELAYS_KEPT)
    )
    """Arrival less sending of the last heartbeats, each by its own clock, seconds."""
    ever: bool = False
    """True once it was heard of under this lead."""


class AgentContact:
    """When each agent was last heard of. Kept in memory: a new leader counts from its beginning."""

    def __init__(self, attention: Attention, clock: Clock) -> None:
        self._attention, self._clock = attention, clock
        self._agents: dict[str, _Heard] = {}

    def restart(self, workers: list[str]) -> None:
        """Forget everything, and count the silence of these workers from now on."""
        now = self._attention.now()
        held = {name: heard.held for name, heard in self._agents.items()}
        self._agents = {name: _Heard(now, held.get(name, 0)) for name in workers}

    def heard_of(self, worker: str) -> None:
        """Note a sign of life of a worker."""
        heard = self._of(worker)
        heard.at, heard.ever = self._attention.now(), True

    def heartbeat(self, worker: str, sent_at: float) -> None:
        """Note a heartbeat that was sent at `sent_at`, Unix seconds on the agent's clock."""
        heard = self._of(worker)
        heard.at, heard.ever = self._attention.now(), True
        heard.delays.append(self._clock.now().timestamp() - sent_at)

    def ever_heard(self, worker: str) -> bool:
        """True if this leader has ever heard of the worker."""
        return self._of(worker).ever

    def late(self, worker: str) -> bool:
        """True if the newest heartbeat waited somewhere: it tells of the past.

        The clocks need not agree: the least delay of the last minute is the measure. A jump of
        either clock passes for lateness for a minute at most.
        """
        delays = self._of(worker).delays
        return bool(delays) and delays[-1] - min(delays) > LATE_SECONDS

    def hold(self, worker: str) -> None:
        """This server ceases to read what the worker sends, as it is behind with its reports."""
        self._of(worker).held += 1

    def unhold(self, worker: str) -> None:
        """This server reads again what the worker sends."""
        heard = self._of(worker)
        heard.held = max(0, heard.held - 1)
        heard.at = self._attention.now()

    def silence(self, worker: str) -> float:
        """Seconds of listening since the last sign of life of a worker; 0 while it is held.

        A worker that was never heard of counts from the first call.
        """
        heard = self._of(worker)
        return 0.0 if heard.held else self._attention.now() - heard.at

    def forget(self, worker: str) -> None:
        """Forget a worker that is over."""
        self._agents.pop(worker, None)

    def _of(self, worker: str) -> _Heard:
        if worker not in self._agents:
            self._agents[worker] = _Heard(self._attention.now())
        return self._agents[worker]
