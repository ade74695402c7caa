"""No line of healthy operation changes a verdict, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.exits import classify

DATA = Path(__file__).parents[1] / "data"
HARMLESS = [
    line
    for line in (DATA / "harmless_lines.txt").read_text().splitlines()
    if not line.startswith("# ")
]
STEPS = [f"step {step} loss {3 - step / 50:.3f}" for step in range(10, 30)]


def traceback(raised: str) -> str:
    return (
        "Traceback (most recent call last):\n"
        '  File "/w/train.py", line 31, in <module>\n    main()\n'
        f'  File "/w/train.py", line 17, in main\n    step(batch)\n{raised}'
    )


DEATHS = {
    "user": traceback("RuntimeError: expected 3 channels, got 4"),
    "programming": traceback("KeyError: 'text'"),
    "own-exception": traceback("mypkg.errors.ShapeMismatch: a and b"),
    "device-memory": traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate."),
    "disk": traceback("OSError: [Errno 28] No space left on device"),
    "victim": traceback("RuntimeError: [gloo/tcp/pair.cc:5] Connection closed by peer [::]"),
    "nccl": traceback(
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:2251, remote process"
        " exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call failed"
        " possibly due to a network error or a remote process exiting prematurely."
    ),
    "watchdog": (
        "[rank9]:[E1128 04:01:11.221 ProcessGroupNCCL.cpp:688] [Rank 9] Watchdog caught collective"
        " operation timeout: WorkNCCL(SeqNum=88121, OpType=ALLREDUCE) ran for 600029 milliseconds"
        " before timing out."
    ),
    "preempted": "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-06-30 DUE TO PREEMPTION ***",
    "silent": "bye",
}  # fmt: skip
CODES = (1, -6, -9, -15)


def verdict(log: str, code: int) -> tuple[object, ...]:
    failure = classify(log, code)
    assert failure is not None
    return failure.failure_class, failure.advice, failure.cause, failure.signature, failure.source


def test_there_are_many() -> None:
    assert len(set(HARMLESS)) >= 100


@pytest.mark.parametrize("line", HARMLESS)
def test_one_line_anywhere_changes_nothing(line: str) -> None:
    for name, death in DEATHS.items():
        plain = "\n".join((*STEPS, death))
        for code in CODES[:1] if name != "silent" else CODES:
            expected = verdict(plain, code)
            for log in (
                f"{line}\n{plain}",
                "\n".join((*STEPS, line, death)),
                f"{plain}\n{line}",
            ):
                assert verdict(log, code) == expected, log


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(DEATHS)),
    st.sampled_from(CODES),
    *(st.lists(st.sampled_from(HARMLESS), max_size=6) for _ in range(3)),
)
def test_many_lines_everywhere_change_nothing(
    name: str, code: int, first: list[str], between: list[str], last: list[str]
) -> None:
    death = DEATHS[name]
    log = "\n".join((*first, *STEPS, *between, death, *last))
    assert verdict(log, code) == verdict("\n".join((*STEPS, death)), code)
