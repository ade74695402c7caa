"""Which of the tracebacks of a log a program died of: chains, groups, ranks, launchers."""

from __future__ import annotations

import pytest

from monitors.exits import classify, ends_in_traceback
from monitors.failures import FailureClass as F

STEPS = "".join(f"step {step} loss {3 - step / 50:.3f}\n" for step in range(10, 30))
CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:15019"
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
DIRECT = "\nThe above exception was the direct cause of the following exception:\n\n"


def traceback(raised, source="step(batch)", file="/w/train.py"):
    return (
        "Traceback (most recent call last):\n"
        '  File "/w/train.py", line 31, in <module>\n    main()\n'
        f'  File "{file}", line 17, in main\n    {source}\n{raised}\n'
    )


def prefixed(prefix, text):
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


def why(log, code=1):
    failure = classify(log, code)
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (traceback(OOM) + DURING + traceback("RuntimeError: could not save"), F.CUDA_OOM),
        (traceback("OSError: [Errno 28] No space left on device") + DIRECT
         + traceback("mine.SaveFailed: could not save"), F.STORAGE),
        (traceback("KeyError: 'x'") + DIRECT + traceback("RuntimeError: bad"), F.USER_CODE),
        (traceback(OOM) + DURING + traceback("KeyError: 'x'"), F.CUDA_OOM),
    ],
    ids=["context", "direct-cause", "both-the-users", "cleaning-up-failed"],
)  # fmt: skip
def test_a_chain_names_its_cause(log, expected):
    assert why(log).failure_class is expected


@pytest.mark.parametrize(
    "survived", ["KeyError: 'x'", OOM, "OSError: [Errno 5] Input/output error"]
)
@pytest.mark.parametrize(
    ("last", "expected"),
    [("RuntimeError: odd", F.USER_CODE), ("KeyError: 'a'", F.USER_CODE), (CLOSED, F.CASCADE)],
)
def test_what_came_before_more_steps_was_survived(survived, last, expected):
    failure = why(traceback(survived) + STEPS + traceback(last))
    assert failure.failure_class is expected
    assert failure.reason == last


def test_the_first_rank_that_blames_no_peer_is_the_cause():
    user, victim = prefixed("[rank3]: ", traceback("KeyError: 'x'")), traceback(CLOSED)
    for other in (prefixed("[rank0]: ", victim), victim):
        assert why(user + other).reason == "KeyError: 'x'"
        assert why(other + user).reason == "KeyError: 'x'"
    woven = zip(user.splitlines(), prefixed("[rank0]: ", victim).splitlines(), strict=True)
    assert why("\n".join(line for pair in woven for line in pair)).reason == "KeyError: 'x'"


def test_an_exception_group_is_what_it_holds():
    log = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/w/train.py", line 18, in <module>\n'
        "  |     asyncio.run(main())\n"
        "  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/w/train.py", line 8, in fetch\n'
        '    |     raise ValueError("shard 3 has no index file")\n'
        "    | ValueError: shard 3 has no index file\n"
        "    +------------------------------------\n"
    )
    failure = why(log)
    assert failure.reason == "ValueError: shard 3 has no index file"
    assert failure.signature.startswith("user_code:train.py in fetch:")


def test_the_worst_member_of_a_group_is_the_cause():
    log = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/w/train.py", line 18, in <module>\n'
        "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/w/train.py", line 8, in fetch\n'
        "    | OSError: [Errno 116] Stale file handle\n"
        "    +---------------- 2 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/w/train.py", line 9, in fetch\n'
        "    | RuntimeError: stopped by the other\n"
        "    +------------------------------------\n"
    )
    assert why(log).failure_class is F.STORAGE


@pytest.mark.parametrize(
    "source",
    [
        "raise RendezvousClosedError()",
        "raise RuntimeError(x)  # the checkpoint might be corrupt, NVLink error",
        'print("CUDA out of memory")',
    ],
)
def test_source_lines_are_no_messages(source):
    assert why(traceback("RuntimeError: odd", source)).reason == "RuntimeError: odd"


def test_a_message_may_begin_on_the_next_line():
    log = traceback("AssertionError: \nThe NVIDIA driver on your system is too old (found 9010).")
    failure = why(log)
    assert failure.failure_class is F.DRIVER_OR_SETUP


