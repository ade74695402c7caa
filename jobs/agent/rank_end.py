"""How a rank ended: its exit code, held against its own word and its log.

The exit code is that of the command, which may be a shell around the training (`python train.py |
tee log`). So where the script joined with `babysit.init()`, its end counts only with its word: the
loop of `steps()` ended, `finish()` was called, or the interpreter ended in good order.

After that the libraries are torn down, which crashes often enough: the work is done then, and a
restart would repeat it only to crash there again.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import signal

from babysit.wire import Note
from monitors.exit_rules import RuleSet
from monitors.exits import classify, ends_in_traceback
from monitors.failures import Evidence, Failure, FailureClass

_CRASHES = {
    each.value: each.name
    for each in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
}
"""Signals that a process gets for its own faults."""


@dataclasses.dataclass(slots=True)
class RankWords:
    """The notes in which a rank spoke of itself, summed up."""

    joined: bool = False
    """The rank called `babysit.init()`."""
    finished: bool = False
    """The training loop ended, and no other one has begun."""
    left: bool = False
    """The training loop was left before its end: by `break`, `return` or an exception."""
    error: str = ""
    """Type of the exception that ended its interpreter, or that its exit with 0 hid."""
    trace: str = ""
    """Traceback of that exception; a log may lack it."""
    code: int | None = None
    """Exit code of the process as far as known; None: the interpreter did not end in good order."""
    recorded: str = ""
    """Message and time of the exception in the error file of torch's `@record`."""
    handled: tuple[int, ...] = ()
    """Signals that had handlers of the script's own when the interpreter ended."""

    def hear(self, line: str) -> None:
        """Take a line of the notes; a line that is not a note changes nothing."""
        try:
            note = json.loads(line)
            kind = note["kind"]
        except (ValueError, KeyError, TypeError):
            return
        if kind == Note.STARTED:  # perhaps of a process after the first one
            self.joined, self.error, self.code = True, "", None
            self.trace = ""
            self.finished = self.left = False
        elif kind == Note.LOOPING:  # perhaps a loop after the first one
            self.finished = self.left = False
        elif kind == Note.LEFT:
            self.left = True
        elif kind == Note.FINISHED:
            self.finished = True
        elif kind == Note.RAISED:
            self.error, self.trace = str(note.get("error", "")), str(note.get("trace", ""))
        elif kind == Note.EXITING:
            self.error, self.code = str(note.get("error", "")), int(note.get("code", 0))
            self.trace = str(note.get("trace", "")) or self.trace
            self.handled = tuple(note.get("handled", ()))

    def read_error_file(self, text: str) -> None:
        """Take the exception that torch's `@record` wrote, if the rank has named none itself."""
        try:
            message = json.loads(text)["message"]
            trace = str(message["extraInfo"]["py_callstack"])
            seconds = float(message["extraInfo"]["timestamp"])
            at = dt.datetime.fromtimestamp(seconds, dt.UTC)
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            return
        self.recorded = f"{message.get('message', '')} (recorded at {at:%Y-%m-%d %H:%M:%S} UTC)"
        if not self.trace:
            self.error, self.trace = str(message.get("message", "")).partition(":")[0], trace

    @property
    def is_done(self) -> bool:
        """True if the training loop came to its end, and was not left before."""
        return self.finished and not self.left

    def crash_after_end(self, code: int) -> str:
        """Describes a crash when nothing was left to do; empty: it was another end.

        The training loop had ended, and then the interpreter in good order, with code 0. A process
        that is killed from outside is not meant.

        Args:
            code: The exit code of the command; 128 and more may be a shell's word for a signal.
        """
        crash = _crash(code)
        if not crash or not self.is_done or self.error or self.code != 0:
            return ""
        return f"ended by {crash} after its script had ended"

    @property
    def raised(self) -> str:
        """The last line of that traceback; empty: there was no exception."""
        return next(reversed(self.trace.splitlines()), "")

    def completed(self, log: str) -> str:
        """The end of a log, with the traceback where the log lacks it."""
        return log if not self.raised or self.raised in log else f"{log}\n{self.trace}"

    def is_own(self, code: int, *, wrapped: bool) -> bool:
        """True if the rank returned an exit code itself, and no signal is behind it.

        128 plus the number of a signal may be a shell's word for a death by that signal, or that of
        a handler of the script's own, which ends so when the signal comes.

        Args:
            code: The exit code of the command; negative: a signal.
            wrapped: The process that joined is not the command itself.
        """
        if code < 0 or not self.joined or code - 128 in self.handled:
            return False
        return self.code == code if wrapped else True


