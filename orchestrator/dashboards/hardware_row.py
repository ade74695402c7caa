"""The row of the board of nodes about their hardware."""

from __future__ import annotations

from orchestrator.dashboards.board import PanelSpec, Query

HARDWARE = (
    "Hardware",
    (
        PanelSpec(
            "Blind sources",
            (Query("babysit_source_blind > 0", "{{source}}"),),
            text="Nodes on which a source of hardware sees nothing; `monitor` is the node"
            " monitor itself. `babysit nodes show` says why.",
        ),
        PanelSpec(
            "Reports of node monitors",
            (Query("sum(rate(babysit_node_reports_total[5m]))", "a second"),),
        ),
    ),
)
"""Blind sources, and the reports of node monitors."""
