"""How a rank ended: exit code 0 is a success only with the rank's own word."""

from __future__ import annotations

import json

import pytest

from jobs.agent.rank_end import RankWords, after_the_loop, failure_behind_zero
from monitors.exits import classify
from monitors.failures import FailureClass

CRASH = (
    "step 14 loss 2.9\n"
    "Traceback (most recent call last):\n"
    '  File "train.py", line 12, in <module>\n'
    "    raise ValueError('shard 3 is short')\n"
    "ValueError: shard 3 is short\n"
)
SURVIVED = (
    CRASH.replace("ValueError", "ConnectionError") + "retrying in 5 s\nstep 15 loss 2.8\ndone\n"
)
LEAK = (
    "/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: "
)
LEAK += "There appear to be 1 leaked semaphore objects to clean up at shutdown\n"


NCCL = "node-1:12:34 [0] NCCL INFO comm 0x55 rank 0 nranks 8 cudaDev 0 - Abort COMPLETE\n"


def words(*notes: dict[str, object]) -> RankWords:
    said = RankWords()
    for note in notes:
        said.hear(json.dumps(note))
    return said


STARTED, FINISHED = {"kind": "started"}, {"kind": "finished", "step": 20}
LOOPING, LEFT = {"kind": "looping", "step": 0}, {"kind": "left", "step": 14}


def exiting(error: str = "", code: int = 0) -> dict[str, object]:
    return {"kind": "exiting", "error": error, "code": code}


# Notes, log, whether the command is a wrapper: all of these are good ends.
GOOD = {
    "a script without babysit": (words(), "done\n", True),
    "a traceback that was survived": (words(), SURVIVED, True),
    "a traceback that was survived, then a word": (words(), CRASH + "done\n", True),
    "a traceback that was survived, then a result": (words(), CRASH + "accuracy: 0.93\n", True),
    "a traceback that was survived, then a log line": (
        words(),
        CRASH + "2026-11-29 10:00:00,123 - INFO - training finished\n",
        True,
    ),
    "a full loop": (words(STARTED, FINISHED, exiting()), "", False),
    "an early return": (words(STARTED, exiting()), "", True),
    "the interpreter ends in good order": (words(STARTED, exiting()), SURVIVED, True),
    "os._exit(0) after the loop": (words(STARTED, FINISHED), "", True),
    "os._exit(0) of its own": (words(STARTED), "", False),
    "break": (words(STARTED, LOOPING, LEFT, exiting()), "", True),
    "break and os._exit(0) of its own": (words(STARTED, LOOPING, LEFT), "", False),
    "a second process after one that failed": (
        words(STARTED, exiting("ValueError"), STARTED, FINISHED, exiting()),
        "done\n",
        True,
    ),
}
# … and the reason of each that is not.
BAD = {
    "an uncaught exception behind a pipe": (
        words(STARTED, exiting("ValueError")),
        CRASH,
        True,
        "ValueError: shard 3 is short",
    ),
    "sys.exit(3) behind a pipe": (
        words(STARTED, exiting(code=3)),
        "config error: no such data set\n",
        True,
        "exit code 3; its last words: config error",
    ),
    "no word inside a wrapper": (words(STARTED), "step 14\n", True, "ended without a word"),
    "no word, and a traceback": (words(STARTED), CRASH, False, "ValueError: shard 3 is short"),
    "os._exit(1) after an exception that was told in other words": (
        words(STARTED, LOOPING, LEFT),
        "fatal: shard 7 is missing\n",
        True,
        "ended without a word",
    ),
    "killed in the second of two loops": (
        words(STARTED, LOOPING, FINISHED, LOOPING),
        "step 14\n",
        True,
        "ended without a word",
    ),
    "os._exit(1) behind a traceback after the loop": (
        words(STARTED, LOOPING, FINISHED),
        CRASH,
        True,
        "ValueError: shard 3 is short",
    ),
    "a traceback with a warning behind it": (
        words(STARTED),
        CRASH + LEAK,
        True,
        "ValueError: shard 3 is short",
    ),
}


@pytest.mark.parametrize(("said", "log", "wrapped"), GOOD.values(), ids=GOOD.keys())
def test_a_good_end_is_a_success(said: RankWords, log: str, wrapped: bool) -> None:
    assert failure_behind_zero(said, log, None, wrapped=wrapped) is None


