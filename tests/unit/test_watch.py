"""Steps and losses are read from what well-known trainers print."""

# ruff: noqa: E501 -- lines of trainers, as they print them

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from babysit.ring import Record
from jobs.spec import RunSpec
from jobs.spec_file import SpecError, loads
from jobs.watch import PRESETS, LogReader, Preset, problem_of
from jobs.watch.log_reader import SLOW_SECONDS

LINES = {
    "nanogpt": (
        (
            "step 0: train loss 10.9889, val loss 10.9892\n"
            "iter 0: loss 10.9887, time 3513.71ms, mfu -100.00%\n"
            "iter 10: loss 9.4110, time 120.41ms, mfu 3.02%\n"
        ),
        [(1, 10.9887), (11, 9.411)],
    ),
    "torchtitan": (
        (
            "[rank0]:[titan] 2026-01-01 10:00:00,000 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: "
            " 8.1376  \x1b[38;2;180;60;0mgrad_norm:  1.5000  \x1b[33mmemory:  0.97GiB(1.2%)\x1b[0m\n"
            "[rank0]:[titan] 2026-01-01 10:00:01,000 - root - INFO - step: 10  loss:  7.5000  "
            "grad_norm:  1.2000  memory:  0.97GiB(1.2%)\n"
            "[titan] 2026-01-01 10:00:02,000 - root - INFO - \x1b[33mvalidate step: 15  \x1b[32mloss: "
            " 9.1234  \x1b[36mmemory:  0.97GiB(1.2%)  \x1b[34mtps: 1,234\x1b[0m\n"
            "[titan] 2026-01-01 10:00:03,000 - root - INFO - \x1b[31mstep: 20  \x1b[32mloss: "
            "-1.0000  \x1b[38;2;180;60;0mgrad_norm:  1.1000\x1b[0m\n"
        ),
        [(1, 8.1376), (10, 7.5), (20, None)],
    ),
    "megatron": (
        (
            " [2026-01-01 10:00:00] iteration        1/   500 | consumed samples:            8 | "
            "elapsed time per iteration (ms): 900.1 | learning rate: 1.500000E-04 | global batch size: "
            "    8 | lm loss: 1.058422E+01 | loss scale: 1.0 | grad norm: 3.210 | number of skipped "
            "iterations:   0 |\n"
            " validation loss at iteration 1 on validation set | lm loss value: 1.05E+01 | lm loss PPL: "
            "3.6E+04 | \n"
            " [2026-01-01 10:00:00.123456] iteration      200/ 500000 | consumed samples:        51200 | "
            "elapsed time per iteration (ms): 12900.1 | throughput per GPU (TFLOP/s/GPU): 412.3 | energy "
            "per GPU (J/iter/GPU): 9123.1 | power per GPU (W/GPU): 612.0 | learning rate: 1.500000E-04 | "
            "global batch size:   256 | lm loss: 6.100000E+00 | loss scale: 1.0 | grad norm: 0.210 |\n"
        ),
        [(1, 10.58422), (200, 6.1)],
    ),
    "nemo": (
        (
            "Training epoch 0, iteration 0/99 | lr: 1e-06 | global_batch_size: 8 | global_step: 0 | "
            "reduced_train_loss: 11.03 | train_step_timing in s: 1.2\n"
            "Validation: iteration 5/10\n"
            "Training epoch 0, iteration 19/99 | lr: 2e-06 | global_batch_size: 8 | global_step: 19 | "
            "reduced_train_loss: 10.5 | train_step_timing in s: 1.2 | val_loss: 10.61\n"
        ),
        [(1, 11.03), (20, 10.5)],
    ),
    "nemo's bar": (
        (
            "Epoch 0: :   0%|          | 0/5000 [00:00<?]\r"
            "Epoch 0: :  25%|██▌       | 1234/5000 [41:08<2:05:32, v_num=gjbq, reduced_train_loss=10.60, "
            "global_step=1.23e+3, consumed_samples=3.16e+5]\r"
            "Epoch 0: :  25%|██▌       | 1235/5000 [41:10<2:05:30, v_num=gjbq, reduced_train_loss=10.50, "
            "global_step=1.23e+3, consumed_samples=3.16e+5]\r"
        ),
        [(1234, 10.6), (1235, 10.5)],
    ),
    "llm-foundry": (
        (
            "[batch=1/100]:\n\t Train time/batch: 0\n\t Train loss/train/total: 11.7\n"
            "[batch=2/100]:\n\t Train loss/train/total: 11.1\n"
        ),
        [(1, 11.7), (2, 11.1)],
    ),
    "llm-foundry by epochs": (
        (
            "[epoch=1][batch=4/5]:\n\t Train time/batch: 3\n\t Train loss/train/total: 8.5\n"
            "[epoch=1][batch=5/5]:\n\t Train time/batch: 4\n\t Train loss/train/total: 8.4213\n"
            "[Eval batch=3/5] Eval on eval data\n"
            "[Eval batch=5/5] Eval on eval data:\n\t Eval metrics/eval/LanguageCrossEntropy: 9.5\n"
            "0: [epoch=2][batch=1/5]:\n0: \t Train time/batch: 5\n0: \t Train loss/train/total: nan\n"
        ),
        [(4, 8.5), (5, 8.4213), (6, math.nan)],
    ),
    "deepspeed": (
        (
            "[2026-01-01 10:00:00,000] [INFO] [logging.py:107:log_dist] [Rank 0] step=10, skipped=0, "
            "lr=[0.001], mom=[(0.8, 0.999)]\n"
        ),
        [(10, None)],
    ),
    "deepspeed's pipeline": (
        (
            "[2026-01-01 10:00:00,000] [INFO] [logging.py:107:log_dist] [Rank 0] step=10, skipped=0, "
            "lr=[0.001], mom=[(0.8, 0.999)]\n"
            "steps: 10 loss: 8.1234 iter time (s): 0.520 samples/sec: 61.500\n"
            "steps: 20 loss: 7.5000 iter time (s): 0.520 samples/sec: 61.500\n"
        ),
        [(10, 8.1234), (20, 7.5)],
    ),
    "lightning without a length": (
        (
            "Epoch 0: |          | 0/? [00:00<?, ?it/s]\r"
            "Epoch 0: |          | 7/? [00:00<00:00, 60.1it/s, v_num=0, train_loss=2.60]\r"
            "Epoch 0: |          | 8/? [00:00<00:00, 60.1it/s, v_num=0, train_loss=2.50]\r"
        ),
        [(7, 2.6), (8, 2.5)],
    ),
    "lightning": (
        (
            "Epoch 0:  50%|█████     | 5/10 [00:00<00:00, 60.1it/s, v_num=0, train_loss=2.60]\r"
            "Epoch 0:  50%|█████     | 5/10 [00:00<00:00, 60.1it/s, v_num=0, train_loss=2.50]\r"
            "Epoch 0: 100%|██████████| 10/10 [00:01<00:00, 60.1it/s, v_num=0, train_loss=2.25]\r"
            "\nEpoch 1:  10%|█         | 1/10 [00:00<00:00, 60.1it/s, v_num=0, train_loss=2.20]\r"
        ),
        [(5, 2.5), (10, 2.25), (11, 2.2)],
    ),
    "transformers": (
        (
            "Map: 100%|██████████| 500/500 [00:00<00:00, 5000.00 examples/s]\n"
            "100%|██████████| 9999/9999 [00:00<00:00, 812.11it/s]\n"  # a bar of the script's own
            "\r  0%|          | 0/120 [00:00<?, ?it/s][transformers] `loss_type=None` was set\n"
            "\r  7%|▋         | 8/120 [00:01<00:11, 9.9it/s]\r                         \r"
            "{'loss': '2.345', 'grad_norm': '1.5', 'learning_rate': '4.6e-05', 'epoch': '0.08'}\n"
            "\r  8%|▊         | 10/120 [00:01<00:11, 9.9it/s]\r"
            " 50%|█████     | 20/40 [00:00<00:00, 90.00it/s]\x1b[A\r"
            "{'eval_loss': '9.9', 'epoch': '0.08'}\n"
            "\r 17%|█▋        | 20/120 [00:02<00:10, 9.9it/s]\r                         \r"
            "{'loss': 2.1, 'grad_norm': 1.25, 'learning_rate': 4.2e-05, 'epoch': 0.17}\n"
            "\r 17%|█▋        | 20/120 [00:02<00:10, 9.9it/s]\r"
        ),
        [(10, 2.345), (20, 2.1)],
    ),
}


