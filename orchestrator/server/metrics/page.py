"""The page of all metrics: `python -m orchestrator.server.metrics.page > docs/metrics.md`.

A test compares the page with the catalogue.
"""

from __future__ import annotations

import sys

from orchestrator.server.metrics.catalogue import GROUPS, Metric

_HEAD = """\
# Metrics

Generated from `orchestrator/server/metrics/catalogue.py` by
`python -m orchestrator.server.metrics.page > docs/metrics.md`; do not edit.

`/metrics` serves these to Prometheus, which needs a token of any role without a scope: a scrape
names every run. Metrics marked *each* differ from server to server. All others come from the server
that leads, so a sum over the servers of one database counts nothing twice; a server that does not
lead leaves them out.

Counters of the fleet come from the run database and survive a restart of the server. A new leader
reads the past in the background; the counters and `babysit_runs` appear once it is done. A scrape
costs as much as there is live: past runs do not make it slower.
"""


def _row(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    each = "each" if metric.each else ""
    return f"| `{metric.name}{labels}` | {metric.kind} | {each} | {metric.text} |"


def page() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for title, metrics in GROUPS.items():
        rows = "\n".join(map(_row, metrics))
        parts.append(
            f"## {title}\n\n| metric | type | server | meaning |\n|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
