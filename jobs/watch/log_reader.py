"""Turns the output of one rank into reports, by the patterns of a preset or of the spec. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from babysit.ring import Record
from jobs.watch.patterns import LINE
from jobs.watch.presets import Preset

SLOW_SECONDS = 0.1
"""A line that takes longer ends the reading: its pattern would hold up the agent."""
MOST_LINES = 400
"""Lines looked at in one call; of more, the newest count, since a step is best known by its last
line."""
MOST_STEPS = 10**12
"""A number beyond it is not that of a step."""
_REST = 65536
_COUNTS = re.compile(r"(?:\||batch=|iteration) *\d+/(?:\d+|\?)")
"""Bars and counters of validations, of which no preset knows the step."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ENDS = re.compile(r"[\r\n]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """The newest signs of progress in the output."""

    step: int = 0
    """0: none was seen."""
    time: float = 0.0
    """Unix seconds of the newest line that counts something, be it an evaluation or a step that was
    counted before."""
    first_step: int = 0


class _Patterns:
    """The compiled patterns of a preset."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.step = re.compile(preset.step)
        written = {
            "loss": preset.loss,
            "grad_norm": preset.grad_norm,
            "tokens": preset.tokens,
            "learning_rate": preset.learning_rate,
        }
        self.numbers = {name: re.compile(text) for name, text in written.items() if text}


class LogReader:
    """Reads the output of one rank.

    Args:
        presets: Tried in order until one has matched a step; that one is kept.
        stopwatch: Seconds of CPU time, for that of a line.
    """

    def __init__(self, presets: Sequence[Preset], stopwatch: Callable[[], float]) -> None:
        self._tried = [_Patterns(preset) for preset in presets]
        self._stopwatch = stopwatch
        self._rest = b""
        self._pending: Record | None = None
        """The newest step, until its loss or the next step is seen."""
        self._held: dict[str, float] = {}
        """Numbers that wait for the line with their step."""
        self._total: str | None = None
        self._last_line = ""
        """The newest line that counts something."""
        self._last_time = 0.0
        self.seen = Seen()
        self.trouble = ""
        """Why reading has ended; empty: it has not."""

    def feed(self, data: bytes, now: float) -> list[Record]:
        """Take output; returns the reports that it completes.

        Args:
            data: Output, cut anywhere.
            now: Unix seconds.
        """
        if not data:
            return []
        if self.trouble:  # nobody knows what the output says: any of it is a sign of life
            self._live(now)
            return []
        *lines, rest = _ENDS.split((self._rest + data).decode(errors="replace"))
        self._rest = rest.encode()[-_REST:]
        found: list[Record] = []
        for line in lines[-MOST_LINES:]:
            began = self._stopwatch()
            found += self._line(_CODES.sub("", line[: 2 * LINE])[:LINE], now)
            if self._stopwatch() - began > SLOW_SECONDS:
                self.trouble = f"a line took more than {SLOW_SECONDS} s: its patterns are too slow"
                return found
        return found

    def finish(self, now: float) -> list[Record]:
        """The last report: the rank has ended."""
        found = self.feed(b"\n", now)
        if self._held:
            found += self._complete(self._held, self._tried[0].preset)
        pending, self._pending = self._pending, None
        return [*found, pending] if pending is not None else found

    def _line(self, line: str, now: float) -> list[Record]:
        for patterns in self._tried:
            match = patterns.step.search(line)
            if match is not None:
                self._count(line, now)
                if not self._is_trained(patterns, match):
                    return []
                self._tried = [patterns]
                return self._at_step(patterns, match, line, now)
        if _COUNTS.search(line) is not None:
            self._count(line, now)
        found: list[Record] = []
        for patterns in self._tried:
            if len(self._tried) == 1 or patterns.preset.loss_first:
                found += self._without_step(patterns, line)
        return found

    def _count(self, line: str, now: float) -> None:
        """A line that counts something is a sign of life, unless it only came again."""
        if line != self._last_line:
            self._last_line = line
            self._live(now)

    def _live(self, now: float) -> None:
        if self.seen.step:
            self.seen = dataclasses.replace(self.seen, time=now)

    def _is_trained(self, patterns: _Patterns, match: re.Match[str]) -> bool:
        """False for a bar that counts something else than the steps of the training."""
        total = match.groupdict().get("total")
        if total is None:
            return True
        if self._held or (self._total is None and not patterns.preset.loss_first):
            self._total = total
        return total == self._total

    def _at_step(
        self, patterns: _Patterns, match: re.Match[str], line: str, now: float
    ) -> list[Record]:
        step = _step(match, patterns.preset)
        if step is None:
            return []
        held, self._held = (self._held if patterns.preset.loss_first else {}), {}
        numbers = held | self._numbers(patterns, line)
        if step <= self.seen.step:
            return self._complete(numbers, patterns.preset) if step == self.seen.step else []
        self.seen = Seen(step, now, self.seen.first_step or step)
        found = [] if self._pending is None else [self._pending]
        self._pending = _record(step, now, now - self._last_time if self._last_time else 0.0)
        self._last_time = now
        return found + self._complete(numbers, patterns.preset)

    def _without_step(self, patterns: _Patterns, line: str) -> list[Record]:
        """A line with numbers of the newest step."""
        numbers = self._numbers(patterns, line)
        if "loss" not in numbers:
            return []
        if patterns.preset.loss_first:
            self._held = numbers
            return []
        return self._complete(numbers, patterns.preset)

    def _complete(self, numbers: dict[str, float], preset: Preset) -> list[Record]:
        """Add numbers to the newest step; returns it once it lacks nothing."""
        if self._pending is None:
            return []
        record = self._pending._replace(**numbers)  # type: ignore[arg-type]  # names of numbers
        if preset.repeats or "loss" not in numbers:
            self._pending = record
            return []
        self._pending = None
        return [record]

    @staticmethod
    def _numbers(patterns: _Patterns, line: str) -> dict[str, float]:
        found = {}
        for name, pattern in patterns.numbers.items():
            match = pattern.search(line)
            if match is not None and (number := _number(match)) is not None:
                found[name] = number
        return found


def _step(match: re.Match[str], preset: Preset) -> int | None:
    """The step of a line; None: its pattern found something else there."""
    named = match.groupdict()
    if named.get("done"):
        return _whole(named["done"])
    step = _whole(named.get("step") or next(filter(None, match.groups()), ""))
    if step is None:
        return None
    if named.get("epoch") and named.get("length"):
        epoch, length = _whole(named["epoch"]), _whole(named["length"])
        if epoch is None or length is None:
            return None
        step += (epoch - preset.first_epoch) * length
    return step + preset.from_zero


def _whole(text: str) -> int | None:
    try:
        number = int(float(text.replace(",", "")))
    except (ValueError, OverflowError):
        return None
    return number if number < MOST_STEPS else None


def _number(match: re.Match[str]) -> float | None:
    text = next(filter(None, match.groups()), "")
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _record(step: int, now: float, seconds: float) -> Record:
    return Record(step, 0, now, None, -1.0, 0.0, seconds, 0.0, -1.0)
