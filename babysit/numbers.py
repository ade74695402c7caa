"""Conversion of numbers of numpy, torch and other libraries to Python's."""

from __future__ import annotations

import math
from typing import Any

LARGEST_STEP = 2**53
"""Largest integer that float64 represents exactly, as which samples are stored."""


def real(value: Any) -> float | None:
    """Convert to float whatever `float()` accepts: Python, numpy, torch (also bfloat16), text.

    A GPU tensor synchronises. None stays None. A loss that still has its graph is taken as it is:
    torch warns of such a conversion, in the log of every rank.

    Raises:
        ValueError, TypeError, OverflowError, or what the value's own code raises.
    """
    if getattr(value, "requires_grad", False):
        value = value.detach()
    return None if value is None else float(value)


def shown(value: Any) -> str:
    """The value in a message; its type if its own `repr` raises (a tensor on a lost GPU, say)."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 (the value's own code ran; training must go on)
        return f"a {type(value).__name__}"


def said(value: object) -> str:
    """The text of a name or an error of somebody else's code; its type if that has no text."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (the value's own code ran; training must go on)
        return type(value).__name__


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
