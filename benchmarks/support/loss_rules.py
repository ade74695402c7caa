"""Rules of other trainers for spikes of the loss, written from their descriptions.

Each takes a series and returns the indices of the points at which it fires: it stops the run, skips
the step or clips the update. Thresholds are the defaults of each project, and 6 standard deviations
for llm.c, whose default is off. The rules keep no onset.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

Numbers = Sequence[float]


class _Moments:
    """Mean and standard deviation of the last values."""

    def __init__(self, window: int) -> None:
        self.values: deque[float] = deque()
        self._window = window
        self._sum = self._squares = 0.0

    def push(self, value: float) -> None:
        self.values.append(value)
        self._sum += value
        self._squares += value * value
        if len(self.values) > self._window:
            old = self.values.popleft()
            self._sum -= old
            self._squares -= old * old

    @property
    def mean(self) -> float:
        return self._sum / len(self.values)

    @property
    def deviation(self) -> float:
        count = len(self.values)
        return math.sqrt(max(0.0, self._squares / count - self.mean**2))


def kill_loss_spike(losses: Numbers, _norms: Numbers) -> list[int]:
    """llm-foundry's KillLossSpike: the fifth point in a row at twice the mean of a long window.

    Or half of the window above the largest loss of the first window, at most 10.
    """
    size = max(100, len(losses) // 20)
    window, fired, outliers = _Moments(size), [], 0
    cap = math.inf
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            continue
        if len(window.values) >= size:
            outliers = outliers + 1 if loss >= 2.0 * window.mean else 0
            if outliers > 4 or (
                i >= 2 * size and i % 16 == 0 and _high(window.values, cap) >= size / 2
            ):
                fired.append(i)
        window.push(loss)
        if i + 1 == size:
            cap = min(10.0, max(window.values))
    return fired


def _high(values: deque[float], cap: float) -> int:
    return sum(value > cap for value in values)


def lightning(losses: Numbers, _norms: Numbers) -> list[int]:
    """Lightning's SpikeDetection: three times the mean of ten, or a number that is not finite."""
    window, fired, last = _Moments(10), [], math.inf
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            fired.append(i)
            continue
        if i > 1 and loss > last and abs(loss - window.mean) >= 2.0 * abs(window.mean):
            fired.append(i)
        window.push(loss)
        last = loss
    return fired


def llm_c(losses: Numbers, _norms: Numbers) -> list[int]:
    """llm.c's outlier detector: 6 standard deviations over 128 values, the new one included."""
    window, fired = _Moments(128), []
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            continue
        window.push(loss)
        if len(window.values) == 128 and loss - window.mean > 6.0 * window.deviation > 0:
            fired.append(i)
    return fired


def olmo_core(losses: Numbers, norms: Numbers) -> list[int]:
    """OLMo-core's SkipStep optimizers: 6 standard deviations over 128, loss or gradient norm."""
    return sorted({*_six_sigma(losses), *_six_sigma(norms)})


def _six_sigma(values: Numbers) -> list[int]:
    window, fired = _Moments(128), []
    for i, value in enumerate(values):
        if not math.isfinite(value):
            continue
        known = len(window.values) >= 64
        if known and value - window.mean > 6.0 * window.deviation > 0:
            fired.append(i)
        window.push(value)
    return fired


def zclip(losses: Numbers, norms: Numbers) -> list[int]:
    """ZClip: 2.5 standard deviations of a moving average of the gradient norm.

    Where no norm is reported, the same rule on the loss.
    """
    values = norms or losses
    fired: list[int] = []
    first: list[float] = []
    mean = variance = 0.0
    for i, number in enumerate(values):
        value = number
        if not math.isfinite(value):
            continue
        if len(first) < 25:
            first.append(value)
            mean = sum(first) / len(first)
            variance = sum((v - mean) ** 2 for v in first) / len(first)
            continue
        deviation = math.sqrt(variance)
        z = (value - mean) / deviation if deviation > 0 else 0.0
        if z > 2.5:
            fired.append(i)
            value = mean + 2.5 * deviation / (z / 2.5)
        mean = 0.97 * mean + 0.03 * value
        variance = 0.97 * variance + 0.03 * (value - mean) ** 2
    return fired


RULES: dict[str, Callable[[Numbers, Numbers], list[int]]] = {
    "kill_loss_spike": kill_loss_spike,
    "lightning": lightning,
    "llm_c": llm_c,
    "olmo_core": olmo_core,
    "zclip": zclip,
}
"""Rules by name. Each takes losses and gradient norms (empty: not reported)."""
