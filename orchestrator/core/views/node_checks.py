"""Views of measurements on nodes."""

from __future__ import annotations

import datetime as dt

from pydantic import Field

from orchestrator.core.model.entities import Node
from orchestrator.core.views.hardware import View


class CheckView(View):
    """The newest result of one check that was measured on a node."""

    name: str
    verdict: str = Field(description="passed, failed or skipped.")
    figure: float | None
    unit: str
    limit: float | None = Field(
        description="The figure at which the node fails, by like nodes; null: there is none."
    )
    reason: str = Field(description="Why it failed or was skipped.")
    device: str
    peer: str = Field(description="The node at the other end of a link; empty: none.")
    at: dt.datetime


class NodeChecksView(View):
    """The measurements on a node."""

    node: str
    under_way: str | None = Field(description="Id of the check that is under way; null: none is.")
    unchecked: str = Field(description="Why the last check had no results; empty: it had.")
    results: list[CheckView]
    no_link: str = Field(
        description="Why the link of the node to others is not measured now; empty: it can be."
    )


def node_checks_view(node: Node, no_link: str) -> NodeChecksView:
    """The measurements on a node, and whether a check is under way."""
    return NodeChecksView(
        node=node.id,
        under_way=node.measured.under_way.worker if node.measured.under_way is not None else None,
        unchecked=node.measured.unchecked,
        results=[
            CheckView(
                name=each.result.check,
                at=each.at,
                **each.result.model_dump(exclude={"check"}),
            )
            for each in node.measured.results
        ],
        no_link=no_link,
    )
