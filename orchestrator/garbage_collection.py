"""How often Python looks for cycles in a process that keeps a large state."""

from __future__ import annotations

import gc

THRESHOLDS = (50_000, 20, 20)
"""New containers between two collections of the youngest, and those between older ones.

Python's 700 has a scheduling pass over 10,000 nodes collect hundreds of times, and each full
collection goes through all that is stored: 10 to 30 % of a pass, and most of the worst ones.
"""


def collect_rarely() -> None:
    """Set the thresholds for this process. What no cycle holds is freed at once, as before."""
    gc.set_threshold(*THRESHOLDS)
