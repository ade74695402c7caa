"""Pictures of the dashboards, from the exported JSON and a live run, without a Grafana.

    python -m benchmarks.support.dashboard_pictures [--output docs/images]

A control plane of three nodes trains a run, which is rolled back over a NaN, loses a rank, and is
watched by a real Prometheus, as in tests/acceptance/test_prometheus.py. Each panel of each exported
dashboard is drawn in its place in the grid, from what Prometheus answers to its queries. Limits:
Grafana itself draws better; fonts, colours and the scaling of axes are those of matplotlib.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.dashboards.alert_rules import RULES
from tests.acceptance.conftest import Jobs
from tests.control_plane import ControlPlane, Servers, control_plane
from tests.prometheus import Alertmanager, Prometheus, eventually, free_port, get

_COLUMNS = 24
_INCHES_WIDE, _INCHES_PER_UNIT = 13.0, 0.26
_SERIES = 12
"""Most lines of a panel that get a legend."""
_COLORS = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]


class Pictures:
    """Draws dashboards from the data of one Prometheus, of one span of time.

    Args:
        variables: Values of the dashboards' variables.
    """

    def __init__(self, url: str, begin: float, end: float, variables: dict[str, str]) -> None:
        self._url, self._begin, self._end = url, begin, end
        self._variables = {"__rate_interval": "15s", "__range": f"{end - begin:.0f}s", **variables}

    def draw(self, board: dict[str, Any]) -> Figure:
        """A figure of all panels."""
        places = [panel["gridPos"] for panel in board["panels"]]
        height = max(place["y"] + place["h"] for place in places) + 2
        figure = plt.figure(figsize=(_INCHES_WIDE, height * _INCHES_PER_UNIT), facecolor="#f4f5f5")
        top = 1 - 1.1 / height
        figure.text(0.01, top + 0.2 / height, board["title"], fontsize=13, weight="bold")
        for panel in board["panels"]:
            place = panel["gridPos"]
            left, width = place["x"] / _COLUMNS, place["w"] / _COLUMNS
            bottom = top - (place["y"] + place["h"]) / height
            if panel["type"] == "row":
                figure.text(0.01, bottom + 0.1 / height, f"▾ {panel['title']}", fontsize=11)
                continue
            spot = (left + 0.045, bottom + 1.9 / height, width - 0.06, (place["h"] - 3.4) / height)
            axes = figure.add_axes(spot)
            axes.set_title(panel["title"], loc="left", fontsize=9, weight="bold")
            self._panel(axes, panel, board)
        return figure

    def _panel(self, axes: Axes, panel: dict[str, Any], board: dict[str, Any]) -> None:
        if panel["type"] == "table":
            self._table(axes, panel)
            return
        if panel["type"] == "heatmap":
            self._heatmap(axes, panel)
        elif panel["type"] == "state-timeline":
            self._states(axes, panel)
        else:
            self._lines(axes, panel)
        for note in board["annotations"].get("list", ()):
            for series in self._ask(note["expr"]) if "expr" in note else ():
                for when, _ in series["values"][:1]:
                    axes.axvline(_time(when), color=note["iconColor"], lw=0.9, ls="--")
        axes.set_xlim(_time(self._begin), _time(self._end))
        axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%H:%M:%S"))
        axes.tick_params(labelsize=7)

    def _lines(self, axes: Axes, panel: dict[str, Any]) -> None:
        percent = panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
        count = 0
        for target in panel["targets"]:
            for series in self._ask(target["expr"]):
                times = [_time(when) for when, _ in series["values"]]
                values = [float(value) * (100 if percent else 1) for _, value in series["values"]]
                name = _legend(target["legendFormat"], series["metric"])
                color = _COLORS[count % len(_COLORS)]
                alone = {"marker": ".", "ms": 3} if len(values) < 10 else {}
                axes.plot(times, values, lw=1.1, color=color, label=name, **alone)
                count += 1
        if not count:
            axes.text(0.5, 0.5, "No data", ha="center", transform=axes.transAxes, color="gray")
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if panel["fieldConfig"]["defaults"].get("min") == 0:
            axes.set_ylim(bottom=0)
        axes.set_ylabel("%" if percent else "" if unit == "short" else unit, fontsize=7)
        axes.grid(alpha=0.3)
        if 0 < count <= _SERIES:
            axes.legend(
                fontsize=7,
                frameon=False,
                ncols=4,
                loc="upper left",
                bbox_to_anchor=(-0.02, -0.14),
                borderaxespad=0,
            )

    def _states(self, axes: Axes, panel: dict[str, Any]) -> None:
        (target,) = panel["targets"]
        found = self._ask(target["expr"])
        for row, series in enumerate(found):
            spans = [(_time(when), dt.timedelta(seconds=1)) for when, _ in series["values"]]
            axes.broken_barh(spans, (row - 0.4, 0.8), color=_COLORS[row % len(_COLORS)])
            name = _legend(target["legendFormat"], series["metric"])
            axes.text(
                0.01, row, name, va="center", fontsize=8, transform=axes.get_yaxis_transform()
            )
        axes.set_yticks([])

    def _heatmap(self, axes: Axes, panel: dict[str, Any]) -> None:
        (target,) = panel["targets"]
        found = sorted(self._ask(target["expr"]), key=lambda one: float(one["metric"]["le"]))
        times = sorted({when for series in found for when, _ in series["values"]})
        rows = []
        for series in found:
            values = dict(series["values"])
            rows.append([float(values.get(when, "nan")) for when in times])
        under = [[0.0] * len(times), *rows[:-1]]
        cells = [
            [value - below for value, below in zip(row, lower, strict=True)]
            for row, lower in zip(rows, under, strict=True)
        ]
        axes.pcolormesh(
            [_time(when) for when in times],
            range(len(cells)),
            cells,
            cmap="Oranges",
            shading="nearest",
        )
        axes.set_yticks(range(len(found)), [series["metric"]["le"] for series in found])
        axes.set_ylabel(panel["fieldConfig"]["defaults"]["unit"], fontsize=7)

    def _table(self, axes: Axes, panel: dict[str, Any]) -> None:
        axes.axis("off")
        (target,) = panel["targets"]
        query = self._filled_in(target["expr"])
        rows = get(f"{self._url}/api/v1/query", query=query, time=str(self._end))["data"]["result"]
        hidden = {"__name__", "instance", "job"}
        names = sorted({name for row in rows for name in row["metric"]} - hidden)
        cells = [[*(row["metric"].get(n, "") for n in names), row["value"][1]] for row in rows]
        if cells:
            table = axes.table(cells[:8], colLabels=[*names, "Value"], loc="upper left")
            table.auto_set_font_size(False)
            table.set_fontsize(7)

    def _ask(self, expression: str) -> list[dict[str, Any]]:
        span = {"start": str(self._begin), "end": str(self._end), "step": "1"}
        answer = get(f"{self._url}/api/v1/query_range", query=self._filled_in(expression), **span)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _filled_in(self, expression: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: self._variables[match[1]], expression)


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _legend(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), form)


def _provoke(plane: ControlPlane, prometheus: Prometheus, jobs: Jobs) -> str:
    """A run that is rolled back over a NaN, loses a rank, and trains on; its id."""
    steady = jobs("tiny-gpt", faults=("nan@250",), pace=0.1)
    body = json.loads(steady.spec.read_text())
    body["command"] += ["--metric", "accuracy", "--late", "3"]
    steady.spec.write_text(json.dumps(body))
    run = plane.submit(steady.spec)
    plane.at_step(run, 100)
    used = {node["id"] for node in plane.ask("nodes", "ls") if node["runs"]}
    (spare,) = {node["id"] for node in plane.ask("nodes", "ls")} - used
    plane.ask("nodes", "cordon", spare, "--reason", "a loud fan")
    restarts = f'babysit_run_restarts{{run_id="{run}"}}'
    eventually(lambda: prometheus.query(f"{restarts} == 1"), "the rollback", 180)
    plane.at_step(run, 450, 180)
    plane.signal_rank(run, 1, signal.SIGKILL)
    eventually(lambda: prometheus.query(f"{restarts} == 2"), "the restart", 180)
    plane.at_step(run, 650, 180)
    return run


def _exported(plane: ControlPlane, directory: Path) -> Iterator[dict[str, Any]]:
    plane.babysit("grafana", "export", "--output", directory)
    for name in ("babysit-run", "babysit-nodes"):
        yield json.loads((directory / f"{name}.json").read_text())


def main() -> None:
    """Draw the dashboards of a run and of the nodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    output = parser.parse_args().output.resolve()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers, port = Servers(), free_port()
        stack.callback(servers.close)
        plane = stack.enter_context(control_plane(servers, root / "home", local_nodes=3, port=port))
        token = plane.ask("token", "create", "prometheus", "--role", "viewer")["secret"]
        manager = stack.enter_context(Alertmanager(root))
        prometheus = stack.enter_context(
            Prometheus(
                root,
                target=f"127.0.0.1:{port}",
                token=token,
                rules=RULES,
                alertmanager=manager.url.removeprefix("http://"),
            )
        )
        begin = time.time()
        run = _provoke(plane, prometheus, Jobs(root))
        pictures = Pictures(prometheus.url, begin, time.time(), {"run_id": run, "run": "tiny-gpt"})
        for board in _exported(plane, root / "boards"):
            file = output / f"{board['uid'].replace('babysit-', 'grafana-')}.png"
            pictures.draw(board).savefig(file, dpi=72)
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
        plane.babysit("cancel", run, "--reason", "the pictures are drawn", "--yes")


if __name__ == "__main__":
    main()
