"""The hardware of nodes as the API shows it."""

from __future__ import annotations

import datetime as dt

from orchestrator.core.views.hardware import HardwareView, ReadingView
from orchestrator.server.hardware.desk import NodeDesk


def hardware_view(desk: NodeDesk, node: str, *, readings: bool) -> HardwareView:
    """The newest state of a node's hardware.

    Args:
        desk: What is known.
        node: Name of the node.
        readings: Include them; there may be hundreds.
    """
    known, blind = desk.of(node), desk.blind(node)
    if known is None:
        return HardwareView(reported_at=None, blind=blind)
    shown = sorted(known.readings.items()) if readings else []
    return HardwareView(
        reported_at=known.at,
        boot=known.boot,
        blind=blind,
        findings=[
            f"{_moment(each.time):%Y-%m-%d %H:%M:%S} {each.rule}: {each.reason}"
            for each in known.findings
        ],
        readings=[
            ReadingView(
                source=each.source,
                device=each.device,
                name=each.name,
                value=each.value,
                at=_moment(each.time),
            )
            for _, each in shown
        ],
    )


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
