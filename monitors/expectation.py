"""Changes that explain a rise: a learning rate or a batch size that the reports show to change."""

from __future__ import annotations

import math
from collections import deque

_KEPT = 32
"""Token counts that tell the usual range."""
_TIMES = 3
"""Token counts outside the usual range, in a row, that are a new batch size."""
_OUTSIDE = 1.1
_RAISED = 1.2
"""Factor from one report to the next by which a raised learning rate differs from a warm-up."""
_FEWEST = 8


class ReportedChanges:
    """Watches the learning rate and the tokens of the reports of one rank."""

    def __init__(self) -> None:
        self._rate = -1.0
        self._tokens: deque[float] = deque(maxlen=_KEPT)
        self._outside: list[float] = []

    def observe(self, learning_rate: float, tokens: float) -> str:
        """Take what a report says (-1 or 0: nothing); the change that it completes, or nothing."""
        return self._observe_rate(learning_rate) or self._observe_tokens(tokens)

    def _observe_rate(self, rate: float) -> str:
        if not (math.isfinite(rate) and rate > 0):
            return ""
        before, self._rate = self._rate, rate
        if before > 0 and rate > _RAISED * before:
            return f"learning rate {before:.3g} to {rate:.3g}"
        return ""

    def _observe_tokens(self, tokens: float) -> str:
        if not (math.isfinite(tokens) and tokens > 0):
            return ""
        usual = self._tokens
        if len(usual) < _FEWEST:
            usual.append(tokens)
            return ""
        if min(usual) / _OUTSIDE <= tokens <= max(usual) * _OUTSIDE:
            usual.extend(self._outside)
            usual.append(tokens)
            self._outside.clear()
            return ""
        self._outside.append(tokens)
        if len(self._outside) < _TIMES:
            return ""
        before = sorted(usual)[len(usual) // 2]
        usual.clear()
        usual.extend(self._outside)
        self._outside.clear()
        return f"tokens of a step {before:.0f} to {tokens:.0f}"
