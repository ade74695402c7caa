"""DeepSpeed: the engine as a state.

    state = EngineState(engine)
    run.restore(state)
    for step, batch in run.steps(loader, total=1000):
        loss = engine(batch); engine.backward(loss); engine.step()
        run.report(loss=loss, grad_norm=engine.get_global_grad_norm() or -1.0)
        run.checkpoint(state)

DeepSpeed's own save holds barriers, so unlike a save of ours it waits for every rank; and it blocks
training while it writes to the nearest tier. It loads at the world size it was saved at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from babysit.errors import StateMismatchError

_TAG = "state"


class EngineState:
    """Saves and loads what a `DeepSpeedEngine` holds: module, optimizer, scheduler."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def save(self, directory: Path) -> None:
        """Have the engine write; a collective."""
        # By default the model is written by the first data-parallel rank alone; a shard of ours is
        # to be whole by itself, as other nodes' memory is out of reach when it is loaded.
        self._engine.save_non_zero_checkpoint = True
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Have the engine read.

        Raises:
            StateMismatchError: It found nothing it could use.
        """
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if path is None:
            raise StateMismatchError(f"DeepSpeed found no checkpoint it can load in {directory}")
