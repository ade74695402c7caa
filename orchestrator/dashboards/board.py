"""One dashboard as data, and the JSON that Grafana reads, made by the Grafana Foundation SDK.

The problem: JSON of a dashboard is long, and a typing error in it shows in a browser only. The
design: a board is a few frozen values; the SDK, which is generated from Grafana's own schemas,
makes the JSON. Tests run every query of every board on a real Prometheus.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Kind = Literal["series", "states", "stat", "heatmap", "table"]
_BUILDERS: dict[Kind, type[Any]] = {
    "series": timeseries.Panel,
    "states": statetimeline.Panel,
    "stat": stat.Panel,
    "heatmap": heatmap.Panel,
    "table": table.Panel,
}
_SOURCE = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The data source that the reader chooses at the top of the dashboard."""
_WIDTH = 24
"""Columns of Grafana's grid."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    expression: str
    """PromQL; `$__rate_interval`, `$__range` and the variables of the board are filled in."""
    legend: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PanelSpec:
    """One panel."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """A unit of Grafana: `s`, `percentunit`, `bytes` …"""
    text: str = ""
    """The explanation behind the panel's title."""
    kind: Kind = "series"
    width: int = 12
    height: int = 8
    from_zero: bool = True
    """The axis of a series begins at 0; False: as the values lie."""


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """Annotations over all panels: one wherever the expression has a sample."""

    name: str
    expression: str
    color: str
    title: str


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the dashboard, whose options a query finds."""

    name: str
    query: str
    label: str
    hidden: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    """Grafana's key of the dashboard; it never changes."""
    title: str
    text: str
    rows: tuple[tuple[str, tuple[PanelSpec, ...]], ...]
    """Titles of rows, with their panels."""
    variables: tuple[Variable, ...] = ()
    notes: tuple[Note, ...] = ()
    tags: tuple[str, ...] = ()
    """Tags of the annotations in Grafana itself that are shown too; none: none are."""

    @property
    def panels(self) -> Iterator[PanelSpec]:
        """All panels, in order."""
        return (panel for _, panels in self.rows for panel in panels)

    @property
    def expressions(self) -> list[str]:
        """Every expression of PromQL on the board, annotations included."""
        queries = [query.expression for panel in self.panels for query in panel.queries]
        return [*queries, *(note.expression for note in self.notes)]


def render(board: Board) -> dict[str, Any]:
    """The dashboard as Grafana's API takes it, without an id or a version of its own."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["babysit"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_links())
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    for note in board.notes:
        made = made.annotation(_annotation(note))
    if board.tags:
        made = made.annotation(_of_grafana(board.tags))
    for title, panels in board.rows:
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_panel(panel))
    found: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    return found


def text_of(body: dict[str, Any]) -> str:
    """A rendered dashboard as the text of a file: stable, so that two can be compared."""
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def _links() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("babysit")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["babysit"])
        .as_dropdown(False)
        .keep_time(True)
        .include_vars(True)
    )


def _variable(variable: Variable) -> dashboard.QueryVariable:
    hide = models.VariableHide.HIDE_VARIABLE if variable.hidden else models.VariableHide.DONT_HIDE
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_SOURCE)
        .query({"query": variable.query, "refId": variable.name, "qryType": 1})
        .definition(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .hide(hide)
    )


def _annotation(note: Note) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(note.name)
        .datasource(_SOURCE)
        .enable(True)
        .icon_color(note.color)
        .expr(note.expression)
        .step("60s")
        .title_format(note.title)
        .text_format("")
    )


def _of_grafana(tags: Sequence[str]) -> dashboard.AnnotationQuery:
    """Annotations that the controller has made: the alert channel `grafana`."""
    target: Any = dashboard.AnnotationTarget().type("tags").tags([*tags]).limit(100)
    source = common_models.DataSourceRef(type_val="grafana", uid="-- Grafana --")
    return (
        dashboard.AnnotationQuery()
        .name("Incidents, with causes")
        .datasource(source)
        .enable(True)
        .icon_color("red")
        .target(target.match_any(False))
    )


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .calcs([])
    )


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )


def _panel(spec: PanelSpec) -> Any:
    made: Any = (
        _BUILDERS[spec.kind]()
        .title(spec.title)
        .description(spec.text)
        .datasource(_SOURCE)
        .unit(spec.unit)
        .span(min(spec.width, _WIDTH))
        .height(spec.height)
    )
    if spec.kind == "series":
        made = made.legend(_legend()).tooltip(_tooltip())
        made = made.min(0) if spec.from_zero else made
    if spec.kind == "states":  # a bar for each series while it is there
        made = made.show_value(common_models.VisibilityMode.NEVER).merge_values(True)
    for place, query in enumerate(spec.queries):
        target = (
            prometheus.Dataquery()
            .expr(query.expression)
            .ref_id(chr(ord("A") + place))
            .datasource(_SOURCE)
        )
        if spec.kind == "table":
            target = target.instant().format(PromQueryFormat.TABLE)
        elif spec.kind == "heatmap":
            target = target.range().format(PromQueryFormat.HEATMAP)
        else:
            target = target.range()
        made = made.with_target(target.legend_format(query.legend or "__auto"))
    return made
