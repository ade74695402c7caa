"""What a rank and its node agent share: environment names, file names, the plan, the notes.

A rank and its agent meet in one directory on tmpfs, the *rank directory* (`BABYSIT_RANK_DIR`):

* `plan.json`: written by the agent before the rank starts; the rank's :class:`Plan`.
* `ring`: the shared-memory ring of samples (:mod:`babysit.ring`).
* `notes.jsonl`: rare, larger messages from the rank, one JSON object a line, append only.

Standard library only: this file is imported inside the user's process.
"""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

ENV_RANK_DIR = "BABYSIT_RANK_DIR"
"""Set by the agent; when it is absent, `babysit.init()` runs stand-alone."""

PLAN_FILE = "plan.json"
RING_FILE = "ring"
OWNER_FILE = "owner"
"""Locked by the process that is the rank, for as long as it lives."""
NOTES_FILE = "notes.jsonl"
MANIFEST_FILE = "manifest.json"
"""Commit marker of a rank's shard of a checkpoint: written last, by rename."""


class Phase(StrEnum):
    """What a rank is doing; limits for hangs differ by phase."""

    STARTING = "starting"  # before `babysit.init()` returns
    RESTORING = "restoring"  # inside `run.restore()`
    TRAINING = "training"  # between steps of the training loop
    LOADING = "loading"  # waiting for the next batch of the loader
    CHECKPOINTING = "checkpointing"  # the blocking part of a save
    EVALUATING = "evaluating"  # `run.phase("evaluate")`
    FINISHED = "finished"  # the loop of `run.steps()` ended


class Tier(StrEnum):
    """Where the bytes of a checkpoint lie."""

    MEMORY = "memory"  # tmpfs on the node
    DIRECTORY = "directory"  # the directory the spec names


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may be loaded. Candidates are tried in the order given."""

    id: str
    step: int
    tier: Tier
    path: str
    """Directory holding `rank-00000/`, `rank-00001/` …; the memory tier's is this node's own."""
    world_size: int
    attempt: int
    """The attempt that wrote it. A manifest of another attempt does not belong to this checkpoint:
    refuse it."""
    run: str = ""
    """The run it belongs to. A manifest that names another does not: refuse it."""


@dataclasses.dataclass(frozen=True, slots=True)
class SavePolicy:
    """When and where a rank saves."""

    directory: str = ""
    """Directory tier; empty: none."""
    every_steps: int = 0
    """Steps between saves to the directory tier; 0: never."""
    memory_directory: str = ""
    memory_every_steps: int = 0
    memory_keep: int = 3
    """Newest memory saves kept by the rank itself. While a peer still writes step N, this rank can
    have finished N + 1 (N + 2 needs the peer in its collectives), and the newest step that every
    rank has is N - 1: hence three."""
    directory_keep: int = 0
    """Newest directory saves kept by the rank; 0: all (an agent's control plane prunes them)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What the control plane decided for one rank of one attempt."""

    run: str
    attempt: int
    rank: int
    world_size: int
    restore: tuple[Candidate, ...] = ()
    """In the order to try; empty: start from the beginning."""
    skip_batches: tuple[tuple[int, int], ...] = ()
    """Quarantined batches, as inclusive ranges of batch numbers (counted from 1)."""
    save: SavePolicy = SavePolicy()

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`."""
        raw: dict[str, Any] = json.loads(text)
        raw["restore"] = tuple(
            Candidate(**{**c, "tier": Tier(c["tier"])}) for c in raw.get("restore", ())
        )
        raw["skip_batches"] = tuple((int(a), int(b)) for a, b in raw.get("skip_batches", ()))
        raw["save"] = SavePolicy(**raw.get("save", {}))
        return cls(**raw)


class Note(StrEnum):
    """Kinds of line in `notes.jsonl`. Every line has `kind`, `time` (Unix seconds) and `rank`."""

    STARTED = "started"  # `babysit.init()` was called
    RESTORED = "restored"  # step, checkpoint (id or ""), seconds, rejected: [{id, reason,
    # unreadable}]; step 0 and "" although there were candidates: none could be loaded
    SHARD = "shard"  # step, tier, path, files: [{name, bytes, blake2b}], batch,
    # seconds: {copy, write}; the directory tier only
    SAVE_FAILED = "save_failed"  # step, tier, error
    FINISHED = "finished"  # step: the loop of `steps()` ended or was left, or `finish()` was called
    EXITING = "exiting"  # step, error (type of an uncaught exception, or ""), code: the
    # interpreter ends in good order
    FINGERPRINT = "fingerprint"  # step, digest: hash of the parameters of this replica


def step_directory(root: str | Path, step: int) -> Path:
    """The directory of one checkpoint: `root/step-000000020`."""
    return Path(root) / f"step-{step:09d}"


def rank_directory(checkpoint: str | Path, rank: int) -> Path:
    """The directory of one rank's shard: `…/step-000000020/rank-00001`."""
    return Path(checkpoint) / f"rank-{rank:05d}"
