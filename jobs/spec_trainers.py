"""Fields of the run spec for scripts that know nothing of babysit."""

from __future__ import annotations

from enum import StrEnum


class Launcher(StrEnum):
    """The launcher whose variables the ranks get."""

    NONE = "none"  # the variables of a single process: many scripts take RANK as several ranks
    TORCHRUN = "torchrun"  # those of torchrun
