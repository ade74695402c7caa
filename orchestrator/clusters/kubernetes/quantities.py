"""Quantities of Kubernetes: `500m`, `16Gi`, `1e3`."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{
        unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)")


def parse(quantity: object) -> float:
    """The number that a quantity stands for.

    Raises:
        ValueError: It is not a quantity.
    """
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{quantity!r} is not a quantity such as 500m, 4 or 16Gi")
    return float(Decimal(match[1]) * _SUFFIXES[match[2]])


def of_cpus(cpus: float) -> str:
    """CPU cores as a quantity, in thousandths, rounded up."""
    millis = math.ceil(round(cpus * 1000, 6))
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"
