"""`babysit.auto()`: hooks after imports, numbers given to loggers, and `BABYSIT_AUTO=1`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from babysit import auto_start, import_hooks
from babysit.auto_values import Counts, Values, kind_of
from tests.launch import ROOT, Job

LOGGER = """
import os, sys
if "auto" in sys.argv:
    import babysit
    babysit.auto()
from tensorboardX import SummaryWriter
writer = SummaryWriter("logs")
for step in range(1, 5):
    writer.add_scalar("train/loss", 1.0 / step, step)
    writer.add_scalar("train/accuracy", step / 10, global_step=step)
    writer.add_scalar("eval/loss", 9.0, step)
writer.close()
"""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("loss", "loss"),
        ("train/loss", "loss"),
        ("Loss/train", "loss"),
        ("train_loss_step", "loss"),
        ("trainLoss", "loss"),
        ("eval_loss", "other"),
        ("val/loss", "other"),
        ("kl_loss", ""),
        ("lossless", ""),
        ("grad_norm", "grad_norm"),
        ("train/gnorm", "grad_norm"),
        ("lr", "learning_rate"),
        ("train/learning_rate", "learning_rate"),
        ("lr-Adam", ""),
        ("accuracy", ""),
        ("train/global_step", "step"),
        ("step_time", ""),
    ],
)
def test_a_name_is_understood_by_its_words(name: str, kind: str) -> None:
    assert kind_of(name) == kind


class Told:
    """A run that remembers its reports."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

        self.signs = 0
        """Signs of life without a step."""

    def report(self, **given: Any) -> None:
        self.reports.append(given)

    def _beat(self) -> None:
        self.signs += 1


def test_calls_of_one_step_are_one_report() -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in (1, 2):
        values.take({"train/loss": 2.0 / step, "note": "text"}, step)
        values.take({"lr": 0.1, "eval/loss": 5.0}, step)
        values.take({"accuracy": 0.5}, step)
    assert run.reports == [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1, "metrics": {"accuracy": 0.5}}
    ]
    values.flush()
    values.flush()
    assert [report["step"] for report in run.reports] == [1, 2]


def test_a_step_with_a_name_counts_before_the_number_of_calls() -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in (10, 20):
        values.take({"loss": 1.0 / step}, more=True)
        values.take({"lr": 0.1, "global_step": step})
        values.take({"eval/loss": 5.0, "global_step": step})
        values.take({"gpu": 0.5})
    values.flush()
    assert run.reports == [
        {"step": step, "loss": 1.0 / step, "learning_rate": 0.1, "metrics": None}
        for step in (10, 20)
    ]


@pytest.mark.parametrize(
    "evaluation",
    [
        {"eval/loss": 5.0, "epoch": 1.0, "global_step": 30},
        {"eval/loss": 5.0, "epoch": 1.0, "step": 3},
        {"eval/loss": 5.0, "step": "third"},
    ],
)
@pytest.mark.parametrize("gives", [True, False], ids=["gives steps", "gives none"])
def test_an_evaluation_that_names_its_step_silences_no_training(
    evaluation: dict[str, Any], gives: bool
) -> None:
    """A run whose steps are no longer heard of looks hung, and is restarted in the end."""
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in range(1, 9):
        values.take({"train/loss": 1.0 / step}, step if gives else None)
        if step in {3, 6}:
            values.take(evaluation, step if gives else None)
    values.flush()
    losses = [report["loss"] for report in run.reports if "loss" in report]
    assert losses == [1.0 / step for step in range(1, 9)]
    steps = [report["step"] for report in run.reports]
    assert steps == sorted(steps)
    assert steps[-1] == (8 if gives else 10)


def test_an_evaluation_before_the_training_names_no_steps_for_it() -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    values.take({"eval/loss": 5.0, "epoch": 0, "step": 0})
    for step in range(1, 4):
        values.take({"loss": 1.0 / step})
    values.flush()
    assert [report.get("loss") for report in run.reports][1:] == [1.0, 1 / 2, 1 / 3]


def test_a_loss_whose_step_is_not_known_is_a_sign_of_life() -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    values.take({"loss": 2.0, "iter": 100})
    for _ in range(3):  # another stage of the same script
        values.take({"loss": 1.0})
    values.flush()
    assert [report["step"] for report in run.reports] == [100]
    assert run.signs == 3


def test_numbers_without_a_step_are_counted_by_name() -> None:
    counts = Counts()
    assert [counts.step("loss", 0) for _ in range(3)] == [0, 1, 2]
    assert counts.step("lr", None) == 0
    assert counts.step("loss", 40) == 40
    assert counts.step("accuracy", 0) == 40, "an evaluation without a step is of the newest one"
    assert [counts.step("loss", given) for given in (50, 0, 0, 60)] == [50, 51, 52, 60]


