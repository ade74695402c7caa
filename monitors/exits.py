"""Why a rank died: its exit code, what the kernel knows, and the tail of its log.

The problem: a log is what a program chose to print. Most of it is healthy operation in alarming
words, and the line that matters is often not the loudest one. The design: the end of the log
outranks its past. What stands before the last sign of progress was survived. The exception that
the program died of is the cause, unless its own chain, or a machine's line beside it, names a
better one; other lines count only where no general reading (severity, zero counts, negations,
retries) clears them. Which words speak for which class is data (:mod:`monitors.exit_rules`).
Limits: a log is testimony. Whatever it says, `Failure.source` stays LOG, and no node is taken from
everybody for it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from monitors.benign_lines import has_error_word
from monitors.exit_rules import RuleSet
from monitors.failures import Evidence, Failure, FailureClass
from monitors.log_evidence import Match, Reading
from monitors.rule_files import builtin_rules

_REASON_CHARACTERS = 300
_EVIDENCE_LINES = 5
_USAGE = re.compile(
    r"^babysit: cannot start |"
    r"(?:^|\s)(?!(?:srun|salloc|sbatch|slurm\w*|mpi\w+|prte?\w*|orte\w+|kernel)\b)\S+: error: "
    r"|can't open file|command not found|: not found$|Permission denied$"
)
_LAUNCHED = re.compile(r"exitcode ?: (?P<code>-?\d+)\W+local_rank: (?P<rank>\d+)")
"""How torchelastic reports a child."""
_TAKEN_BY = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
)
"""Signals that come with a preemption."""
_BLAMES_PEERS = {
    FailureClass.NETWORK,
    FailureClass.COLLECTIVE_TIMEOUT,
    FailureClass.RENDEZVOUS,
    FailureClass.UNKNOWN,
}
"""Classes of a rank that lost its peer; a rank that says nothing may be one of them."""


def classify(
    log_tail: str,
    code: int,
    *,
    oom_killed: bool = False,
    killed_by_agent: bool = False,
    own_code: bool = False,
    rules: RuleSet | None = None,
) -> Failure | None:
    """Name the root cause of one rank's death.

    Args:
        log_tail: The end of the rank's log; only its last 256 KiB are read.
        code: Exit code; negative: killed by that signal (128 + n, as shells say it, is understood).
        oom_killed: True if the kernel counted an OOM kill in the rank's cgroup.
        killed_by_agent: True if our agent killed it, after a peer's death or on command.
        own_code: True if the program itself returned the code, so that 143 does not mean SIGTERM.
        rules: Which words speak for which class. None: those that come with babysit.

    Returns:
        None for exit code 0; otherwise a failure, whose class is UNKNOWN where nothing speaks.
    """
    if code == 0:
        return None
    killer = None if own_code else _signal(code)
    if killed_by_agent:
        return _failure(FailureClass.CASCADE, "stopped by the agent", (), Evidence.EXIT)
    if oom_killed and killer == signal.SIGKILL:
        reason = "killed by the kernel: host memory exhausted"
        return _failure(FailureClass.HOST_OOM, reason, (), Evidence.KERNEL)
    reading = Reading(log_tail, rules or builtin_rules())
    if killer in (signal.SIGKILL, signal.SIGTERM):
        return _with_code(_from_outside(reading, killer), code)
    match = reading.cause()
    if match is not None:
        return _from_match(match, reading, killer)
    if reading.death is not None:
        raised = reading.death.last
        evidence = (raised.frame, raised.text)
        return _failure(FailureClass.USER_CODE, raised.text, evidence, where=raised.frame)
    if killer is not None:
        return _with_code(_from_signal(killer), code)
    return _unexplained(reading, code)


def _with_code(failure: Failure, code: int) -> Failure:
    """The failure of a death by a signal; where only a shell tells of the signal, with its code.

    A preemption that the log tells of is believed with a signal that was seen, not with that code.
    """
    if code < 0:
        return failure
    is_told = failure.failure_class is FailureClass.PREEMPTION
    source = Evidence.LOG if is_told else failure.source
    return failure.model_copy(update={"code": code, "source": source})


def ends_in_traceback(log_tail: str, rules: RuleSet | None = None) -> bool:
    """True if an uncaught exception is the last thing that a program said.

    A traceback that was printed and survived has something behind it. Warnings of libraries on
    their way out do not count as such.
    """
    return Reading(log_tail, rules or builtin_rules()).ends_in_traceback


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


def _from_outside(reading: Reading, killer: signal.Signals) -> Failure:
    """Death by SIGKILL or SIGTERM: a traceback in the log was survived."""
    match = reading.outside_cause(with_cascade=killer == signal.SIGTERM)
    return _from_match(match, reading, killer) if match is not None else _from_signal(killer)


def _from_match(match: Match, reading: Reading, killer: signal.Signals | None) -> Failure:
    launched = _LAUNCHED.search(match.text)
    reason = _launched(launched) if launched is not None else match.text
    is_told = match.failure_class is FailureClass.PREEMPTION and killer in _TAKEN_BY
    source = Evidence.EXIT if is_told else Evidence.LOG
    evidence = tuple(dict.fromkeys((match.text, *reading.texts_for(match.failure_class))))
    failure = _failure(match.failure_class, reason, evidence, source)
    return failure.model_copy(update={"advice": match.action})


def _launched(found: re.Match[str]) -> str:
    code, rank = int(found["code"]), found["rank"]
    killer = _signal(code)
    end = f"was ended by {killer.name}" if killer is not None else f"exited with code {code}"
    return f"local rank {rank} {end}, says its launcher"


_HARMLESS_SIGNALS = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    }
)
"""Signals that end no process by default (signal(7)): 128 plus their number is a program's own."""


