"""Understands the launchers that start training scripts elsewhere, and replaces them.

`torchrun --nproc_per_node 2 train.py` starts two ranks, restarts them, and picks their address. All
of that is babysit's work, and two launchers inside each other corrupt checkpoints. So the command
of a launcher is read as its own parser would read it, and becomes a plain command, a number of
processes and nodes, and variables. Each option has a treatment in a table: it is honoured, it is
irrelevant here (with the reason), or it is refused by name.
"""

from jobs.launchers.options import LauncherError
from jobs.launchers.understand import (
    Counts,
    Launch,
    Surroundings,
    foreign_in,
    launcher_in,
    understand,
)
from jobs.launchers.wrappers import unwrap

__all__ = [
    "Counts",
    "Launch",
    "LauncherError",
    "Surroundings",
    "foreign_in",
    "launcher_in",
    "understand",
    "unwrap",
]