@pytest.mark.parametrize(("said", "log", "wrapped", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_end_behind_exit_code_0_is_a_failure(
    said: RankWords, log: str, wrapped: bool, reason: str
) -> None:
    failure = failure_behind_zero(said, log, None, wrapped=wrapped)
    assert failure is not None
    assert reason in failure.reason
    assert not failure.final


@pytest.mark.parametrize("log", [CRASH, CRASH + LEAK, CRASH + NCCL])
def test_a_script_without_babysit_whose_log_ends_in_a_traceback_fails_for_good(log: str) -> None:
    """Whether its work was done nobody knows: it is not begun again."""
    failure = failure_behind_zero(words(), log, None, wrapped=True)
    assert failure is not None
    assert failure.final
    assert failure.failure_class is FailureClass.USER_CODE


def test_a_line_that_is_no_note_says_nothing() -> None:
    said = RankWords()
    for line in ("", "{", "[]", '{"kind": 3}', "null"):
        said.hear(line)
    assert said == RankWords()


TERM = exiting(code=143) | {"handled": [15]}

# Notes, exit code of the command, whether it is a wrapper, whether the rank returned it itself.
CODES = {
    "sys.exit(143)": (words(STARTED, exiting(code=143)), 143, False, True),
    "sys.exit(143) in a shell": (words(STARTED, exiting(code=143)), 143, True, True),
    "os._exit(137)": (words(STARTED), 137, False, True),
    "a handler of SIGTERM": (words(STARTED, TERM), 143, False, False),
    "a handler of SIGTERM in a shell": (words(STARTED, TERM), 143, True, False),
    "a handler, and another code": (words(STARTED, TERM), 137, False, True),
    "killed in a shell": (words(STARTED), 137, True, False),
    "a good end in a shell that is killed": (words(STARTED, exiting()), 137, True, False),
    "a signal": (words(STARTED), -15, False, False),
    "a script without babysit": (words(), 143, False, False),
    "sys.exit(3)": (words(STARTED, exiting(code=3)), 3, False, True),
}


@pytest.mark.parametrize(("said", "code", "wrapped", "own"), CODES.values(), ids=CODES.keys())
def test_whether_a_code_is_the_rank_s_own(
    said: RankWords, code: int, wrapped: bool, own: bool
) -> None:
    assert said.is_own(code, wrapped=wrapped) is own


def test_an_exception_that_an_exit_hid_is_the_reason() -> None:
    hidden = exiting("ValueError") | {"trace": CRASH.partition("\n")[2]}
    failure = failure_behind_zero(words(STARTED, LEFT, hidden), "step 14\n", None, wrapped=False)
    assert failure is not None
    assert failure.failure_class is FailureClass.USER_CODE
    assert failure.reason == "ValueError: shard 3 is short (its command exited with code 0)"


DONE = (STARTED, LOOPING, FINISHED, exiting())
# Notes, exit code of the command, what is said of a crash that came after the end.
CRASHES = {
    "in a destructor": (words(*DONE), -11, "ended by SIGSEGV after its script had ended"),
    "abort() inside a shell": (words(*DONE), 134, "ended by SIGABRT after its script had ended"),
    "in an exit handler": (words(*DONE[:-1]), -11, ""),
    "in the loop": (words(STARTED, LOOPING), -11, ""),
    "in a loop after the first one": (words(*DONE[:-1], LOOPING), -11, ""),
    "after a loop that was left": (words(STARTED, LOOPING, LEFT, exiting()), -11, ""),
    "after an exception": (words(*DONE[:-1], exiting("ValueError", 1)), -11, ""),
    "after sys.exit(3)": (words(*DONE[:-1], exiting(code=3)), -11, ""),
    "killed": (words(*DONE), -9, ""),
    "without babysit": (words(), -11, ""),
    "an exit code": (words(*DONE), 1, ""),
}


@pytest.mark.parametrize(("said", "code", "remark"), CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_after_the_end_of_the_script_undoes_no_work(
    said: RankWords, code: int, remark: str
) -> None:
    assert said.crash_after_end(code) == remark


@pytest.mark.parametrize(
    ("said", "code", "failure_class"),
    [
        (words(STARTED, LOOPING, FINISHED), -11, FailureClass.USER_CODE),
        (words(STARTED, LOOPING, FINISHED), 139, FailureClass.USER_CODE),
        (words(STARTED, LOOPING, FINISHED), -9, FailureClass.SIGNAL),
        (words(STARTED, LOOPING), -11, FailureClass.SIGNAL),
        (words(STARTED, LOOPING, LEFT), -11, FailureClass.SIGNAL),
    ],
)
def test_a_crash_between_the_loop_and_the_end_is_confirmed_once(
    said: RankWords, code: int, failure_class: FailureClass
) -> None:
    """Fifty restarts would each repeat what is done, to crash at the same place."""
    failure = after_the_loop(said, classify("step 20\n", code), code)
    assert failure is not None
    assert failure.failure_class is failure_class
    ended = "after the training loop had ended" in failure.reason
    assert ended is (failure_class is FailureClass.USER_CODE)
