"""The adapters have the parts of a step measured by themselves, and leave no hook behind.

Time is virtual: the model and the optimizer say so to the clock.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import babysit
from babysit.run import Run
from babysit.step_times import PARTS, StepTimes
from babysit.wire import Part

pytestmark = pytest.mark.filterwarnings("default")  # advice and deprecations of the trainers
FORWARD, BACKWARD, OPTIMIZER, EVALUATION, DATA = 1.0, 2.0, 4.0, 1000.0, 0.5
BATCHES, GROUP = 6, 2
"""Batches that are trained on, and batches per optimizer step."""


class Clock:
    """Seconds that others spend."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Slow(torch.autograd.Function):
    """The identity; its gradient takes a while."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock) -> torch.Tensor:
        ctx.clock = clock
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        ctx.clock.now += BACKWARD
        return gradients[0], None


class Model(torch.nn.Module):
    """A layer whose passes take their time; an evaluation takes more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.clock = clock

    def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        self.clock.now += FORWARD if self.training else EVALUATION
        loss = _Slow.apply(self.layer(x).square().mean(), self.clock)
        return {"loss": loss}


class Optimizer(torch.optim.SGD):
    def __init__(self, model: torch.nn.Module, clock: Clock) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self._clock = clock

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        self._clock.now += OPTIMIZER
        return found


class Data(Dataset[Any]):
    """Samples that take a while to be read."""

    def __init__(self, clock: Clock, length: int = BATCHES) -> None:
        self._clock, self._length = clock, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self._clock.now += DATA
        return {"x": torch.full((2,), float(index)), "labels": torch.zeros(1)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(clock: Clock) -> Iterator[Run]:
    run = babysit.init()
    run._times = StepTimes(clock)
    run.phase("train")
    yield run
    run.flush()


def parts_of(run: Run) -> dict[Part, float]:
    """The seconds of each part; those of pauses are not compared."""
    times = run._times
    times.enter(times.part)
    found = dict(zip(PARTS, times._sums, strict=True))
    del found[Part.PAUSED]
    return found


def expected(*, parts: bool, steps: int = BATCHES // GROUP) -> dict[Part, float]:
    spent = {
        Part.FORWARD: BATCHES * FORWARD,
        Part.BACKWARD: BATCHES * BACKWARD,
        Part.OPTIMIZER: steps * OPTIMIZER,
    }
    if not parts:
        spent = {Part.OTHER: sum(spent.values())}
    return dict.fromkeys(parts_without_pauses(), 0.0) | spent | {Part.DATA: BATCHES * DATA}


def parts_without_pauses() -> list[Part]:
    return [part for part in PARTS if part is not Part.PAUSED]


def has_hooks(model: torch.nn.Module, optimizer: Any) -> bool:
    kinds = (
        model._forward_pre_hooks,
        model._forward_hooks,
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
    )
    return any(kinds)


@pytest.mark.parametrize("parts", [True, False])
def test_the_trainer(tmp_path: Path, run: Run, clock: Clock, parts: bool) -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from babysit.integrations.transformers import BabysitCallback

    class During(TrainerCallback):  # type: ignore[misc,unused-ignore]  # untyped base
        hooked = False

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.hooked |= has_hooks(model, optimizer)

    torch.manual_seed(1)
    model, during = Model(clock), During()
    optimizer = Optimizer(model, clock)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=BATCHES // GROUP,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=GROUP,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Data(clock),
        eval_dataset=Data(Clock(), 2),
        optimizers=(optimizer, None),
        callbacks=[BabysitCallback(run, parts=parts), during],
    )
    trainer.train()
    assert parts_of(run) == expected(parts=parts)
    assert during.hooked == parts
    assert not has_hooks(model, optimizer)


@pytest.mark.parametrize("parts", [True, False])
def test_a_loop_of_accelerates(run: Run, clock: Clock, parts: bool) -> None:
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    from babysit.integrations.accelerate import watch

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=GROUP)
    watch(accelerator, run, parts=parts)
    plain = Model(clock)
    inner = Optimizer(plain, clock)
    model, optimizer, loader, held_out = accelerator.prepare(
        plain, inner, DataLoader(Data(clock)), DataLoader(Data(Clock(), 2))
    )
    hooked = False
    for number, batch in enumerate(loader):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        hooked |= has_hooks(model, inner)
        if number == GROUP:
            model.eval()
            with torch.no_grad():
                for other in held_out:
                    model(**other)
            model.train()
    assert parts_of(run) == expected(parts=parts)
    assert hooked == parts
    assert not has_hooks(model, inner)
    assert not has_hooks(plain, inner)


@pytest.mark.parametrize(
    ("parts", "manual"), [(True, False), (True, True), (False, False), (False, True)]
)
def test_lightning(run: Run, clock: Clock, parts: bool, manual: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports
        lightning = pytest.importorskip("lightning", exc_type=ImportError)
    from babysit.integrations.lightning import BabysitCallback

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual
            self.model = Model(clock)
            self.optimizer = Optimizer(self.model, clock)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch)["loss"]
            if not manual:
                return loss
            self.manual_backward(loss)
            if index % GROUP:
                self.optimizers().step()
                self.optimizers().zero_grad()
            return None

        def validation_step(self, batch: Any, _: int) -> None:
            self.model(**batch)

        def configure_optimizers(self) -> Any:
            return self.optimizer

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        val_check_interval=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BabysitCallback(run, parts=parts)],
        **({} if manual else {"accumulate_grad_batches": GROUP}),
    )
    trainer.fit(module, DataLoader(Data(clock)), DataLoader(Data(Clock(), 2)))
    assert parts_of(run) == expected(parts=parts)
    assert not has_hooks(module, module.optimizer)
