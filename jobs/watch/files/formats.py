"""The formats of files of metrics: their names, and their usual places. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

from jobs.watch.files.json_lines import LineDecoder
from jobs.watch.files.rows import Row
from jobs.watch.files.tensorboard import EventDecoder
from jobs.watch.files.wandb_file import RunFileDecoder


class Decoder(Protocol):
    """Decodes a file that grows."""

    trouble: str
    """Why nothing more can be read; empty: nothing is wrong."""

    def feed(self, data: bytes) -> list[Row]:
        """Take bytes as they were appended; returns the rows that they complete."""
        ...


class Format(StrEnum):
    """A format of metrics; the names are also presets of `watch`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    JSON_LINES = "json-lines"
    TRAINER_STATE = "trainer-state"  # written anew as a whole


DECODERS: Mapping[Format, Callable[[], Decoder]] = {
    Format.TENSORBOARD: EventDecoder,
    Format.WANDB: RunFileDecoder,
    Format.JSON_LINES: LineDecoder,
}
PLACES: Mapping[Format, tuple[str, ...]] = {
    Format.TENSORBOARD: tuple(
        f"{place}events.out.tfevents.*"
        for place in (
            *("", "*/", "runs/*/", "*/runs/*/", "lightning_logs/version_*/"),
            *("*/lightning_logs/version_*/", "logs/*/", "*/tensorboard/", "*/tb/", "*/tb/*/"),
        )
    ),
    Format.WANDB: ("wandb/*run-*/run-*.wandb", "*/wandb/*run-*/run-*.wandb"),
    Format.JSON_LINES: tuple(
        f"{place}{name}.jsonl"
        for place in ("", "*/", "*/*/")
        for name in ("metrics", "log", "train", "train_log", "logs", "scalars")
    ),
    Format.TRAINER_STATE: tuple(
        f"{place}checkpoint-*/trainer_state.json" for place in ("", "*/", "*/*/")
    ),
}
"""Where scripts usually write, relative to their directory."""
_LINES = (".jsonl", ".ndjson", ".jsonlines")


def format_of(name: str, *, sure: bool = False) -> Format | None:
    """The format of a file by its name. `sure`: None where the name says little."""
    if "tfevents" in name:
        return Format.TENSORBOARD
    if name.endswith(".wandb"):
        return Format.WANDB
    if name == "trainer_state.json":
        return Format.TRAINER_STATE
    return Format.JSON_LINES if not sure or name.endswith(_LINES) else None
