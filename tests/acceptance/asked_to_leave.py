"""For scripts of tests: this rank is asked to leave, as its agent asks, and leaves in that step."""

from __future__ import annotations

import os
from pathlib import Path

from babysit import stop_agreement
from babysit.ring import RingReader
from babysit.wire import ENV_RANK_DIR, RING_FILE


def leave_now() -> None:
    """Ask this rank to leave."""
    RingReader(Path(os.environ[ENV_RANK_DIR]) / RING_FILE).request_stop()


def meet_at_each_step() -> None:
    """Have the ranks agree in each step, on all of them, as slow steps do."""
    stop_agreement.MOST_CALLS = 1
