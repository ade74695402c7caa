"""Stragglers: a rank, or a node, that works longer at each step while the others wait for it.

The problem: in lockstep all ranks have the same step time. Single slow steps mean nothing: garbage
collection, evaluation and a long sequence hit any rank. A rank with more work is slow by design.

The design: each rank's own time a step (all parts but waiting and pauses) is compared with that of
the others over the same steps. A straggler is what the run would be faster without: the gap between
it and the next slowest rank, or between a node and the ranks of the next one. The gap must be worth
`threshold` of the step over `steps` steps, and in most windows of them the rank must show at least
half of its excess, so that load that moves from rank to rank, and rare long steps, are none.

Limits: without a measure of waiting (`run.phase("communicate")`), only the parts in
which nobody waits for others are compared: data, forward, optimizer. The time of a collective in
such a part counts as work. A rank whose share of the work is larger looks like one on a slow
machine, until it is found slow on another node too.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict, Field

from babysit.wire import Part
from monitors.step_parts import PARTS, PartWindows, Window
from monitors.types import Beat, Finding, FindingKind, Severity

WINDOWS = 12
"""Windows that are judged together."""
_RARE = 3
"""Highest windows of each rank that are left out of its usual pace."""
_PERSISTENT = 0.8
"""Share of the windows in which a straggler must show its excess."""
_HALF = 0.5
"""Part of its usual excess that counts as showing it, and below which it has recovered."""
_MOST_NODES = 0.25
"""Share of the nodes that may be odd at once: more of them are the rule, not the exception."""
_WITHOUT_WAITS = (Part.DATA, Part.FORWARD, Part.OPTIMIZER)
_OWN = tuple(part for part in PARTS if part not in {Part.WAIT, Part.PAUSED})


class StragglerSettings(BaseModel):
    """Settings of the search for stragglers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=0.05, gt=0)
    """Share of a step that the run would save. 1 of 200 machines is some 10 % slow (FAILURES.md row
    11), and NVRx calls a rank slow below 0.7 of the others' speed; half of that 10 % is noticed."""
    steps: int = Field(default=192, ge=WINDOWS)
    """Steps over which a straggler must persist: load that moves between experts moves sooner."""
    after_seconds: float = Field(default=60.0, ge=0)
    """Seconds over which it must persist, for runs with short steps."""
    warmup_steps: int = Field(default=20, ge=1)
    """First steps of an attempt that are not judged: compilers and caches warm up."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Odd:
    """Ranks that stand out, by their places in the windows."""

    places: tuple[int, ...]
    """The slowest first."""
    gap: float
    """Seconds a step that the run would save without them."""


class StragglerMonitor:
    """Compares the ranks of one run. O(ranks) a window; keeps `WINDOWS` windows."""

    def __init__(self, settings: StragglerSettings | None = None) -> None:
        self._settings = settings or StragglerSettings()
        steps = -(-self._settings.steps // WINDOWS)
        seconds = self._settings.after_seconds / WINDOWS
        self._cutter = PartWindows(steps, seconds, self._settings.warmup_steps)
        self._windows: deque[Window] = deque(maxlen=WINDOWS)
        self._attempt = 0
        self._suspect: tuple[int, int] | None = None
        """The rank that stands out, and for how many windows in a row."""
        self._told: dict[int, str] = {}
        """Ranks that a finding of this attempt named, with their node."""
        self._before: dict[int, set[str]] = {}
        """Nodes on which a rank was found slow, in all attempts."""

    @property
    def knows_one(self) -> bool:
        """True while a rank stands out: the others wait for it."""
        return bool(self._told) or self._suspect is not None

    def restart(self, attempt: int) -> None:
        """A new attempt: other processes, perhaps on other nodes. A second call changes nothing."""
        if attempt <= self._attempt:
            return
        self._attempt = attempt
        self._cutter.reset()
        self._windows.clear()
        self._suspect = None
        self._told.clear()

    def tick(
        self, now: float, beats: Sequence[Beat], nodes: Mapping[int, str], wall: float
    ) -> list[Finding]:
        """Compare the ranks by their newest beats.

        Args:
            now: Seconds on a clock that only goes forward.
            beats: The newest beat of each rank in contact.
            nodes: The node of each rank; a missing rank is alone on its node.
            wall: Unix seconds.
        """
        self.restart(max((beat.attempt for beat in beats), default=0))
        window = self._cutter.add(now, [b for b in beats if b.attempt == self._attempt])
        if window is None:
            return []
        if self._windows and self._windows[-1].ranks != window.ranks:
            self._windows.clear()
        self._windows.append(window)
        if len(self._windows) < WINDOWS or len(window.ranks) < 2:
            return []
        return self._judge(nodes, wall)

    def _judge(self, nodes: Mapping[int, str], wall: float) -> list[Finding]:
        ranks = self._windows[-1].ranks
        comparable = _OWN if all(w.waits_measured for w in self._windows) else _WITHOUT_WAITS
        values = [_sums(window, comparable) for window in self._windows]
        levels = _levels(values)
        places = [nodes.get(rank, f"rank {rank}") for rank in ranks]
        typical = median(levels)
        step = median(window.step_seconds for window in self._windows)
        self._forget_recovered(ranks, levels, typical, step)
        odd = _odd(levels, places, self._settings.threshold * step)
        first = odd.places[0] if odd is not None else 0
        shown = _windows_shown(values, first, _HALF * (levels[first] - typical))
        persists = odd is not None and shown >= _PERSISTENT * WINDOWS
        if not self._confirm(ranks[first] if persists else None, len(ranks)) or odd is None:
            return []
        case = _Case(self._windows, comparable, levels, places, odd, step, shown)
        node = nodes.get(ranks[first], "")
        elsewhere = self._before.get(ranks[first], set()) - {node}
        for place in odd.places:
            self._told[ranks[place]] = places[place]
            self._before.setdefault(ranks[place], set()).add(places[place])
        return [case.finding(self._attempt, wall, sorted(elsewhere))]

    def _confirm(self, rank: int | None, ranks: int) -> bool:
        """True if a rank has stood out for long enough, and is not known yet.

        Load that moves at random stays on one rank by chance: the fewer ranks, the longer.
        """
        if rank is None or rank in self._told:
            self._suspect = None
            return False
        times = self._suspect[1] + 1 if self._suspect and self._suspect[0] == rank else 0
        self._suspect = rank, times
        return times * math.log2(ranks) >= WINDOWS

    def _forget_recovered(
        self, ranks: Sequence[int], levels: Sequence[float], typical: float, step: float
    ) -> None:
        """A rank that is as fast as the others again is news if it gets slow once more."""
        least = _HALF * self._settings.threshold * step
        for rank, level in zip(ranks, levels, strict=True):
            if rank in self._told and level - typical < least:
                del self._told[rank]


def _sums(window: Window, parts: Sequence[Part]) -> array[float]:
    return array("d", map(sum, zip(*(window.of(part) for part in parts), strict=True)))


def _levels(columns: Sequence[Sequence[float]]) -> list[float]:
    """Each rank's usual seconds a step: its `_RARE` highest windows have its rare long steps."""
    kept = len(columns) - _RARE
    return [sum(sorted(row)[:kept]) / kept for row in zip(*columns, strict=True)]


