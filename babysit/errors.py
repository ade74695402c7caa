"""Errors raised into a training script. Messages say what, where, and what to do next."""

from __future__ import annotations


class BabysitError(Exception):
    """Base of the errors raised into a training script."""


class PlanError(BabysitError):
    """The agent's plan cannot be read."""


class EmptyLoaderError(BabysitError):
    """A pass over the loader gave no batch."""


class PositionUnusedError(BabysitError):
    """The script ended without a call of `steps()` that uses the restored position."""


class NotDistributedError(BabysitError):
    """Several ranks share a state, but torch.distributed is not initialised."""


class StateMismatchError(BabysitError):
    """A sound checkpoint does not fit the state: the script has changed."""


class ShardRefusedError(BabysitError):
    """A shard is missing, incomplete or damaged; the next candidate is tried."""


class ShardUnreadableError(ShardRefusedError):
    """A shard is missing or unreadable, which may be temporary; its content may be sound."""


class NothingLoadedError(BabysitError):
    """There are checkpoints, but none can be loaded; a start from step 0 would discard them."""