def test_an_evaluation_without_a_step_does_not_set_the_count_back() -> None:
    """A count that goes back is continued from its end: each evaluation would double the steps."""
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in (100, 200, 300):
        values.take({"train/loss": 1.0}, step)
        values.take({"eval/loss": 1.5, "epoch": step / 100})
    values.flush()
    assert [report["step"] for report in run.reports] == [100, 200, 300]


@pytest.mark.parametrize("name", ["accuracy/train", "lr"])
def test_numbers_by_epoch_do_not_set_the_count_of_steps_back(name: str) -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in range(1, 7):
        values.take({"train/loss": 1.0 / step}, step)
        if step % 3 == 0:
            values.take({name: 0.5}, step // 3)
    values.flush()
    assert [report["step"] for report in run.reports] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_losses_of_a_counter_within_the_epoch_are_given_as_they_are() -> None:
    """The run continues such a counter by itself."""
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    for step in (1, 2, 1, 2):
        values.take({"train/loss": 1.0, "lr": 0.1}, step)
    values.flush()
    assert [report["step"] for report in run.reports] == [1, 2, 1, 2]


@pytest.mark.parametrize("name", ["train/loss", "perplexity"])
def test_a_script_that_gives_a_step_only_once_is_heard_of_afterwards(name: str) -> None:
    run = Told()
    values = Values(run)  # type: ignore[arg-type]  # all that it uses
    values.take({"parameters": 7}, 0)
    for _ in range(4):
        values.take({name: 1.0})
    values.flush()
    assert [report["step"] for report in run.reports] == [0, 1, 2, 3]


def test_a_module_is_watched_after_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trainer_for_auto.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []

    def fails(_: Any) -> None:
        raise RuntimeError("no such class")

    import_hooks.after_import("trainer_for_auto", fails)
    import_hooks.after_import("trainer_for_auto", lambda module: seen.append(module.VALUE))
    import_hooks.after_import("babysit_no_such_module", fails)
    assert not seen
    __import__("trainer_for_auto")
    assert seen == [1]
    assert "cannot watch trainer_for_auto" in caplog.text
    import_hooks.after_import("trainer_for_auto", lambda module: seen.append(module.VALUE))
    assert seen == [1, 1], "it was imported before"
    with pytest.raises(ModuleNotFoundError):
        __import__("babysit_no_such_module")


def test_numbers_for_tensorboard_are_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", exc_type=ImportError)
    script = tmp_path / "logger.py"
    script.write_text(LOGGER)
    rank = Job(tmp_path, 1, (str(script), "auto")).attempt()[0]
    assert rank.code == 0, rank.output
    assert rank.losses() == {step: 1.0 / step for step in range(1, 5)}


WANDB = """
import babysit
babysit.auto()
import wandb
wandb.init(mode="offline", settings=wandb.Settings(silent=True))
for step in range(1, 5):
    BODY
wandb.finish()
"""
MLFLOW = """
import babysit
babysit.auto()
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run():
    for step in range(1, 5):
        BODY
"""


@pytest.mark.parametrize(
    ("library", "script", "body", "first"),
    [
        ("wandb", WANDB, "wandb.log({'train/loss': 1 / step, 'lr': 0.1}, step=step)", 1),
        ("wandb", WANDB, "wandb.log({'loss': 1 / step}, commit=False); wandb.log({'lr': 0.1})", 1),
        ("wandb", WANDB, "wandb.log({'loss': 1 / step, 'eval/loss': 9, 'global_step': step})", 1),
        ("mlflow", MLFLOW, "mlflow.log_metric('loss', 1 / step, step=step)", 1),
        ("mlflow", MLFLOW, "mlflow.log_metrics({'lr': 0.1, 'loss': 1 / step}, step=step)", 1),
        ("mlflow", MLFLOW, "mlflow.log_metric('loss', 1 / step); mlflow.log_metric('lr', 1)", 0),
    ],
)
def test_numbers_for_other_loggers_are_steps(
    tmp_path: Path, library: str, script: str, body: str, first: int
) -> None:
    pytest.importorskip(library, exc_type=ImportError)
    file = tmp_path / "logger.py"
    file.write_text(script.replace("BODY", body))
    rank = Job(tmp_path, 1, (str(file),)).attempt()[0]
    assert rank.code == 0, rank.output
    assert rank.losses() == {first + step: pytest.approx(1 / (step + 1)) for step in range(4)}


def _python(environment: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_interpreter_of_a_run_begins_with_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('own')\n")
    start = str(Path(auto_start.__file__).parent)
    path = os.pathsep.join((start, str(tmp_path), str(ROOT)))
    code = "import sys; from babysit import import_hooks as h; print(h._finder in sys.meta_path)"
    inside = {"PYTHONPATH": path, "BABYSIT_RUN": "run"}
    assert _python(inside, code) == "own\nTrue", "the environment's own module runs too"
    assert _python({"PYTHONPATH": path, "BABYSIT_RUN": ""}, code) == "own\nFalse", "outside a run"