def reader(*presets: Preset) -> LogReader:
    """A reader whose stopwatch stands still."""
    return LogReader(presets or tuple(PRESETS.values()), lambda: 0.0)


def read(log: str, *presets: Preset, cut: int = 0) -> list[Record]:
    """All reports of a log, which comes whole or in pieces."""
    made = reader(*presets)
    data = log.encode()
    pieces = [data] if not cut else [data[at : at + cut] for at in range(0, len(data), cut)]
    found = [record for piece in pieces for record in made.feed(piece, 100.0)]
    return [*found, *made.finish(101.0)]


@pytest.mark.parametrize("cut", [0, 7])
@pytest.mark.parametrize("trainer", LINES)
def test_trainers_are_recognised(trainer: str, cut: int) -> None:
    """Each trainer is known by its lines alone, however they are cut."""
    log, due = LINES[trainer]
    found = [(record.step, record.loss) for record in read(log, cut=cut)]
    assert str(found) == str(due)  # nan differs from nan


def test_other_numbers() -> None:
    """The norm of the gradient and the learning rate come along."""
    record = read(LINES["megatron"][0])[0]
    assert (record.grad_norm, record.learning_rate) == (3.21, 1.5e-4)
    record = read(LINES["transformers"][0])[0]
    assert (record.grad_norm, record.learning_rate) == (1.5, 4.6e-05)


