"""Why ranks die: messages as the software prints them, in logs made up here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.exits import classify, root_cause
from monitors.failures import Cause, Failure, FailureClass
from monitors.rule_files import builtin_rules

F = FailureClass

USER = """step 4 loss 3.21
Traceback (most recent call last):
  File "/home/someone/project/train.py", line 31, in <module>
    main()
  File "/home/someone/project/train.py", line 17, in main
    raise ValueError("boom at step 5")
ValueError: boom at step 5
"""


def why(log, code=1, **kwargs):
    failure = classify(log, code, **kwargs)
    assert failure is not None
    return failure


def test_success_is_no_failure():
    assert classify(USER, 0) is None


def test_a_user_error_gives_the_last_line_of_the_traceback():
    failure = why(USER)
    assert failure.failure_class is F.USER_CODE
    assert failure.cause is Cause.USER
    assert failure.reason == "ValueError: boom at step 5"
    assert failure.signature == "user_code:train.py in main:ValueError: boom at step #"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("    x = = 1\nSyntaxError: invalid syntax", "SyntaxError: invalid syntax"),
        (
            (
                "Traceback (most recent call last):\n"
                '  File "a.py", line 1, in <module>\n    import nope\n'
                "ModuleNotFoundError: No module named 'nope'"
            ),
            "ModuleNotFoundError: No module named 'nope'",
        ),
        ("python: can't open file 'train.py': [Errno 2]", "python: can't open file"),
        ("usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --x", "train.py: error:"),
        (
            (
                'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n'
                "my.package.CustomError: no good\n"
            ),
            "my.package.CustomError: no good",
        ),
        (
            (
                "[rank0]: Traceback (most recent call last):\n"
                '[rank0]:   File "a.py", line 1, in f\n'
                "[rank0]:     f()\n"
                "[rank0]: KeyError: 'text'\n"
                "[rank0]:[W ProcessGroupNCCL.cpp:1250] destroy_process_group was not called"
            ),
            "KeyError: 'text'",
        ),
    ],
)
def test_user_errors_of_many_shapes(log, reason):
    failure = why(log)
    assert failure.failure_class is F.USER_CODE
    assert failure.reason.startswith(reason)


@pytest.mark.parametrize(
    ("expected", "log"),
    [
        (F.GPU_HARDWARE, "NVRM: Xid (PCI:0000:1b:00): 79, pid=41, GPU has fallen off the bus."),
        (F.GPU_HARDWARE, "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
        (F.GPU_HARDWARE, "kernel: NVRM: Xid (PCI:0000:c1:00): 119, Timeout waiting for RPC"),
        (F.CUDA_USER_BUG, "NVRM: Xid (PCI:0000:c1:00): 13, Graphics Exception: ESR 0x404490"),
        (F.GPU_INTERCONNECT, "NVRM: Xid (PCI:0000:c1:00): 74, NVLink: fatal error on link 3"),
        (F.CUDA_OOM, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (
            F.CUDA_OOM,
            "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 17179869 bytes",
        ),
        (F.HOST_OOM, "Memory cgroup out of memory: Killed process 812 (python) total-vm:9kB"),
        (F.HOST_OOM, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"),
        (F.CUDA_USER_BUG, "RuntimeError: CUDA error: device-side assert triggered"),
        (
            F.DRIVER_OR_SETUP,
            "ImportError: libcudart.so.12: cannot open shared object file: No such",
        ),
        (F.DRIVER_OR_SETUP, "RuntimeError: The NVIDIA driver on your system is too old"),
        (F.STORAGE, "OSError: [Errno 28] No space left on device: 'step-000000040'"),
        (F.STORAGE, "OSError: [Errno 5] Input/output error"),
        (F.CHECKPOINT_CORRUPT, "RuntimeError: PytorchStreamReader failed reading zip archive"),
        (F.DATA_LOADER, "RuntimeError: DataLoader worker (pid 77) exited unexpectedly"),
        (F.NUMERICS, "RuntimeError: loss is nan at step 12"),
        (F.PREEMPTION, "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT X DUE TO PREEMPTION ***"),
        (
            F.RENDEZVOUS,
            "torch.distributed.DistNetworkError: ... (errno: 98 - Address already in use)",
        ),
        (F.NETWORK, "NCCL WARN NET/IB : Got completion from peer with status=12 vendor err 129"),
        (
            F.COLLECTIVE_TIMEOUT,
            "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)",
        ),
        (F.COLLECTIVE_TIMEOUT, "RuntimeError: Timed out waiting 1800000ms for recv operation"),
        (
            F.CASCADE,
            "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]",
        ),
        (F.UNKNOWN, "step 17 loss 2.11"),
    ],
)
def test_messages_of_the_stack(expected, log):
    assert why(log).failure_class is expected


def test_a_cascade_line_is_no_root_cause_beside_another():
    log = (
        "[W] Sending process 12 closing signal SIGTERM\n"
        "RuntimeError: Connection closed by peer [10.0.0.1]:2940\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    )
    assert why(log).failure_class is F.CUDA_OOM


def test_what_was_survived_before_a_programming_error_is_not_blamed():
    survived = "OSError: [Errno 28] No space left on device; retried\n" + USER
    assert why(survived).failure_class is F.USER_CODE


def test_a_bare_sigkill_proves_nothing_about_memory():
    failure = why("step 17 loss 2.11\n", -9)
    assert failure.failure_class is F.SIGNAL
    assert failure.cause is Cause.INFRASTRUCTURE
    assert failure.reason == "killed by SIGKILL, sender unknown"


def test_a_sigkill_is_a_host_oom_only_with_evidence():
    assert why("", -9, oom_killed=True).failure_class is F.HOST_OOM
    assert why("slurmstepd: error: Detected 1 oom-kill event(s)", -9).failure_class is F.HOST_OOM


def test_a_sigkill_is_not_explained_by_an_error_that_was_survived():
    assert why(USER, -9).failure_class is F.SIGNAL


def test_an_exit_by_the_agent_is_a_cascade_whatever_the_log_says():
    assert why(USER, -9, killed_by_agent=True).failure_class is F.CASCADE
    assert why("", -15, killed_by_agent=True).failure_class is F.CASCADE


@pytest.mark.parametrize(("code", "name"), [(-11, "SIGSEGV"), (139, "SIGSEGV"), (-6, "SIGABRT")])
def test_signals_are_named(code, name):
    failure = why("", code)
    assert failure.failure_class is F.SIGNAL
    assert name in failure.reason


def test_an_abort_is_explained_by_what_led_to_it():
    log = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)\nterminate called"
    assert why(log, -6).failure_class is F.COLLECTIVE_TIMEOUT


def test_an_unknown_exit_says_its_code_and_its_last_words():
    failure = why("step 1\nbye\n", 3)
    assert failure.failure_class is F.UNKNOWN
    assert failure.reason == "exit code 3; its last words: bye"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (1, Cause.USER),
        (127, Cause.USER),
        (200, Cause.USER),
        (255, Cause.USER),
        (145, Cause.USER),
        (-40, Cause.INFRASTRUCTURE),
    ],
)
def test_a_program_that_ends_itself_is_its_owners(code, cause):
    failure = why("no data under /data\n", code)
    assert failure.failure_class is F.UNKNOWN
    assert failure.cause is cause
    assert Failure.model_validate_json(failure.model_dump_json()).cause is cause


def test_signatures_of_one_cause_are_equal_and_of_two_are_not():
    first = "OSError: [Errno 28] No space left on device: '/a/b/step-000000040/0xdeadbeef'"
    again = "OSError: [Errno 28] No space left on device: '/c/step-000000080/0xfeedface'"
    other = "OSError: [Errno 5] Input/output error"
    assert why(first).signature == why(again).signature != why(other).signature


def test_the_reason_is_one_short_line():
    failure = why("RuntimeError: CUDA out of memory. " + "x" * 5000)
    assert len(failure.reason) <= 300
    assert "\n" not in failure.reason


def failure(failure_class):
    return Failure(failure_class=failure_class, reason="", signature="")


def test_the_root_cause_is_the_first_that_is_no_cascade():
    failures = [
        (0, 10.0, failure(F.CASCADE)),
        (1, 10.5, failure(F.USER_CODE)),
        (2, 10.7, failure(F.SIGNAL)),
    ]
    assert root_cause(failures)[0] == 1


def test_who_blames_its_peers_comes_after_who_speaks_for_itself():
    failures = [(0, 10.0, failure(F.COLLECTIVE_TIMEOUT)), (1, 10.5, failure(F.SIGNAL))]
    assert root_cause(failures)[0] == 1


def test_a_silent_exit_is_the_cause_only_where_it_came_first():
    silent = why("", 1)
    killed = [(0, 10.0, silent), (1, 10.5, failure(F.SIGNAL))]
    assert root_cause(killed)[0] == 1, "a peer that gave up when the other was killed"
    first = [(0, 10.5, failure(F.NETWORK)), (1, 10.0, silent), (2, 9.9, failure(F.CASCADE))]
    assert root_cause(first)[0] == 1


def test_when_all_are_cascades_the_first_is_named():
    assert root_cause([(3, 2.0, failure(F.CASCADE)), (1, 1.0, failure(F.CASCADE))])[0] == 1


def test_no_failures_have_no_root_cause():
    with pytest.raises(ValueError, match="no failures"):
        root_cause([])


def test_no_rule_matches_ordinary_training_output():
    ordinary = [
        "step 120 | loss 2.3112 | grad norm 0.41 | lr 3.0e-04 | 41,233 tokens/s",
        "iteration 48211/ 200000 | number of skipped iterations: 0 | number of nan iterations: 0 |",
        "Loading checkpoint shards: 100%|##########| 6/6 [00:11<00:00]",
        "saved checkpoint step-000000040 in 1.2 s",
        "NCCL INFO Connected all rings",
        "Using 8 dataloader workers",
    ]
    hits = [
        (line, r.failure_class)
        for line in ordinary
        for r in builtin_rules().rules
        if r.pattern.search(line)
    ]
    assert hits == []


@given(st.text(max_size=400), st.integers(1, 255))
def test_any_log_gets_a_class_and_a_reason(log, code):
    failure = why(log, code)
    assert failure.reason
    assert failure.signature.startswith(failure.failure_class.value)
    assert len(failure.evidence) <= 5


@pytest.mark.parametrize("code", [143, 137, 139])
def test_a_code_that_the_program_returned_itself_is_no_signal(code: int) -> None:
    own = classify("bad config\n", code, own_code=True)
    assert own is not None
    assert (own.failure_class, own.cause) == (FailureClass.UNKNOWN, Cause.USER)
    assert f"exit code {code}" in own.reason
    told = classify("bad config\n", code)
    assert told is not None
    assert (told.failure_class, told.code) == (FailureClass.SIGNAL, code)


@pytest.mark.parametrize(("code", "free"), [(-15, True), (143, False)])
def test_a_preemption_that_a_log_tells_of_needs_a_signal_that_was_seen(
    code: int, free: bool
) -> None:
    log = "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-01-01 DUE TO PREEMPTION ***\n"
    found = classify(log, code)
    assert found is not None
    assert (found.cause is Cause.PREEMPTION) == free
