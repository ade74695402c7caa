"""Numbers of numpy, torch and whatever else scripts hand over, made Python's at the door."""

from __future__ import annotations

import math
from typing import Any

LARGEST_STEP = 2**53
"""Above it float64 would not keep the step, which is how samples are stored."""


def real(value: Any) -> float | None:
    """A float, of anything `float()` takes: Python's, numpy's, torch's (bfloat16 too), text.

    A tensor on a GPU is waited for. None stays None.

    Raises:
        ValueError, TypeError, OverflowError, or what the value's own `__float__` raises.
    """
    return None if value is None else float(value)


def whole(value: Any) -> int:
    """A step or batch as an int: `np.int64(7)`, `torch.tensor(7)`, `7.0` and `"7"` are 7.

    Raises:
        ValueError: Not a whole number, negative, or above `LARGEST_STEP`.
        TypeError, OverflowError, or what the value's own conversion raises.
    """
    number = int(value)
    exact = isinstance(value, (int, str)) or math.isclose(number, float(value))
    if not exact or not 0 <= number <= LARGEST_STEP:
        raise ValueError(f"expected a whole number from 0 to {LARGEST_STEP}, got {value!r}")
    return number
