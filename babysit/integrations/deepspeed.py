"""DeepSpeed: the engine as a state.

    state = EngineState(engine)
    run.restore(state)
    for step, batch in run.steps(loader, total=1000):
        loss = engine(batch); engine.backward(loss); engine.step()
        run.report(loss=loss, grad_norm=engine.get_global_grad_norm() or -1.0)
        run.checkpoint(state)

DeepSpeed's own save has barriers, so it waits for every rank, unlike other saves of babysit; and it
blocks training while it writes to the nearest tier. It loads only at the world size of the save.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from babysit.errors import StateMismatchError

_TAG = "state"


class EngineState:
    """Saves and loads the state of a `DeepSpeedEngine`: module, optimizer, scheduler."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def save(self, directory: Path) -> None:
        """Let the engine write its state; a collective."""
        # By default only the first data-parallel rank writes the model. Here each shard must be
        # complete by itself, since other nodes' memory is unreachable at a load.
        self._engine.save_non_zero_checkpoint = True
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Let the engine read its state.

        Raises:
            StateMismatchError: The directory holds no checkpoint that it can load.
        """
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if path is None:
            raise StateMismatchError(f"DeepSpeed found no checkpoint it can load in {directory}")
