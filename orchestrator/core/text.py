"""Names in sentences, of which there may be thousands."""

from __future__ import annotations

from collections.abc import Sequence


def named(many: Sequence[object], most: int = 8) -> str:
    """Nodes, workers or ranks by name, as far as a person would read them."""
    more = f" and {len(many) - most:,} more" if len(many) > most else ""
    return ", ".join(map(str, many[:most])) + more