def _windows_shown(values: Sequence[array[float]], place: int, least: float) -> int:
    """In how many windows a rank was above the median by at least this many seconds a step."""
    return sum(column[place] - median(column) >= least for column in values)


def _odd(levels: Sequence[float], nodes: Sequence[str], least: float) -> _Odd | None:
    """The slowest ranks, down to the first gap of at least this many seconds; None: no gap.

    They must be few: half of the ranks on one node, or a minority on `_MOST_NODES` of the nodes.
    """
    order = sorted(range(len(levels)), key=lambda place: -levels[place])
    most = max(1, int(_MOST_NODES * len(set(nodes))))
    seen: set[str] = set()
    for count in range(1, len(order) // 2 + 1):
        seen.add(nodes[order[count - 1]])
        if len(seen) > most:
            return None
        gap = levels[order[count - 1]] - levels[order[count]]
        if gap >= least:
            return _Odd(tuple(order[:count]), levels[order[0]] - levels[order[count]])
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Case:
    """Everything that the finding says."""

    windows: Sequence[Window]
    comparable: Sequence[Part]
    levels: Sequence[float]
    nodes: Sequence[str]
    odd: _Odd
    step: float
    shown: int

    def finding(self, attempt: int, wall: float, elsewhere: Sequence[str]) -> Finding:
        """The finding. `elsewhere`: other nodes on which the rank was slow as well."""
        first, last = self.windows[0], self.windows[-1]
        worst = self.odd.places[0]
        rank, ranks = last.ranks[worst], len(last.ranks)
        node, whole = self.nodes[worst], self._is_whole_node()
        phase, excess = self._phase()
        share = self.odd.gap / self.step
        who = f"node {node} ({len(self.odd.places)} ranks)" if whole else f"rank {rank}"
        hours = share * 24 * ranks
        reason = (
            f"{who} is slow: {phase} takes {_ms(excess)} longer a step than on the other ranks; the"
            f" other ranks wait for it for {share:.0%} of a step of {_ms(self.step)}"
            f" ({hours:.3g} rank hours a day)"
        )
        if elsewhere:
            reason += (
                f"; it was slow on {', '.join(elsewhere)} too, so its share of the work is larger"
            )
        return Finding(
            kind=FindingKind.STRAGGLER,
            severity=Severity.WARNING,
            attempt=attempt,
            rank=None if whole else rank,
            onset_step=first.first_step + 1,
            detected_step=last.step,
            onset_time=wall - (last.ended - first.begun),
            detected_time=wall,
            reason=reason,
            evidence={
                "node": node,
                "whole_node": whole,
                "phase": phase,
                "share": round(share, 4),
                "seconds_a_step": round(self.odd.gap, 6),
                "step_seconds": round(self.step, 6),
                "rank_hours_a_day": round(hours, 3),
                "score": round(median(self.levels) / self.levels[worst], 4),
                "slow_ranks": [last.ranks[place] for place in self.odd.places][:_NAMED],
                "ranks": ranks,
                "windows": f"{self.shown} of {len(self.windows)}",
                "elsewhere": list(elsewhere),
            },
        )

    def _is_whole_node(self) -> bool:
        """True if the odd ranks are all those of one node that has several."""
        names = {self.nodes[place] for place in self.odd.places}
        count = len(self.odd.places)
        return len(names) == 1 and count > 1 and self.nodes.count(names.pop()) == count

    def _phase(self) -> tuple[str, float]:
        """The part in which the slowest rank loses most, and its excess in seconds a step."""
        worst = self.odd.places[0]
        excess: dict[Part, float] = {}
        for part in self.comparable:
            levels = _levels([window.of(part) for window in self.windows])
            excess[part] = levels[worst] - median(levels)
        part = max(excess, key=lambda each: excess[each])
        divided = any(sum(window.of(Part.FORWARD)) for window in self.windows)
        name = "compute" if part is Part.OTHER and not divided else part.value
        return name, excess[part]


_NAMED = 64
"""Most slow ranks that the evidence lists."""


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
