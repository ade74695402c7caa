"""DeepSpeed's universal format: a checkpoint of one number of ranks, loaded by another one.

Rank 0 puts the shards of all ranks together, DeepSpeed's own converter works on them, and all ranks
load what comes of it. Limits: all ranks must see the shards, so a checkpoint in the memory of nodes
does not serve; and the directory must have room for the state once more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babysit import collective

_PLACE = "universal"
"""Directory beside those of the ranks, while they load."""


def convert(engine: Any, step: Path, tag: str) -> str:
    """Convert what all ranks saved; a collective.

    Args:
        engine: The engine that will load it.
        step: The directory of all ranks.
        tag: The tag of the checkpoint, which is the directory of the shards in that of a rank.

    Returns:
        What went wrong; empty: nothing did.
    """
    why = ""
    if int(engine.global_rank) == 0:
        try:
            _convert(sorted(step.glob(f"rank-*/{tag}")), step / _PLACE, tag)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other ranks wait
            why = f"{type(error).__name__}: {error}"
            shutil.rmtree(step / _PLACE, ignore_errors=True)
    if collective.minimum(int(not why))[0]:
        return ""
    return why or "the log of rank 0 says why"


@contextlib.contextmanager
def loading(engine: Any, step: Path) -> Iterator[Path]:
    """The directory from which the engine loads inside the block; then it is removed.

    A rank whose load fails leaves at once: a collective of its own would meet those of the others'
    load. The next conversion removes what is left then.
    """
    config = engine._config  # noqa: SLF001  # it reads this file's setting only when it is made
    before, config.load_universal_checkpoint = config.load_universal_checkpoint, True
    try:
        yield step / _PLACE
    finally:
        config.load_universal_checkpoint = before
    collective.minimum(0)  # all ranks have read it
    if int(engine.global_rank) == 0:
        shutil.rmtree(step / _PLACE, ignore_errors=True)


def _convert(shards: list[Path], place: Path, tag: str) -> None:
    from deepspeed.checkpoint import ds_to_universal  # noqa: PLC0415  # loaded only if it is used

    shutil.rmtree(place, ignore_errors=True)
    together = place / "shards"
    together.mkdir(parents=True)
    for file in (file for shard in shards for file in shard.iterdir()):
        link = together / file.name  # a file that several ranks have is there once
        if not link.exists():
            link.symlink_to(file.absolute())
    given = argparse.Namespace(
        input_folder=str(together),
        output_folder=str(place / tag),
        num_extract_workers=1,  # in this process: its other threads do not live through a fork
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(given)
