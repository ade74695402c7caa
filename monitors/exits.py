"""Why a rank died.

Its exit code, what the kernel knows, and the tail of its log, in one careful reading.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

from monitors.exit_rules import AFTERMATH, HINT, PROOF, RULES, XID_CLASS
from monitors.failures import Failure, FailureClass

_TAIL_CHARACTERS = 65_536
_LINE_CHARACTERS = 2_000
_REASON_CHARACTERS = 300
_EVIDENCE_LINES = 5

_PREFIX = re.compile(
    r"""^(?:
        \[?rank\ ?\d+\]?:\s?
      | (?:INFO|WARNING|ERROR|CRITICAL|DEBUG)\s+[\w.]+:\d+\]\s?
      | \(\w+(?:\ pid=\d+)?(?:,\ ip=[\d.]+)?\)\s
      | \d{4}-\d\d-\d\d[T\ ][\d:.,]+Z?\s(?:-\s)?
      | \[?(?:INFO|WARNING|ERROR|CRITICAL)\]?\s[-:]\s
      | \d+:\s
    )+""",
    re.VERBOSE,
)
"""What launchers and loggers put before a line."""
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*(?P<name>[A-Z]\w*(?:Error|Exception|Interrupt|Iteration|Exit|Warning|Violation|Failure)"
    r"|[A-Z]\w*(?:NotFound|OutOfMemory|Timeout)|Exception)(?::\s?(?P<message>.*))?$"
)
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+(?:, in (?P<function>\S+))?')
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python\d|<frozen|torch/")
_XID = re.compile(r"\bXid\b\s*(?:\([^)]*\)\s*)?:?\s*(?P<code>\d{1,3})\b", re.IGNORECASE)
_USAGE = re.compile(
    r"^\S+: error: |can't open file|command not found|: not found$|Permission denied$"
)
_PROGRAMMING = {
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
    "TypeError",
    "UnboundLocalError",
    "ValueError",
    "ZeroDivisionError",
}
"""Exceptions of programs, not of machines.

What the log said before their traceback was survived.
"""
_AFTER_THE_FACT = {"ChildFailedError", "CalledProcessError", "SystemExit", "ProcessExitedException"}
"""Exceptions by which a launcher or a parent repeats that a child died."""
_EXTERNAL = {
    FailureClass.GPU_HARDWARE,
    FailureClass.GPU_INTERCONNECT,
    FailureClass.HOST_OOM,
    FailureClass.PREEMPTION,
}
"""What can end a process from outside.

