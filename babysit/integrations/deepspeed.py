"""DeepSpeed: the engine as a state.

    state = EngineState(engine)
    run.restore(state)
    for step, batch in run.steps(loader, total=1000):
        loss = engine(batch); engine.backward(loss); engine.step()
        run.report(loss=loss, grad_norm=engine.get_global_grad_norm() or -1.0)
        run.checkpoint(state)

ZeRO 1, 2 and 3, also with offload. `loader` may be the one that `deepspeed.initialize()` returns:
it goes on at the exact batch. DeepSpeed's own save has barriers, so it waits for every rank, unlike
other saves of babysit; and it blocks training while it writes to the nearest tier.

Each rank saves all that it needs, so both tiers serve. Another number of ranks loads a checkpoint
of the directory through DeepSpeed's universal format; one of a pipeline is refused.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from babysit.errors import StateMismatchError
from babysit.integrations import deepspeed_universal

_TAG = "state"
_RANKS_FILE = "ranks.json"
_BESIDE = "babysit_beside"


class EngineState:
    """Saves and loads the state of a `DeepSpeedEngine`: module, optimizer, scheduler.

    A `PipelineEngine` is one too.
    """

    def __init__(self, engine: Any, beside: Mapping[str, Any] | None = None) -> None:
        """Take the engine.

        Args:
            engine: The engine.
            beside: Objects with `state_dict` and `load_state_dict` that belong to the state, such
                as a scheduler that the engine does not know.
        """
        self._engine = engine
        self._beside = dict(beside or {})

    def save(self, directory: Path) -> None:
        """Let the engine write its state; a collective."""
        states = {name: each.state_dict() for name, each in self._beside.items()}
        write_engine(self._engine, directory, _TAG, {_BESIDE: states})

    def load(self, directory: Path) -> None:
        """Let the engine read its state.

        Raises:
            StateMismatchError: The directory holds no checkpoint that it can load, or one of other
                objects beside the engine.
        """
        with _loadable(self._engine, directory) as place:
            path, more = self._engine.load_checkpoint(str(place), tag=_TAG)
        if path is None:
            raise StateMismatchError(f"DeepSpeed found no checkpoint it can load in {directory}")
        saved = (more or {}).get(_BESIDE, {})
        if set(saved) != set(self._beside):
            raise StateMismatchError(
                f"{directory} has {sorted(saved)} beside the engine, and the script has"
                f" {sorted(self._beside)}: pass what was saved, or use another checkpoint directory"
            )
        for name, each in self._beside.items():
            each.load_state_dict(saved[name])


def write_engine(engine: Any, directory: Path, tag: str, more: dict[str, Any]) -> None:
    """Have an engine write this rank's part, and all that it shares with others; a collective."""
    # By default only the first data-parallel rank writes the model. Here each shard must be
    # complete by itself, since other nodes' memory is unreachable at a load.
    engine.save_non_zero_checkpoint = True
    engine.save_checkpoint(str(directory), client_state=more, tag=tag, save_latest=False)
    _write_layers(engine, directory / tag)
    (directory / "latest").write_text(tag)  # by which a load without a tag finds it
    (directory / _RANKS_FILE).write_text(json.dumps(int(engine.world_size)))


def _write_layers(engine: Any, directory: Path) -> None:
    """Have a stage of a pipeline write its layers, which only its first replica has done."""
    grid = getattr(engine.module, "_grid", None)
    if grid is None or (replica := grid.data_parallel_id) == 0:
        return
    grid.data_parallel_id = 0
    try:
        engine.module.save_state_dict(str(directory), engine.checkpoint_engine)
    finally:
        grid.data_parallel_id = replica


@contextlib.contextmanager
def _loadable(engine: Any, directory: Path) -> Iterator[Path]:
    """A directory from which the engine can load what one rank, or all of them, have saved.

    Raises:
        StateMismatchError: Another number of ranks saved it, and it cannot be converted.
    """
    step = directory.parent
    if saved_ranks(engine, directory) == engine.world_size or not engine.zero_optimization():
        with _with_all_names(engine, directory) as place:
            yield place
        return
    if engine.mp_world_size > 1:  # the stages of a pipeline
        require_ranks(engine, directory, _TAG, step)
    if why := deepspeed_universal.convert(engine, step, _TAG):
        require_ranks(engine, directory, _TAG, step, why=f"It could not be converted: {why}. ")
    with deepspeed_universal.loading(engine, step) as place:
        yield place


@contextlib.contextmanager
def _with_all_names(engine: Any, directory: Path) -> Iterator[Path]:
    """A directory that has a file for each model-parallel rank: DeepSpeed counts them at a load.

    It reads the one of its own rank, and the world size from the first. A pipeline's stages are
    model-parallel ranks, and the files of the others lie with them.
    """
    names = [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(engine.mp_world_size)]
    own = next((name for name in names if (directory / _TAG / name).exists()), None)
    if own is None or len(names) == 1:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="babysit-") as made:
        place = Path(made)
        (place / _TAG).mkdir()
        for file in (directory / _TAG).iterdir():
            (place / _TAG / file.name).symlink_to(file.absolute())
        for name in names:
            if not (place / _TAG / name).exists():
                (place / _TAG / name).symlink_to((directory / _TAG / own).absolute())
        yield place


def saved_ranks(ranks: Any, directory: Path) -> int:
    """The number of ranks that saved a checkpoint; unknown: that of `ranks`."""
    file = directory / _RANKS_FILE
    return int(json.loads(file.read_text()) if file.exists() else ranks.world_size)


def require_ranks(ranks: Any, directory: Path, tag: str, step: Path, *, why: str = "") -> None:
    """Refuse a checkpoint of another world size: an engine would mix its shards up.

    Args:
        ranks: The engine, or anything with its `world_size`.
        directory: The directory that has the files of this rank.
        tag: The tag of the checkpoint.
        step: The directory of all ranks.
        why: A sentence for the message, with a space behind it.

    Raises:
        StateMismatchError: It was saved by another number of ranks; the message says what to do.
    """
    saved = saved_ranks(ranks, directory)
    if saved == ranks.world_size:
        return
    shards = "/".join(("rank-*", *directory.relative_to(step).parts[1:], tag))
    raise StateMismatchError(
        f"{step}: {saved} ranks saved it with DeepSpeed, and this attempt has"
        f" {ranks.world_size}. {why}Give the run {saved} ranks again; or collect the shards (cp -rn"
        f" {step}/{shards} MERGED/), convert them (python -m"
        f" deepspeed.checkpoint.ds_to_universal --input_folder MERGED/{tag} --output_folder"
        " UNIVERSAL), and begin a new run that loads UNIVERSAL"
    )