def test_a_bar_that_rewrites_its_line_hides_nothing():
    bar = "".join(f"\r {i}%|#   | {i}/400 [00:01<00:02, 3.1it/s]" for i in range(40))
    assert why(bar + traceback("KeyError: 'x'")).reason == "KeyError: 'x'"
    assert why(traceback("KeyError: 'x'") + bar).reason == "KeyError: 'x'"


def test_steps_that_were_buffered_do_not_make_an_error_survived():
    error = "RuntimeError: CUDA error: device-side assert triggered"
    assert why(traceback(error) + STEPS).failure_class is F.CUDA_USER_BUG


LAUNCHER = traceback(
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    file="/opt/venv/lib/python3.11/site-packages/torch/distributed/run.py",
) + (
    "============================================================\n"
    "train.py FAILED\n"
    "Root Cause (first observed failure):\n"
    "[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : {code} (pid: 903)\n"
    "  error_file: <N/A>\n"
)


def test_a_launchers_report_is_not_the_cause():
    log = prefixed("[rank1]: ", traceback("ValueError: bad")) + LAUNCHER.format(code=1)
    assert why(log).reason == "ValueError: bad"


def test_a_launcher_that_reports_a_signal_is_told_in_words():
    log = STEPS + (
        "E1129 15:10:05.628000 3924 torch/distributed/elastic/multiprocessing/api.py:1002] failed"
        " (exitcode: -9) local_rank: 1 (pid: 3954) of binary: /opt/venv/bin/python\n"
    )
    failure = why(log + LAUNCHER.format(code=-9))
    assert failure.failure_class is F.SIGNAL
    assert failure.reason == "local rank 1 was ended by SIGKILL, says its launcher"
    assert failure.signature == why(log.replace("3954", "17") + LAUNCHER.format(code=-9)).signature


def test_a_broken_gpu_explains_a_kernel_that_failed_on_it():
    xid = "[Sat Nov 28 03:02:11 2026] NVRM: Xid (PCI:0000:3b:00): 48, pid=7, name=python3, DBE\n"
    illegal = traceback("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert why(illegal).failure_class is F.CUDA_USER_BUG
    assert why(xid + illegal).failure_class is F.GPU_HARDWARE
    assert why(xid + STEPS + illegal).failure_class is F.CUDA_USER_BUG


IGNORED = "Exception ignored in: <function Pool.__del__ at 0x7f21>\n" + traceback(
    "AttributeError: 'Pool' object has no attribute '_state'"
)
AT_EXIT = "Error in atexit._run_exitfuncs:\n" + traceback("OSError: handle is closed")
PIPE = "Exception ignored in: <_io.TextIOWrapper name='<stdout>'>\nBrokenPipeError: [Errno 32] x\n"


@pytest.mark.parametrize("behind", [IGNORED, AT_EXIT, PIPE, IGNORED + AT_EXIT])
def test_an_exception_that_python_ignores_ends_no_program(behind):
    """Destructors and exit handlers raise after the exception that counts, or after a good end."""
    error = traceback("ValueError: shard 3 is short")
    assert why(STEPS + error + behind).reason == "ValueError: shard 3 is short"
    assert ends_in_traceback(STEPS + error + behind)
    assert not ends_in_traceback(STEPS + behind)
    assert why(STEPS + "config error: no such split\n" + behind).reason.endswith("no such split")
    assert why(STEPS + behind + error).reason == "ValueError: shard 3 is short"


def test_a_warning_that_is_raised_is_an_exception():
    """`python -W error` and the settings of a test make exceptions of them."""
    failure = why(STEPS + traceback("DeprecationWarning: np.bool is gone"))
    assert failure.failure_class is F.USER_CODE
    assert failure.reason == "DeprecationWarning: np.bool is gone"


def test_the_error_of_a_command_line_in_a_box_is_read():
    """As typer and tyro print it."""
    box = "╭─ Error ─────────────────╮\n│ No such option: --foo   │\n╰─────────────────────────╯\n"
    assert why("Usage: train.py [OPTIONS]\n" + box, 2).reason.endswith("No such option: --foo")
    assert why(box, 2).reason.endswith("No such option: --foo")