def failure_to_start(rank: int, kind: FailureClass, why: str, *, final: bool = False) -> Failure:
    """The failure of a rank that has no process; `final`: no other try can mend it."""
    reason = f"rank {rank} could not be started: {why}"
    return Failure(failure_class=kind, reason=reason, signature=f"{kind}:start", final=final)


def other_version(rank: int, why: str) -> Failure:
    """The failure of a rank whose interpreter has another version of babysit; final."""
    reason = (
        f"rank {rank} uses another version of babysit than its agent ({why}): install the same"
        " version for the interpreter of the command"
    )
    signature = f"{FailureClass.USER_CODE.value}:version"
    return Failure(
        failure_class=FailureClass.USER_CODE, reason=reason, signature=signature, final=True
    )


def failure_behind_zero(
    words: RankWords, log: str, rules: RuleSet | None, *, wrapped: bool
) -> Failure | None:
    """Why a rank failed although its command exited with code 0; None: it ended well.

    Args:
        words: What the rank said.
        log: The end of its log.
        rules: As for :func:`monitors.exits.classify`.
        wrapped: The process that joined is not the command itself: its exit code was not seen.
    """
    if words.error or words.code:
        found = classify(words.completed(log), words.code or 1, rules=rules)
        return None if found is None else _behind_zero(found)
    if not words.joined:
        # Nobody knows whether the work was done: the run fails, and is never started again for it.
        return _final(classify(log, 1, rules=rules)) if ends_in_traceback(log, rules) else None
    if words.code == 0:
        return None
    if ends_in_traceback(log, rules):
        found = classify(log, 1, rules=rules)
        return None if found is None else _behind_zero(found)
    if words.finished or not wrapped:
        return None  # its own `os._exit(0)` is its own word
    return _vanished(FailureClass.USER_CODE if words.left else FailureClass.UNKNOWN)


def after_the_loop(words: RankWords, failure: Failure | None, code: int) -> Failure | None:
    """The failure, as the script's own if the process crashed when its training loop had ended.

    Nothing moves on then: each restart comes to the same place, and another node changes nothing.
    """
    crash = _crash(code)
    if failure is None or failure.failure_class is not FailureClass.SIGNAL or not crash:
        return failure
    if not words.is_done:
        return failure
    return failure.model_copy(
        update={
            "failure_class": FailureClass.USER_CODE,
            "reason": f"{failure.reason} after the training loop had ended",
            "signature": f"{FailureClass.USER_CODE.value}:{crash} after the loop",
        }
    )


def _crash(code: int) -> str:
    """The signal of a crash that an exit code stands for; 128 and more are a shell's word."""
    return _CRASHES.get(-code if code < 0 else code - 128, "")


def _behind_zero(found: Failure) -> Failure:
    return found.model_copy(update={"reason": f"{found.reason} (its command exited with code 0)"})


def _final(found: Failure | None) -> Failure | None:
    if found is None:
        return None
    reason = f"the command exited with code 0, but its log ends in a traceback: {found.reason}"
    return found.model_copy(update={"reason": reason, "final": True})


def _vanished(failure_class: FailureClass) -> Failure:
    """The failure of a rank that recorded no end, such as after `os._exit(1)` or a signal.

    A signal in the middle of the loop gives Python no time to leave the loop. Who left it first
    ended the process by its own code.
    """
    reason = (
        "the training process ended without a word, while the command around it exited with code 0"
    )
    return Failure(
        failure_class=failure_class,
        reason=reason,
        signature=f"{failure_class.value}:no word",
        source=Evidence.EXIT,
    )
