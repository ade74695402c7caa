"""The alert rules for Prometheus, as they come with the package."""

from __future__ import annotations

import re
from pathlib import Path

RULES = Path(__file__).parent / "rules.yml"
"""The file; `promtool check rules` accepts it."""
_STRINGS = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"\b(?:up|babysit_\w+|process_\w+)\b")
_SUFFIX = re.compile(r"_(?:bucket|count|sum)$")


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics that an expression of PromQL reads; of a histogram, its own name."""
    return {_SUFFIX.sub("", name) for name in _METRIC.findall(_STRINGS.sub("", expression))}