def _signal(code: int) -> signal.Signals | None:
    """The signal that an exit code stands for; None for a program's own code, such as 255."""
    number = -code if code < 0 else code - 128
    try:
        found = signal.Signals(number) if number > 0 else None
    except ValueError:
        return None
    own = code > 0 and (found in _HARMLESS_SIGNALS or number >= signal.SIGRTMIN)
    return None if own else found


def _from_signal(killer: signal.Signals) -> Failure:
    how = "killed" if killer in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP) else "ended"
    sender = ", sender unknown" if how == "killed" else ""
    return _failure(FailureClass.SIGNAL, f"{how} by {killer.name}{sender}", (), Evidence.EXIT)


def _unexplained(reading: Reading, code: int) -> Failure:
    lines = reading.telling_lines()
    usage = next((line for line in reversed(lines) if _USAGE.search(line)), "")
    if usage:
        return _failure(FailureClass.USER_CODE, usage, (usage,))
    last = lines[-1] if lines else ""
    said = f"; its last words: {last}" if last else "; its log is empty"
    evidence = (last,) if last else ()
    reason = f"exit code {code}{said}"
    failure = _failure(FailureClass.UNKNOWN, reason, evidence, Evidence.EXIT)
    # Chatter makes a poor signature: the last line printed differs from death to death.
    told = f":{_normalised(last)}" if has_error_word(last) else ""
    signature = f"{FailureClass.UNKNOWN.value}:exit {code}{told}"
    return failure.model_copy(update={"code": code, "signature": signature})


def _failure(
    failure_class: FailureClass,
    reason: str,
    evidence: Sequence[str],
    source: Evidence = Evidence.LOG,
    where: str = "",
) -> Failure:
    reason = reason if len(reason) <= _REASON_CHARACTERS else reason[: _REASON_CHARACTERS - 1] + "…"
    kept = tuple(line[:_REASON_CHARACTERS] for line in evidence if line)[:_EVIDENCE_LINES]
    return Failure(
        failure_class=failure_class,
        reason=reason,
        signature=":".join(filter(None, (failure_class.value, where, _normalised(reason)))),
        evidence=kept,
        source=source,
    )


def _normalised(reason: str) -> str:
    """Without what differs between two deaths of one cause.

    Addresses, ids, numbers, directories.
    """
    text = re.sub(r"0x[0-9a-fA-F]+", "#", reason)
    text = re.sub(r"(?:[\w.+-]+://)?(?:/[\w.\-]+)+/", "", text)
    text = re.sub(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b", "#", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b", "#", text)
    text = re.sub(r"\d+(?:[.:,]\d+)*(?:e[+-]?\d+)?", "#", text)
    return " ".join(text.split())[:160]