Only these explain a SIGKILL or SIGTERM; a traceback in the log was survived.
"""
_BLAMES_PEERS = {
    FailureClass.NETWORK,
    FailureClass.COLLECTIVE_TIMEOUT,
    FailureClass.RENDEZVOUS,
    FailureClass.UNKNOWN,
}
"""What ranks die of that found a peer gone; one that says nothing may well be among them."""


class _Match(NamedTuple):
    weight: int
    line: int
    failure_class: FailureClass
    text: str


class _Raised(NamedTuple):
    name: str
    text: str
    line: int
    frame: str
    traceback_line: int


def classify(
    log_tail: str, code: int, *, oom_killed: bool = False, killed_by_agent: bool = False
) -> Failure | None:
    """Name the root cause of one rank's death.

    Args:
        log_tail: The end of the rank's log; only its last 64 KiB are read.
        code: Exit code; negative: killed by that signal (128 + n, as shells say it, is understood).
        oom_killed: Whether the kernel counted an OOM kill in the rank's cgroup.
        killed_by_agent: Whether our agent killed it, after a peer's death or on command.

    Returns:
        None for exit code 0; otherwise a failure, whose class is UNKNOWN where nothing speaks.
    """
    if code == 0:
        return None
    killer = _signal(code)
    if killed_by_agent:
        return _failure(FailureClass.CASCADE, "stopped by the agent", ())
    if oom_killed and killer == signal.SIGKILL:
        return _failure(FailureClass.HOST_OOM, "killed by the kernel: host memory exhausted", ())
    lines = [
        _PREFIX.sub("", line[:_LINE_CHARACTERS]).rstrip()
        for line in log_tail[-_TAIL_CHARACTERS:].splitlines()
    ]
    matches = _matches(lines)
    if killer in (signal.SIGKILL, signal.SIGTERM):
        allowed = _EXTERNAL | ({FailureClass.CASCADE} if killer == signal.SIGTERM else set())
        matches = [m for m in matches if m.failure_class in allowed]
        return _from_matches(matches) or _from_signal(killer)
    raised = _last_exception(lines)
    if raised is not None and raised.name in _PROGRAMMING:
        matches = [m for m in matches if m.line >= raised.traceback_line]
    if raised is not None and not any(m.weight > HINT or m.line == raised.line for m in matches):
        return _failure(
            FailureClass.USER_CODE, raised.text, (raised.frame, raised.text), raised.frame
        )
    found = _from_matches(matches)
    if found is not None:
        return found
    if killer is not None:
        return _from_signal(killer)
    return _unexplained(lines, code)


def root_cause(failures: Sequence[tuple[int, float, Failure]]) -> tuple[int, float, Failure]:
    """The failure that began it all: `(rank, time, failure)`, times in seconds of one clock.

    Deaths that speak for themselves come before those that blame a peer or the network, or say
    nothing, and a cascade comes last; among equals, the first in time.

    Raises:
        ValueError: there are no failures.
    """
    if not failures:
        raise ValueError("no failures to choose from; call this with at least one")
    return min(failures, key=lambda f: (_remoteness(f[2].failure_class), f[1], f[0]))


def _remoteness(failure_class: FailureClass) -> int:
    if failure_class is FailureClass.CASCADE:
        return 2
    return 1 if failure_class in _BLAMES_PEERS else 0


def _matches(lines: Sequence[str]) -> list[_Match]:
    text = "\n".join(lines)
    rules = [rule for rule in RULES if rule.needs is None or rule.needs.search(text)]
    found = []
    for number, line in enumerate(lines):
        if _FRAME.match(line):
            continue  # file and function names are no messages
        xid = _XID.search(line)
        if xid is not None:
            failure_class = XID_CLASS.get(int(xid["code"]), FailureClass.GPU_HARDWARE)
            weight = AFTERMATH if failure_class is FailureClass.CASCADE else PROOF + 1
            found.append(_Match(weight, number, failure_class, line.strip()))
            continue
        found += [
            _Match(rule.weight, number, rule.failure_class, line.strip())
            for rule in rules
            if rule.pattern.search(line)
        ]
    return found


def _from_matches(matches: Sequence[_Match]) -> Failure | None:
    if not matches:
        return None
    best = min(matches, key=lambda m: (-m.weight, m.line))
    same = [m.text for m in matches if m.failure_class is best.failure_class]
    return _failure(best.failure_class, best.text, tuple(dict.fromkeys(same)))


def _last_exception(lines: Sequence[str]) -> _Raised | None:
    """The last exception that a traceback ended with, and where the user's own code raised it."""
    found: _Raised | None = None
    frame = ""
    traceback_line: int | None = None
    for number, line in enumerate(lines):
        located = _FRAME.match(line)
        if located is not None:
            if not frame or not _LIBRARY.search(located["file"]):
                file = located["file"].rsplit("/", 1)[-1]
                frame = f"{file} in {located['function'] or '<module>'}"
            continue
        if line.startswith("Traceback (most recent call last)"):
            traceback_line = number if traceback_line is None else traceback_line
            frame = ""
        raised = _EXCEPTION.match(line.strip())
        if raised is not None and raised["name"] not in _AFTER_THE_FACT:
            start = number if traceback_line is None else traceback_line
            name = raised["name"] or ""
            found = _Raised(name, line.strip(), number, frame, start)
    return found


def _signal(code: int) -> signal.Signals | None:
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number) if number > 0 else None
    except ValueError:
        return None


def _from_signal(killer: signal.Signals) -> Failure:
    how = "killed" if killer in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP) else "ended"
    sender = ", sender unknown" if how == "killed" else ""
    return _failure(FailureClass.SIGNAL, f"{how} by {killer.name}{sender}", ())


def _unexplained(lines: Sequence[str], code: int) -> Failure:
    usage = next((line.strip() for line in reversed(lines) if _USAGE.search(line)), "")
    if usage:
        return _failure(FailureClass.USER_CODE, usage, (usage,))
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = f"; its last words: {last}" if last else "; its log is empty"
    evidence = (last,) if last else ()
    failure = _failure(FailureClass.UNKNOWN, f"exit code {code}{said}", evidence, f"exit {code}")
    return failure.model_copy(update={"code": code})


def _failure(
    failure_class: FailureClass, reason: str, evidence: tuple[str, ...], where: str = ""
) -> Failure:
    reason = reason if len(reason) <= _REASON_CHARACTERS else reason[: _REASON_CHARACTERS - 1] + "…"
    kept = tuple(line[:_REASON_CHARACTERS] for line in evidence if line)[:_EVIDENCE_LINES]
    return Failure(
        failure_class=failure_class,
        reason=reason,
        signature=":".join(filter(None, (failure_class.value, where, _normalised(reason)))),
        evidence=kept,
    )


def _normalised(reason: str) -> str:
    """Without what differs between two deaths of one cause.

    Addresses, ids, numbers, directories.
    """
    text = re.sub(r"0x[0-9a-fA-F]+", "#", reason)
    text = re.sub(r"(?:/[\w.\-]+)+/", "", text)
    text = re.sub(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", "#", text)
    text = re.sub(r"\d+(?:[.:,]\d+)*(?:e[+-]?\d+)?", "#", text)
    return " ".join(text.split())[:160]
