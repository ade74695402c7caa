"""The protocol of a rank and its node agent: environment names, file names, the plan, the notes.

A rank and its agent communicate through one directory on tmpfs, the *rank directory*
(`BABYSIT_RANK_DIR`):

* `plan.json`: the rank's :class:`Plan`, written by the agent before the rank starts.
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
"""Set by the agent; if it is absent, `babysit.init()` runs stand-alone."""

PLAN_FILE = "plan.json"
RING_FILE = "ring"
OWNER_FILE = "owner"
"""Locked by the process that is the rank, for as long as it lives."""
NOTES_FILE = "notes.jsonl"
EXIT_FILE = "exit"
"""Exit code of the process that is the rank, as a C `int`; empty or absent: unknown."""
ERROR_FILE = "error.json"
"""Where `torch.distributed.elastic`'s `@record` writes the exception of the rank."""
MANIFEST_FILE = "manifest.json"
"""Commit marker of a rank's shard of a checkpoint: written last, by rename."""


class Phase(StrEnum):
    """The activity of a rank; limits for hangs differ by phase."""

    STARTING = "starting"  # before `babysit.init()` returns
    RESTORING = "restoring"  # inside `run.restore()`
    TRAINING = "training"  # between steps of the training loop
    LOADING = "loading"  # waiting for the next batch of the loader
    CHECKPOINTING = "checkpointing"  # the blocking part of a save
    EVALUATING = "evaluating"  # `run.phase("evaluate")`
    FINISHED = "finished"  # the loop of `run.steps()` ended


class Part(StrEnum):
    """The parts of the time of a rank, in the order of the ring. A new one goes to the end."""

    OTHER = "other"  # between steps of the loop, in none of the parts below
    DATA = "data"  # waiting for the next batch of the loader
    FORWARD = "forward"
    BACKWARD = "backward"  # from the end of the forward pass to this rank's last gradient
    OPTIMIZER = "optimizer"
    WAIT = "wait"  # waiting for other ranks
    PAUSED = "paused"  # saving, restoring, evaluating: other ranks may not do so


class Tier(StrEnum):
    """The storage tier of a checkpoint."""

    MEMORY = "memory"  # tmpfs on the node
    DIRECTORY = "directory"  # the directory that the spec names


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that may be loaded. Candidates are tried in the given order."""

    id: str
    step: int
    tier: Tier
    path: str
    """Directory with `rank-00000/`, `rank-00001/` …; for the memory tier, that of this node."""
    world_size: int
    attempt: int
    """The attempt that wrote it; manifests of other attempts are refused."""
    run: str = ""
    """The run that wrote it; manifests that name another run are refused."""


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
    """Number of newest memory saves that the rank keeps.

    While a peer still writes step N, this rank may have finished N + 1 (N + 2 needs the peer in its
    collectives), and the newest step of every rank is N - 1: hence three.
    """
    directory_keep: int = 0
    """Number of newest directory saves that the rank keeps; 0: all (the control plane prunes)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The control plane's decisions for one rank of one attempt."""

    run: str
    attempt: int
    rank: int
    world_size: int
    restore: tuple[Candidate, ...] = ()
    """Candidates in the order to try; empty: start from step 0."""
    skip_batches: tuple[tuple[int, int], ...] = ()
    """Quarantined batches, as inclusive ranges of batch numbers (counted from 1)."""
    save: SavePolicy = SavePolicy()

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse a plan: the inverse of :meth:`to_json`.

        Raises:
            ValueError: The text is not JSON, or a value is invalid.
            KeyError: A field is missing.
            TypeError: A field is missing or unknown.
        """
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
    # unreadable}]; step 0 and "" with candidates in the plan: none could be loaded
    SHARD = "shard"  # step, tier, path, files: [{name, bytes, blake2b}], batch,
    # seconds: {copy, write}; the directory tier only
    SAVE_FAILED = "save_failed"  # step, tier, error, full: there is no room or no quota
    SAVE_RESUMED = "save_resumed"  # step, tier: saved again after a save to the tier had failed
    LOOPING = "looping"  # step: a loop of `steps()` begins
    LEFT = "left"  # step: the loop of `steps()` was left, by `break`, `return` or an exception
    FINISHED = "finished"  # step: the loop of `steps()` ended, or `finish()` was called
    RAISED = "raised"  # error (type), trace: no code caught an exception of the main thread; other
    # threads may keep the process
    EXITING = "exiting"  # error (type of an exception that was not caught, or that the exit hid;
    # or ""), trace (of the hidden one), code, handled (signals): the interpreter ends in good order
    CHANGE = "change"  # change (text), step (the last one before it), until_step: `run.expect()`
    ENGINE = "engine"  # engine (ray): it starts the processes of the run, and restarts them itself
    ENGINE_FAILED = "engine_failed"  # engine, step, failures: [{rank, node, lost (process, node,
    # memory, or "" for an exception), text}]: the engine restarts its processes, or gives up
    ENGINE_RESUMED = "engine_resumed"  # engine, step: the first step after it restarted them
    ENGINE_SAVED = "engine_saved"  # engine, step, path, bytes, gone: [steps that it has deleted]
    FINGERPRINT = "fingerprint"  # of older ranks; now in `babysit.fingerprint_ring`


def step_directory(root: str | Path, step: int) -> Path:
    """The directory of one checkpoint: `root/step-000000020`."""
    return Path(root) / f"step-{step:09d}"


def rank_directory(checkpoint: str | Path, rank: int) -> Path:
    """The directory of one rank's shard: `…/step-000000020/rank-00001`."""
    return Path(checkpoint) / f"rank-{rank:05d}"
