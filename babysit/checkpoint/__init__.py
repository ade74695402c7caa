"""Checkpoints: each rank writes its own shard, alone, so a save never waits for a dead peer."""

from babysit.checkpoint.saver import DirectoryState

__all__ = ["DirectoryState"]
