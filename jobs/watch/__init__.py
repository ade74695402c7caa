"""Reads steps and losses from the output of scripts that report nothing themselves. Pure.

Limits: a step is known when its line is written, so scripts that print every 100 steps are known
to the nearest 100. Output that no pattern matches tells nothing, and nothing is made up.
"""

from jobs.watch.log_reader import LogReader, Seen
from jobs.watch.patterns import problem_of
from jobs.watch.presets import PRESETS, Preset

__all__ = ["PRESETS", "LogReader", "Preset", "Seen", "problem_of"]