def test_patterns_of_the_spec() -> None:
    """Numbers of one step, on one line or on several, and a counter from 0."""
    own = Preset(
        step=r"update (\d+)", loss=r"train/loss (\S+)", tokens=r"tok (\d+)", from_zero=True
    )
    log = "update 0\ntrain/loss nan\nupdate 1 tok 64 train/loss 2.5\nupdate 2\n"
    found = read(log, own)
    assert [record.step for record in found] == [1, 2, 3]
    assert math.isnan(found[0].loss or 0.0)
    assert (found[1].loss, found[1].tokens) == (2.5, 64.0)
    assert found[2].loss is None


def test_a_step_is_known_before_its_loss() -> None:
    """Progress waits for nothing."""
    made = reader()
    made.feed(LINES["lightning"][0].encode(), 50.0)
    assert (made.seen.step, made.seen.time, made.seen.first_step) == (11, 50.0, 5)


@pytest.mark.parametrize(
    "line",
    [
        "iter 500: loss 2.5, time 1ms\n",  # a counter that begins anew with each epoch, or a rollback
        " 50%|#####     | 20/40 [00:00<00:00, 90.00it/s]\r",
        "Validation DataLoader 0:  50%|#####     | 5/10 [00:01<00:01, 4.5it/s]\r",
        "[Eval batch=4/5] Eval on eval data\n",
        "Validation: iteration 5/10\n",
    ],
)
def test_whatever_counts_is_a_sign_of_life(line: str) -> None:
    """A run that evaluates, or counts a step again, does not hang, and makes no progress either."""
    made = reader(PRESETS["nanogpt"])
    made.feed(b"iter 999: loss 3.0, time 1ms\n", 50.0)
    assert made.feed(line.encode(), 60.0) == []
    assert (made.seen.step, made.seen.time) == (1000, 60.0)
    made.feed(line.encode() + b"W1 watchdog: still waiting for rank 1\n", 70.0)
    assert made.seen.time == 60.0


