"""Checkpoints from the first shard to good, bad or deleted, and rollbacks."""
