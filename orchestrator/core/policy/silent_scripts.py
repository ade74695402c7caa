"""Scripts that have said nothing: no call of `babysit.init()`, and no step in their output.

Such a script may train for weeks without a word, so that its silence proves nothing, and no limit
ends it. Its ranks are looked at all the same, now and then: one that is stopped or dead keeps the
others waiting for ever. A look meets a healthy rank in the midst of a step, where the first look
after a silence meets one that has stood still. So a verdict counts only if two looks in a row, far
apart, say the same, and one that healthy ranks may earn at both does not count at all.
"""

from __future__ import annotations

import dataclasses

from monitors.hang_verdict import Doing, Verdict

SOONEST_SECONDS, LATEST_SECONDS = 15.0, 600.0
"""Between two looks, at first and at most: a look holds up each rank for a moment."""
_GROWTH = 0.1
_NO_PROOF = (Doing.DRIVER, Doing.GONE)
"""In its device's driver a healthy rank is again and again. A program may end its first thread and
work on in others, and seems dead then; the end of a process is known without a look."""


def certain(verdict: Verdict, before: str) -> Verdict:
    """A verdict, convicting only where it may be acted upon.

    Args:
        verdict: Of the newest look.
        before: The sentence of the look before; empty: there was none.
    """
    same = verdict.sentence == before
    proven = verdict.convicted and same and not any(it in verdict.signature for it in _NO_PROOF)
    return verdict if proven else dataclasses.replace(verdict, convicted=False, raised="")


def seconds_to_next_look(silent: float) -> float:
    """Seconds until a script that has been silent for `silent` seconds is looked at again."""
    return min(max(SOONEST_SECONDS, _GROWTH * silent), LATEST_SECONDS)
