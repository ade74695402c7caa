"""What can go wrong on the trainer's side. Each says what, where, and what to do next."""

from __future__ import annotations


class BabysitError(Exception):
    """Root of the errors raised into a training script."""


class PlanError(BabysitError):
    """The agent's plan cannot be read."""


class EmptyLoaderError(BabysitError):
    """A pass over the loader gave no batch."""


class NotDistributedError(BabysitError):
    """Several ranks share a state, but torch.distributed is not initialised."""


class StateMismatchError(BabysitError):
    """A sound checkpoint does not fit the state it is loaded into: the script has changed."""


class ShardRefusedError(BabysitError):
    """A shard is missing, incomplete or damaged; the next candidate is tried."""


class ShardUnreadableError(ShardRefusedError):
    """A shard is not there, or cannot be read: which may pass, and says nothing of its content."""


class NothingLoadedError(BabysitError):
    """There are checkpoints, and none can be loaded: to begin again would throw them away."""
