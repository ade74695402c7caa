"""Where a script saves its own checkpoints: `out/checkpoint-{step}`, `epoch=*-step={step}.ckpt`.

`{step}` stands for the number of the step, `*` for anything but a slash. A pattern without `{step}`
names one place that is written again and again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

STEP = "{step}"
CHECKPOINT = "{checkpoint}"
PLACEHOLDERS = (CHECKPOINT, STEP)
_OTHER = re.compile(r"\{[^{}]*\}")


def problem_of(pattern: str) -> str | None:
    """The problem of a pattern as a sentence; None: it can be used."""
    if pattern.count(STEP) > 1:
        return "expected {step} once"
    if others := sorted(set(_OTHER.findall(pattern)) - {STEP}):
        return f"unknown placeholder {others[0]}; expected {{step}}, and * for any other part"
    if "**" in pattern or "?" in pattern or "[" in pattern:
        return "expected no **, ? or [; * stands for any part of one name"
    name = pattern.rstrip("/").rpartition("/")[2]
    if not name or name in {".", "..", "*"}:
        return (
            "expected a path that ends in the name of a checkpoint, such as out/checkpoint-{step}"
        )
    return None


def find(pattern: str) -> Mapping[int, Path]:
    """The places that match an absolute pattern now, by step; without `{step}`, by 0. Blocks.

    Of several places with one step (`epoch=*-step={step}`) the last one by name counts.
    """
    root, *parts = Path(pattern).parts
    names = re.compile(
        re.escape(pattern.rstrip("/"))
        .replace(r"\{step\}", r"(?P<step>\d+)")
        .replace(r"\*", "[^/]*")
    )
    glob = "/".join(parts).replace(STEP, "*")
    found: dict[int, Path] = {}
    for path in sorted(Path(root).glob(glob)):
        match = names.fullmatch(str(path))
        if match is not None:
            found[int(match.groupdict().get("step") or 0)] = path
    return found


def fill(arguments: tuple[str, ...], checkpoint: str, step: int) -> tuple[str, ...]:
    """Arguments with a checkpoint in place of the placeholders."""
    return tuple(
        text.replace(CHECKPOINT, checkpoint).replace(STEP, str(step)) for text in arguments
    )
