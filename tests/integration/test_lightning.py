"""Lightning's callback in one process: saves, resumes at the exact batch, leaves when asked."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    lightning = pytest.importorskip("lightning", exc_type=ImportError)

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

import babysit
from babysit.errors import StateMismatchError
from babysit.integrations.lightning import BabysitCallback

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own advice and deprecations
ROWS, EPOCHS = 24, 3


class StoppedError(Exception):
    """Ends a training in its midst, as a SIGKILL would."""


class Module(lightning.LightningModule):
    """Notes each batch and its loss; stops in the midst if asked to."""

    def __init__(self, stop: int = 0, *, manual: bool = False) -> None:
        super().__init__()
        lightning.seed_everything(3)
        self.automatic_optimization = not manual
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        self.seen: list[tuple[list[int], float]] = []
        self.stop = stop

    def training_step(self, batch: Any, _: int) -> Any:
        loss = self.layers(batch[1]).square().mean()
        self.seen.append((batch[0].tolist(), loss.item()))
        if len(self.seen) == self.stop:
            raise StoppedError
        self.log("my_loss", loss)
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.AdamW(self.parameters(), lr=0.01)
        parts = [[self.layers[0].weight], [self.layers[0].bias]]
        return [torch.optim.AdamW(part, lr=0.01) for part in parts]


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self) -> Any:
        yield from rows()


def rows() -> torch.utils.data.TensorDataset:
    values = torch.arange(ROWS * 4, dtype=torch.float32).reshape(ROWS, 4) / 50
    return torch.utils.data.TensorDataset(torch.arange(ROWS), values)


def loader(kind: str) -> Any:
    data = Stream() if kind == "stream" else rows()
    return torch.utils.data.DataLoader(data, batch_size=2, shuffle=kind == "map")


def fit(
    module: Module, checkpoint: Path, kind: str = "map", skip: Any = (), **options: Any
) -> BabysitCallback:
    """One process of a run that saves each step to a directory, up to its end."""
    lightning.seed_everything(3)
    run = babysit.init(checkpoint=checkpoint, every_steps=1)
    run.plan = dataclasses.replace(run.plan, skip_batches=skip)
    monitor = BabysitCallback(run, loss="my_loss")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
        **options,
    )
    try:
        trainer.fit(module, loader(kind), ckpt_path=monitor.resume_from, weights_only=False)
    finally:
        run.flush()
    return monitor


@pytest.mark.parametrize(
    ("kind", "manual", "stop", "options"),
    [
        ("map", False, 8, {}),
        ("map", False, 13, {}),  # after the last batch of an epoch
        ("map", False, 31, {"accumulate_grad_batches": 3}),
        ("map", True, 20, {}),
        ("map", False, 9, {"limit_train_batches": 5}),
        ("stream", False, 19, {}),
    ],
)
def test_a_resumed_training_sees_what_an_undisturbed_one_sees(
    tmp_path: Path, kind: str, manual: bool, stop: int, options: dict[str, Any]
) -> None:
    right = Module(manual=manual)
    fit(right, tmp_path / "right", kind, **options)

    first = Module(stop, manual=manual)
    with pytest.raises(StoppedError):
        fit(first, tmp_path / "hurt", kind, **options)
    second = Module(manual=manual)
    fit(second, tmp_path / "hurt", kind, **options)

    saved = (stop - 1) // options.get("accumulate_grad_batches", 1)
    resumed = saved * options.get("accumulate_grad_batches", 1)
    assert second.seen == right.seen[resumed:]
    for mine, other in zip(second.parameters(), right.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_quarantined_batches_are_passed_over(tmp_path: Path) -> None:
    right = Module()
    fit(right, tmp_path / "right", "plain")
    batches = [numbers for numbers, _ in right.seen]

    thinned = Module()
    monitor = fit(thinned, tmp_path / "thin", "plain", skip=((3, 4), (12, 14)))
    assert [numbers for numbers, _ in thinned.seen] == batches[:2] + batches[4:11] + batches[14:]
    assert monitor.run.batch == len(batches)


def test_steps_and_losses_are_reported(tmp_path: Path, monkeypatch: Any) -> None:
    told: list[Any] = []
    report = babysit.Run.report

    def tell(run: babysit.Run, **values: Any) -> None:
        report(run, **values)
        told.append((run.step, float(values["loss"])))

    monkeypatch.setattr(babysit.Run, "report", tell)
    module = Module(manual=True)
    fit(module, tmp_path / "told")
    assert [step for step, _ in told] == list(range(1, len(module.seen) + 1))
    assert [loss for _, loss in told] == pytest.approx([loss for _, loss in module.seen])


def test_a_process_that_is_asked_to_leave_saves_and_ends(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(babysit.Run, "should_stop", property(lambda run: run.step == 7))
    module = Module()
    with pytest.raises(SystemExit) as left:
        fit(module, tmp_path / "left")
    assert (left.value.code, len(module.seen)) == (0, 7)
    monkeypatch.undo()
    again = Module()
    fit(again, tmp_path / "left")
    assert len(again.seen) == ROWS // 2 * EPOCHS - 7


def test_other_ranks_than_those_of_the_run_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(StateMismatchError, match=r"1 processes, and this run has 2.*devices=2"):
        fit(Module(), tmp_path / "alone", strategy=SingleDeviceStrategy())
