"""Weighs what a log says: which of its lines explain the death of the program that wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from monitors.benign_lines import is_harmless, looks_like_error, was_survived
from monitors.exit_rules import RuleSet, Strength
from monitors.failures import Advice, FailureClass
from monitors.log_lines import LogLevel, LogLine, read_lines
from monitors.tracebacks import WRAPPERS, Death, find_tracebacks

TAIL_CHARACTERS = 262_144
"""Of a longer log the beginning is not read."""
_LINE_CHARACTERS = 600
"""Of a longer line the rest is not searched for words."""
_SEARCHED_CHARACTERS = 40_000
"""Of all lines that may explain a death, from the end: about 400 lines, half a second."""
_TELLING_LINES = 200
_PROGRAMMING = frozenset(
    {
        "AssertionError",
        "AttributeError",
        "FileNotFoundError",
        "ImportError",
        "IndentationError",
        "IndexError",
        "KeyError",
        "ModuleNotFoundError",
        "NameError",
        "NotImplementedError",
        "RecursionError",
        "SyntaxError",
        "TabError",
        "TypeError",
        "UnboundLocalError",
        "ValueError",
        "ZeroDivisionError",
    }
)
"""Exceptions of programs, not of machines: no line beside their traceback explains them better."""
_EXTERNAL = frozenset(
    {
        FailureClass.GPU_HARDWARE,
        FailureClass.GPU_INTERCONNECT,
        FailureClass.HOST_OOM,
        FailureClass.PREEMPTION,
        FailureClass.WORKER_LOST,
    }
)
"""Classes that end a process from outside: only these explain a SIGKILL or SIGTERM."""
_EXPLAINED_FROM_OUTSIDE = frozenset({FailureClass.DATA_LOADER, FailureClass.CUDA_USER_BUG})
"""Classes of exceptions that a machine's word about the same death overrules: a loader that was
killed for memory, a kernel that failed on a broken GPU."""
_NATIVE = re.compile(r"\bNCCL\b|\.(?:cpp|cc|cu|h):\d")
"""Signs of a library in native code, which may log after the interpreter has died."""
_VICTIMS = frozenset({FailureClass.CASCADE, FailureClass.SIGNAL})


class Match(NamedTuple):
    """A line that speaks for a class."""

    strength: int
    line: int
    failure_class: FailureClass
    text: str
    action: Advice | None


class Reading:
    """One log, read against one set of rules."""

    def __init__(self, log: str, rules: RuleSet) -> None:
        self._lines = read_lines(log[-TAIL_CHARACTERS:])
        self._rules = rules
        found = find_tracebacks(self._lines)
        self._deaths, self._source = found.deaths, found.source_lines
        self._boxed = found.boxed_lines
        text = "\n".join(
            line.text for number, line in enumerate(self._lines) if number not in self._source
        )
        self._wanted = rules.wanted(text + log[-TAIL_CHARACTERS:])
        self._known: dict[tuple[int, bool], list[Match]] = {}
        self._raised = {number for death in self._deaths for number in _members(death)}

    @cached_property
    def death(self) -> Death | None:
        """The program's own account of its death: the last traceback, as a rule.

        Where the tracebacks of several ranks stand together, the first that blames no peer.
        """
        deaths = [d for d in self._deaths if d.last.name not in WRAPPERS] or [
            d for d in self._deaths if self._of_death(d) is not None
        ]
        if not deaths:
            return None
        final = deaths[-1]
        together = [d for d in deaths if not self._progress_between(d.end, final.start)]
        of_rank = {death.last.rank: death for death in together}
        several = len(of_rank) > 1
        candidates = sorted(of_rank.values(), key=lambda d: d.start) if several else [final]
        for death in candidates if several else [*candidates, *reversed(together[:-1])]:
            if not self._blames_others(death):
                return death
        return final

    @property
    def ends_in_traceback(self) -> bool:
        """True if the program said nothing behind the last traceback.

        A line of success or of normal operation shows that it went on; the chatter of libraries on
        their way out does not.
        """
        if not self._deaths:
            return False
        behind = [
            line
            for number, line in enumerate(self._lines)
            if number > self._deaths[-1].end and number not in self._source - self._boxed
        ]
        return not any(
            any(c.isalnum() for c in line.text)
            and (line.level >= LogLevel.PLAIN or _is_own_info(line))
            and not self._rules.is_harmless(line.text)
            for line in behind
        )

    def cause(self) -> Match | None:
        """The line that explains the death; None where none does, or the exception speaks alone."""
        death = self.death
        if death is None:
            near = self._beside(0, self._zone_end, plain=True)
            return _heaviest(near) or _heaviest(self._quoted())
        own = self._of_death(death)
        if own is not None and own.strength > Strength.SYMPTOM:
            if own.failure_class not in _EXPLAINED_FROM_OUTSIDE:
                return own
            better = [m for m in self._beside(death.start, death.end) if self._is_outside(m)]
            return _heaviest(better) or own
        if own is None and death.last.name in _PROGRAMMING:
            return None
        others = self._beside(death.start, death.end)
        if own is None:
            # Who raised something of its own is not explained by what its program printed.
            others = [match for match in others if self._is_graver(match.line)]
        limit = own.strength if own is not None else Strength.SYMPTOM
        others = [match for match in others if match.strength > limit]
        return _heaviest(others) or own

    def outside_cause(self, *, with_cascade: bool) -> Match | None:
        """The line that explains an end from outside (SIGKILL, SIGTERM)."""
        allowed = _EXTERNAL | ({FailureClass.CASCADE} if with_cascade else frozenset())
        near = self._beside(0, self._zone_end, plain=True)
        return _heaviest(m for m in near if m.failure_class in allowed) or _heaviest(
            m for m in self._quoted() if m.failure_class in _EXTERNAL
        )

    def texts_for(self, failure_class: FailureClass) -> list[str]:
        """Lines near the end that speak for a class."""
        matches = self._beside(0, self._zone_end, plain=True)
        return [match.text for match in matches if match.failure_class is failure_class]

    def telling_lines(self) -> list[str]:
        """The lines of the log besides bars, steps, drawings and chatter.

        Only lines with a word such as error, where there are some.
        """
        kept = [
            line
            for number, line in [*enumerate(self._lines)][-_TELLING_LINES:]
            if (number not in self._source or number in self._boxed)
            and any(c.isalnum() for c in line.text)
            and not line.is_progress
            and line.level >= LogLevel.PLAIN
            and not self._rules.is_harmless(line.text)
            and not (is_harmless(line) or was_survived(line))
        ]
        errors = [line for line in kept if looks_like_error(line)]
        chosen = errors or kept or [line for line in self._lines if line.is_progress]
        return [line.text.strip(" │┃") for line in chosen]

    # --- lines --------------------------------------------------------------------------------

    @property
    def _zone_end(self) -> int:
        return len(self._lines)

    def _beside(self, start: int, end: int, *, plain: bool = False) -> list[Match]:
        """Matches since the last progress before `start` (or in all, before the end).

        Args:
            start: First line of the death; 0: there is none.
            end: Its last line.
            plain: True if lines count that are neither a machine's nor say that they are errors.
        """
        begin = self._after_progress(start or end)
        return self._matches(
            number
            for number in range(len(self._lines) - 1, begin - 1, -1)
            if plain or self._may_explain(self._lines[number])
        )

    def _matches(self, numbers: Iterable[int]) -> list[Match]:
        """Matches of lines, given from the last to the first; in the order of the log.

        Only the last `_SEARCHED_CHARACTERS` are searched: an agent that reports a death has no time
        for more, and the end outranks the past.
        """
        found: list[Match] = []
        left = _SEARCHED_CHARACTERS
        for number in numbers:
            if number in self._source or number in self._raised:
                continue
            left -= min(len(self._lines[number].text), _LINE_CHARACTERS)
            if left < 0:
                break
            found += self._of_line(number)
        return sorted(found, key=lambda match: match.line)

    def _is_graver(self, number: int) -> bool:
        line = self._lines[number]
        return line.is_machine or line.level >= LogLevel.ERROR

    @staticmethod
    def _may_explain(line: LogLine) -> bool:
        return line.is_machine or line.level >= LogLevel.ERROR or looks_like_error(line)

    def _after_progress(self, before: int) -> int:
        """The line after the last progress before a line."""
        for number in range(min(before, len(self._lines)) - 1, -1, -1):
            if self._lines[number].is_progress and number not in self._raised:
                return number + 1
        return 0

    def _progress_between(self, start: int, end: int) -> bool:
        return any(line.is_progress for line in self._lines[start + 1 : end])

    def _quoted(self) -> list[Match]:
        """Matches in lines of machines anywhere in the log, for a program silent about its end.

        Output that a program buffered may come after them and look like progress.
        """
        numbers = (n for n in range(len(self._lines) - 1, -1, -1) if self._lines[n].is_machine)
        return [match for match in self._matches(numbers) if match.strength >= Strength.SYMPTOM]

    def _of_line(self, number: int, *, is_raised: bool = False) -> list[Match]:
        key = (number, is_raised)
        if key not in self._known:
            self._known[key] = self._read_line(number, is_raised=is_raised)
        return self._known[key]

    def _read_line(self, number: int, *, is_raised: bool) -> list[Match]:
        line = self._lines[number]
        text = line.text.strip()[:_LINE_CHARACTERS]
        if self._rules.is_harmless(text) or (not is_raised and is_harmless(line)):
            return []
        xid = self._rules.xid_class(text)
        if xid is not None:
            return [] if xid == "harmless" else [_xid(xid, number, text)]
        survived = not is_raised and was_survived(line)
        return [
            Match(rule.strength, number, rule.failure_class, text, rule.action)
            for rule in self._wanted
            if rule.failure_class is not None
            and (is_raised or line.level >= rule.level)
            # Who reports a preemption goes on: "… is preempted, retrying".
            and (not survived or rule.failure_class is FailureClass.PREEMPTION)
            and rule.matches(text)
        ]

    def _is_outside(self, match: Match) -> bool:
        machine = self._lines[match.line].is_machine
        return machine and match.strength >= Strength.PROOF and match.failure_class in _EXTERNAL

    # --- exceptions ---------------------------------------------------------------------------

    def _of_death(self, death: Death) -> Match | None:
        """The cause that an exception, or the chain it ends, names."""
        by_link = [
            _heaviest(m for n in raised.lines for m in self._of_line(n, is_raised=True))
            for raised in death.chain
        ]
        found = [match for match in by_link if match is not None]
        if not found:
            return None
        last = by_link[-1]
        if not death.is_direct and last is not None and last.strength > Strength.SYMPTOM:
            return last
        return _heaviest(found)

    def _blames_others(self, death: Death) -> bool:
        match = self._of_death(death)
        if match is None:
            return False
        return match.strength <= Strength.SYMPTOM or match.failure_class in _VICTIMS


def _is_own_info(line: LogLine) -> bool:
    """True for what a program logs of its normal course, as libraries in native code do not."""
    return line.level is LogLevel.INFO and _NATIVE.search(line.text) is None


def _members(death: Death) -> Iterable[int]:
    return (number for raised in death.chain for number in raised.lines)


def _heaviest(matches: Iterable[Match]) -> Match | None:
    """The strongest match, the first of equals."""
    return min(matches, key=lambda match: (-match.strength, match.line), default=None)


def _xid(failure_class: FailureClass, number: int, text: str) -> Match:
    is_cascade = failure_class is FailureClass.CASCADE
    strength = Strength.AFTERMATH if is_cascade else Strength.PROOF + 1
    return Match(strength, number, failure_class, text, None)
