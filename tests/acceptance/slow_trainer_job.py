"""Two ranks of a trainer's own DDP, one of them slow in a layer; babysit has one line at most.

The first argument is the trainer: `transformers`, `accelerate` or `lightning`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import babysit

SLOW_RANK, SLOW_SECONDS, STEPS = 1, 0.15, 1_000_000
RANK = int(os.environ["RANK"])
# An agent sets these, and Lightning knows the ranks by them.
os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "job"}
torch.set_num_threads(1)
babysit.auto()


class Model(torch.nn.Module):
    """A layer that takes its time on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        """The loss; the sleep is the fault."""
        if RANK == SLOW_RANK:
            time.sleep(SLOW_SECONDS)
        return {"loss": self.layer(x).square().mean()}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Many equal samples."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(4), "labels": torch.zeros(1)}


def transformers() -> None:
    """Train with the Trainer."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir="out",
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(Model(), arguments, train_dataset=Rows()).train()


def accelerate() -> None:
    """Train with a loop of accelerate's."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), Model()
    parts = model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(Rows(), batch_size=2)
    model, optimizer, loader = accelerator.prepare(*parts)
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()


def lightning() -> None:
    """Train with Lightning."""
    import lightning as pl

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
            return self.model(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(Rows(), batch_size=2))


{"transformers": transformers, "accelerate": accelerate, "lightning": lightning}[sys.argv[1]]()
