"""What launchers, loggers and containers put before a line changes no verdict."""

from __future__ import annotations

import pytest

from monitors.benign_lines import is_harmless, was_survived
from monitors.exits import classify
from monitors.log_lines import LogLevel, as_line, read_lines

PREFIXES = [
    "[default3]:",
    "[trainer0|3]:",
    "[rank3]: ",
    "[rank3]:",
    "[default3]:[rank11]: ",
    "Rank 3: ",
    " | rank 3 | ",
    "[rank: 3] ",
    "[RANK 3] ",
    "node-7: ",
    "worker-3: ",
    "gpu17: ",
    "dgx-12.cluster: ",
    "[1,3]<stderr>:",
    "[1,3]<stderr>: ",
    "2026-11-28T10:00:00.123456789Z stderr F ",
    "2026-11-28T10:00:00.123456789+01:00 stdout F ",
    "3: ",
    " 3: ",
    "10:00:00 ",
    "(TorchTrainer pid=89392, ip=10.0.0.3) ",
    "(pid=123) ",
    "\x1b[36m(RayTrainWorker pid=3)\x1b[0m ",
    "2026-11-28 10:00:00,123 ",
    "[2026-11-28 10:00:00] ",
    "[2026-11-28 10:00:00] [ERROR] [train.py:31] ",
    "2026-11-28 10:00:00,123 - train - ERROR - ",
    "ERROR:root:",
    "\x1b[31m",
    "2026-11-28 10:00:00.123 | ERROR    | __main__:main:31 - ",
    "E1128 10:00:00.123456 881 train.py:31] ",
    "[pod/trainer-0/main] ",
    "[pod/trainer-0/main] 2026-11-28T10:00:00.1Z ",
    "trainer-0  | ",
    "ERROR 11-28 10:00:00 worker_base.py:574] ",
    "Nov 28 10:00:00 gpu-7 train[881]: ",
    "<<made up here, by nobody: 7>> ",
    "job/4711/task/3> ",
]
FRAMES = (
    "Traceback (most recent call last):\n"
    '  File "/w/train.py", line 31, in <module>\n    main()\n'
    '  File "/w/train.py", line 17, in main\n'
    '    raise RendezvousClosedError("CUDA out of memory")\n'
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "raised",
    [
        "RuntimeError: expected 3 channels, got 4",
        "KeyError: 'text'",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "OSError: [Errno 28] No space left on device",
    ],
)
def test_prefixes_change_nothing(prefix, raised):
    log = f"step 3 loss 2.2\n{FRAMES}{raised}"
    assert classify("\n".join(prefix + line for line in log.splitlines()), 1) == classify(log, 1)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("host:1:2 [0] NCCL INFO Connected all rings", LogLevel.INFO),
        ("host:1:2 [0] net.cc:3 NCCL WARN Call to recv failed", LogLevel.ERROR),
        ("[W1128 10:00:00.1 socket.cpp:464] [c10d] no", LogLevel.WARNING),
        ("[rank0]:[E1128 10:00:00.1 ProcessGroupNCCL.cpp:616] no", LogLevel.ERROR),
        ("/w/a.py:87: UserWarning: none of the inputs", LogLevel.WARNING),
        ('time="2026-11-28" level=info msg="ok"', LogLevel.INFO),
        ("[INFO|trainer.py:3503] >> Saving", LogLevel.INFO),
        ("step 3 loss 2.2", LogLevel.PLAIN),
        ("RuntimeError: odd", LogLevel.PLAIN),
    ],
)
def test_the_level_of_a_line_is_read(line, level):
    assert as_line(line).level is level


def test_of_a_bar_the_last_state_is_kept():
    bar = "".join(f"\r {i}%|#  | {i}/99 [00:01<00:02, 3it/s]" for i in range(50))
    assert [line.text for line in read_lines(f"a\n{bar}\nb")] == ["a", bar.split("\r")[-1], "b"]


@pytest.mark.parametrize(
    "line",
    ["step 120 | loss 2.3112 | lr 3e-04", " iteration  48211/ 200000 | lm loss: 1.77 | nan: 0",
     "Epoch 3:  41%|####  | 8121/19811 [1:01:12<1:28:02,  2.21it/s]", "[006800] d: 0.79; g: 1.35",
     "{'loss': 2.31, 'grad_norm': 0.44, 'epoch': 0.12}"],
)  # fmt: skip
def test_progress_is_seen(line):
    assert as_line(line).is_progress or "nan" in line


@pytest.mark.parametrize("line", ["RuntimeError: loss is nan at step 12", "saving step 40 failed"])
def test_errors_are_no_progress(line):
    assert not as_line(line).is_progress


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: Timeout of 60 s exceeded while waiting for the store",
        "Transport retry count exceeded on mlx5_0:1/IB",
        "Could not connect to the endpoint",
        "No route to host",
        "error: the checkpoint is corrupt",
        "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus; retrying",
        "Killed",
    ],
)
def test_faults_are_not_cleared(line):
    assert not is_harmless(as_line(line))
    assert not was_survived(as_line(line))
