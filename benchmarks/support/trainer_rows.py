"""The rows of `benchmarks/trainers.py`: a script of each trainer, and the lines it needs."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

SCRIPTS = Path(__file__).parent / "trainers"
MARK = "# babysit"
"""Ends each line of a script that is there for babysit."""
WITHOUT = "# without it: "
"""Begins a line that the script has without babysit."""
WITH_A_LOOP = 2
"""Most lines for a framework that has the loop."""
OWN_LOOP = 11
"""Most lines for a loop that is the script's own."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One trainer.

    Attributes:
        script: File of its script.
        arguments: Arguments of the script.
        needs: Modules that must be installed.
        preload: Modules that the fork server imports.
        most_lines: Lines with which the script must do.
        launcher: Words that start the script without babysit, but for its name.
        checkpoints: Where the script saves by itself.
        complete: The file that is written last into such a checkpoint.
        watch: Fields of `watch`, where the script prints lines of its own.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    preload: tuple[str, ...] = ("torch",)
    most_lines: int = OWN_LOOP
    launcher: tuple[str, ...] = ("torchrun", "--nproc_per_node", "2")
    checkpoints: str = "out/checkpoint-{step}"
    complete: str | None = None
    watch: dict[str, str] | None = None

    @property
    def file(self) -> Path:
        """Path of the script."""
        return SCRIPTS / self.script

    @property
    def lines(self) -> int:
        """Lines of the script that are there for babysit."""
        return sum(line.endswith(MARK) for line in self.file.read_text().splitlines())

    @property
    def unmodified(self) -> str:
        """The script without babysit."""
        lines = self.file.read_text().splitlines()
        kept = [line.replace(WITHOUT, "") for line in lines if not line.endswith(MARK)]
        return "\n".join(kept) + "\n"

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


_PRINTS = {"step": r"step (\d+) loss ", "loss": r"step \d+ loss ([\d.]+)"}


def _trainer(name: str, script: str, *needs: str, arguments: tuple[str, ...] = ()) -> Row:
    return Row(
        *(name, script, arguments),
        needs=needs,
        preload=("torch", *needs),
        complete="trainer_state.json",
        most_lines=WITH_A_LOOP,
    )


def _accelerate(name: str, *arguments: str) -> Row:
    return Row(
        *(name, "accelerate_loop.py", arguments, ("accelerate",)),
        preload=("torch", "accelerate"),
        most_lines=WITH_A_LOOP,
        launcher=("accelerate", "launch", "--cpu", "--num_processes", "2"),
        watch=_PRINTS,
    )


def _sharded(kind: str, *needs: str) -> Row:
    needs = ("transformers", "accelerate", *needs)
    return _trainer(f"transformers-{kind}", "transformers_trainer.py", *needs, arguments=(kind,))


def _lightning(name: str, *arguments: str, complete: str | None = None) -> Row:
    return Row(
        *(name, "lightning_trainer.py", arguments, ("lightning",)),
        preload=("torch", "lightning"),
        checkpoints="out/step={step}.ckpt",
        complete=complete,
        most_lines=WITH_A_LOOP,
    )


def _deepspeed(stage: str) -> Row:
    return Row(
        *(f"deepspeed-zero{stage}", "deepspeed_zero.py", (stage,), ("deepspeed",)),
        preload=("torch", "deepspeed"),
        launcher=("deepspeed", "--no_local_rank", "--num_gpus", "2"),
        watch=_PRINTS,
    )


ROWS = {
    row.name: row
    for row in (
        Row("sdk", "sdk_loop.py", checkpoints="out/checkpoint-{step}.pt", watch=_PRINTS),
        Row("nanogpt", "nanogpt_like.py", checkpoints="out/checkpoint-{step}.pt"),
        Row(
            *("fsdp2", "fsdp2.py"),
            preload=("torch", "torch.distributed.fsdp"),
            complete=".metadata",
            watch=_PRINTS,
        ),
        _trainer("transformers", "transformers_trainer.py", "transformers", "accelerate"),
        _trainer("trl", "trl_sft.py", "trl", "transformers", "datasets"),
        _sharded("fsdp"),
        _sharded("deepspeed", "deepspeed"),
        _accelerate("accelerate"),
        _accelerate("accelerate-fsdp", "fsdp"),
        _lightning("lightning-automatic"),
        _lightning("lightning-manual", "manual"),
        _lightning("lightning-fsdp", "fsdp", complete="meta.pt"),
        _deepspeed("2"),
        _deepspeed("3"),
    )
}
"""All rows by name."""