@pytest.mark.parametrize("text", ["x", "5..", "nan", "inf", "", "9" * 300, "-3"])
def test_what_is_no_step(text: str) -> None:
    """A pattern of a spec may find anything; the agent goes on."""
    own = Preset(step=r"step ?([-\w.]*)", loss=r"loss (\S+)")
    log = f"step {text}\nstep 1,024\nstep 7.0 loss 2.5\n"
    assert [(record.step, record.loss) for record in read(log, own)][-1] == (7, 2.5)


def test_validations_of_own_patterns() -> None:
    """The loss that the step printed first is the training's."""
    own = Preset(step=r"step (\d+)", loss=r"loss ([\w.]+)")
    log = "step 5 loss 2.5\neval step 5 loss nan\nstep 6 loss 2.4\n"
    assert [(record.step, record.loss) for record in read(log, own)] == [(5, 2.5), (6, 2.4)]


def test_output_that_says_nothing_is_nothing() -> None:
    """No step is made up."""
    assert read("epoch 3 done\nloss 2.3\nstep 4\n100%|##| 5/5\nAverage loss: 0.5\n") == []
    assert read("\xff\x00 iter x: loss y\n" * 3) == []


def test_time_of_a_step() -> None:
    """The time between two reports is the pace."""
    made = reader()
    made.feed(b"iter 0: loss 3.0, time\n", 10.0)
    assert [record.seconds for record in made.feed(b"iter 10: loss 2.9, time\n", 14.0)] == [4.0]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a+)+b", "repeats a group"),
        (r"(?:\d+,)*(\d+)", "repeats a group"),
        (r"(a|aa)+$", "repeats a group"),
        (r".*a.*b(\d+)", "could take minutes"),
        (r"\w*\w*(\d+)", "could take minutes"),
        (r"(?=x)(\d+)", "a look ahead"),
        (r"(\d+) \1", "a reference to a group"),
        (r"step (\d+", "not a regular expression"),
        (r"step \d+", "expected a group"),
        ("x" * 400 + r"(\d+)", "at most 300 characters"),
    ],
)
def test_hostile_patterns_are_refused(pattern: str, why: str) -> None:
    """A pattern whose time has no bound would hold up the agent."""
    assert why in (problem_of(pattern) or "")
    with pytest.raises(SpecError, match=r"watch\.step"):
        loads(f"name: a\ncommand: [x]\nwatch: {{step: '{pattern}'}}\n")


@pytest.mark.parametrize(
    "pattern",
    [r"iter (\d+)", r"loss: ([\d.eE+-]+)", r".*step[ =](\d+)", r"\[(\d+)/\d+\]", r"a?b{2,3}(\d)"],
)
def test_usual_patterns_are_accepted(pattern: str) -> None:
    """So are those of the presets."""
    assert problem_of(pattern) is None
    for preset in PRESETS.values():
        for own in (preset.step, preset.loss, preset.grad_norm, preset.learning_rate):
            assert own is None or problem_of(own) is None


def test_a_pattern_that_takes_long_is_given_up() -> None:
    """Whatever was overlooked ends with the first slow line; then all output is a sign of life."""
    watch = itertools.count(0.0, 2 * SLOW_SECONDS)
    made = LogReader([PRESETS["nanogpt"]], lambda: next(watch))
    made.feed(b"iter 0: loss 3.0\n", 1.0)
    assert "too slow" in made.trouble
    made.seen = dataclasses.replace(made.seen, step=1)
    assert made.feed(b"iter 1: loss 3.0\n", 2.0) == []
    assert (made.seen.step, made.seen.time) == (1, 2.0)


def test_watch_in_a_spec() -> None:
    """A preset or patterns; bare off is accepted."""
    begin = "name: a\ncommand: [x]\nwatch: "
    assert loads(begin + "off").watch == "off"
    assert RunSpec(name="a", command=("x",)).watch == "auto"
    for wrong in ("{preset: keras}", "{loss: '(x)'}", "{preset: nemo, step: '(1)'}", "sometimes"):
        with pytest.raises(SpecError, match="watch"):
            loads(begin + wrong)
