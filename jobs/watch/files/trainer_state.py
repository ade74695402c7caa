"""`trainer_state.json`, which the Trainer of transformers writes into its checkpoints. Pure.

The file is written anew with each checkpoint, with all losses since the first step. Source:
`transformers/trainer_callback.py`, `TrainerState`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from jobs.watch.files.rows import Row, numbers


def rows_of_state(data: bytes) -> list[Row]:
    """The rows of the whole file, the last of which has the step of the checkpoint.

    Raises:
        ValueError: It is not whole (yet), or it is another file.
    """
    state = json.loads(data)
    history = state.get("log_history") if isinstance(state, Mapping) else None
    step = state.get("global_step") if isinstance(state, Mapping) else None
    if not isinstance(history, list) or not isinstance(step, int):
        raise ValueError("expected log_history and global_step")  # noqa: TRY004 (a wrong file)
    rows = [Row(dict(numbers(entry))) for entry in history if isinstance(entry, Mapping)]
    return [*rows, Row({}, step=step, counts=True)]
