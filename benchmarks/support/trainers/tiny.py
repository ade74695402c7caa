"""A tiny language model and its data, for the scripts of `benchmarks/trainers.py`.

`witness(model, layer)` writes down what each rank has trained on, and makes a spike of the loss on
request. It knows nothing of babysit: the benchmark compares its lines with those of babysit. The
rest is what scripts do that save and resume by themselves.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import Turns

ENV_NOTES = "TRAINERS_NOTES"
WORDS, LENGTH, WIDTH = 64, 16, 32
SAMPLES, BATCH = 120, 2
STEPS = int(os.environ.get("TRAINERS_STEPS", "300"))
SPIKE = 40.0
"""Factor on what a damaged layer computes."""
SAVE_EVERY = int(os.environ.get("TRAINERS_SAVE_EVERY", "10"))
"""Steps between two checkpoints of the script's own."""


def tokens_of(index: int) -> Tensor:
    """The tokens of a sample: half of them random, half of them a repetition."""
    half = torch.randint(0, WORDS, (LENGTH // 2,), generator=torch.Generator().manual_seed(index))
    return torch.cat((half, half))


class Tokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as Hugging Face's models take them."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = tokens_of(index)
        return {"input_ids": tokens, "labels": tokens}


class Model(nn.Module):
    """Predicts the next token from the ones before; returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the batch."""
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        logits = self.head(self.layer(self.embed(input_ids), mask, is_causal=True))
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class _Witness:
    """One line for each forward pass: its batch and its loss."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._attempt = os.environ.get("BABYSIT_ATTEMPT", "1")
        rank = os.environ.get("RANK", "0")
        (notes / f"{self._attempt}.{rank}.pid").write_text(str(os.getpid()))
        self._lines = (notes / f"{self._attempt}.{rank}.jsonl").open("a", buffering=1)

    def note(self, batch: Tensor, loss: float) -> None:
        found = zlib.crc32(batch.contiguous().numpy().tobytes())
        self._lines.write(json.dumps({"batch": found, "loss": loss}) + "\n")

    @property
    def is_damaged(self) -> bool:
        """True if this attempt computes wrongly from now on."""
        order = self._notes / "spike"
        return order.exists() and order.read_text() == self._attempt

    @property
    def pause(self) -> float:
        """Seconds for which a step lasts longer, so that faults strike in its midst."""
        return 0.0 if (self._notes / "hurry").exists() else 0.1


def witness(model: nn.Module, layer: nn.Module, *, scale: float = 1.0) -> None:
    """Watch the training passes of a model; `layer`, one of its last, is damaged on request.

    `scale` is the factor from the loss that the model returns to the one that its trainer means.
    """
    seen = _Witness(Path(os.environ[ENV_NOTES]))
    turns = Turns.from_environment()

    def after_pass(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            loss = output if isinstance(output, Tensor) else output["loss"]
            seen.note(kwargs["input_ids"] if kwargs else args[0], scale * float(loss.detach()))
            time.sleep(seen.pause)
            if turns is not None:
                turns.end_pass()

    def after_layer(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * SPIKE if seen.is_damaged else output

    model.register_forward_hook(after_pass, with_kwargs=True)
    layer.register_forward_hook(after_layer)


def tail() -> None:
    """Mark that the rest of the script has run, which must see a trained model only."""
    with (Path(os.environ[ENV_NOTES]) / "tails").open("a") as marks:
        marks.write(os.environ.get("BABYSIT_ATTEMPT", "1") + "\n")


# --- a script's own checkpoints -----------------------------------------------------------------


def resumed() -> Path | None:
    """The checkpoint after `--resume`."""
    return Path(sys.argv[sys.argv.index("--resume") + 1]) if "--resume" in sys.argv else None


def step_of(checkpoint: Path | None) -> int:
    """The step in the name of a checkpoint; 0: there is none."""
    return int(checkpoint.stem.rpartition("-")[2]) if checkpoint else 0


def is_due(step: int) -> bool:
    """True if a script saves after this step."""
    return step % SAVE_EVERY == 0


def load(state: dict[str, Any]) -> int:
    """Load the checkpoint after `--resume`; its step."""
    if found := resumed():
        for name, saved in torch.load(found, weights_only=True).items():
            state[name].load_state_dict(saved)
    return step_of(resumed())


def save(state: dict[str, Any], step: int) -> None:
    """Save as many scripts do: rank 0 alone, now and then."""
    if is_due(step) and os.environ["RANK"] == "0":
        Path("out").mkdir(exist_ok=True)
        saved = {name: part.state_dict() for name, part in state.items()}
        torch.save(saved, f"out/checkpoint-{step}.pt")


def numbered(loader: Any, after: int) -> Iterator[tuple[int, Any]]:
    """Steps and batches over all epochs, without those of earlier steps."""
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    return itertools.islice(zip(range(1, STEPS + 1), endless, strict=False), after, None)


def log(step: int, loss: float) -> None:
    """Print a line for each step, on rank 0."""
    if os.environ["RANK"] == "0":
        print(f"step {step} loss {loss:.4f}", flush=True)
