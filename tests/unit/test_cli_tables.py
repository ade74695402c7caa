"""Tables fit 80 columns; what does not fit is shortened, or only in the wide form."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from monitors.failures import FailureClass
from orchestrator.cli import checkpoints, follow, incidents, nodes, runs, show_run
from orchestrator.cli.output import Column, step_words, table, text
from orchestrator.cli.screen import panes
from orchestrator.cli.session import Session
from orchestrator.cli.terminal import cut

NOW = "2026-03-01T03:12:07+00:00"
LONGEST_CLASS = max((each.value for each in FailureClass), key=len)
REMEDY = "roll back to step 1234567 and skip batches 1234567 to 1234587"
RESTART = {
    "attempt": 123,
    "detected_at": NOW,
    "recovered_at": NOW,
    "cause": "infrastructure",
    "class": LONGEST_CLASS,
    "rank": 16383,
    "node": "node-2047",
    "resumed_step": 1234567,
    "lost_steps": 12345,
    "seconds": dict.fromkeys(("detect", "stop", "place", "start", "restore", "recompute"), 99.9),
    "remedy": REMEDY,
    "reason": "a long reason " * 9,
}
INCIDENT = {
    "id": "01JNB0000000000000INCIDENT",
    "kind": LONGEST_CLASS,
    "severity": "critical",
    "state": "mitigating",
    "subject": "checkpoint of step 1234567 (directory)",
    "onset_step": 1234567,
    "remedy": REMEDY,
    "reason": "a long reason " * 9,
    "opened_at": NOW,
    "run": "01JNB0000000000000000000RUN",
    "acknowledged_by": "operator:mia",
    "verdict": None,
}
CHECKPOINT = {
    "id": "01JNB0000000000000000000RUN/12/directory/1234567",
    "step": 1234567,
    "tier": "directory",
    "trust": "verified",
    "doubted": True,
    "superseded": False,
    "attempt": 12,
    "shards": 16384,
    "world_size": 16384,
    "bytes": 2**49,
    "age_seconds": 1234567.0,
    "pinned": True,
    "path": "/a/path",
    "reason": "a long reason " * 9,
}
NODE = {
    "id": "node-2047",
    "state": "draining",
    "gpus": 8,
    "cpus": 192.0,
    "memory_bytes": 2**41,
    "runs": ["tiny-gpt", "a-run-with-a-longer-name"],
    "faults": [1, 2],
    "reason": "maintenance until 2026-12-01 06:00 UTC: new switch, and new fans",
    "maintenance": [],
    "by": "operator:mia",
    "labels": {"rack": "r1"},
}
RUN = {
    "id": "01JNB0000000000000000000RUN",
    "name": "a-run-with-a-much-longer-name-than-fits",
    "state": "recovering",
    "step": 1234567,
    "loss": 2.3456789,
    "restarts_count": 123,
    "ettr": 0.98,
    "submitted_at": NOW,
    "attempt": 12,
    "nodes": 2048,
    "queue": "research",
    "owner": "mia",
    "reason": "a long reason " * 9,
}


def columns() -> list[tuple[str, dict[str, Any], list[Column]]]:
    here = Session()
    return [
        ("restarts", RESTART, show_run.RESTARTS),
        ("incidents of a run", INCIDENT, show_run.INCIDENTS),
        ("incidents ls", INCIDENT, incidents._columns(here)),
        ("checkpoints ls", CHECKPOINT, checkpoints.COLUMNS),
        ("nodes ls", NODE, nodes.COLUMNS),
        ("ls", RUN, runs.columns(here)),
    ]


@pytest.mark.parametrize("place", range(6))
def test_tables_fit_80_columns_and_the_rest_is_wide(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name, row, shown = columns()[place]
    assert max(map(len, table([row], shown).splitlines())) <= 80, name
    wide = table([row], shown, wide=True)
    assert "…" not in wide
    assert {column.title for column in shown} == {t for c in shown if (t := c.title) in wide}
    assert str(row["reason"]).strip() in wide


def test_what_others_use_of_nodes_is_shown_where_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    busy = {**NODE, "used_by_others": "3 GPUs, 1.5 CPUs"}
    shown = table([NODE, busy], nodes.columns([NODE, busy])).splitlines()
    assert max(map(len, shown)) <= 80
    assert "OTHERS" in shown[0]
    assert "3 GPU" in shown[2]
    assert "OTHERS" not in table([NODE], nodes.columns([NODE]))


def test_only_free_text_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    columns = [Column("ID", text("id")), Column("WHY", text("why"), shrinks=True)]
    row = {"id": "x" * 20, "why": "because of this and of that"}
    assert table([row], columns).splitlines()[1] == f"{'x' * 20}  because of this a…"
    assert table([{**row, "id": "x" * 50}], columns).splitlines()[1].startswith("x" * 50 + "  beca")
    assert cut("abc", 3) == "abc"


def test_a_step_that_is_not_known_is_shown_nowhere_as_0() -> None:
    silent = {**RUN, "step": 0, "loss": None, "ettr": None, "reports": False}
    silent |= {"node_names": [], "checkpoint": None, "incidents": [], "suspect": None}
    shown = [
        next(each for each in runs.columns(Session()) if each.title == "STEP").cell(silent),
        follow.progress(silent),
        step_words(silent),
        panes.run_row(silent)[panes.RUNS.index("step")].plain,
    ]
    console = Console(width=80)
    with console.capture() as screen:
        console.print(panes.facts(silent))
    shown += [line for line in screen.get().splitlines() if line.startswith("step")]
    assert shown == ["-", "step not known", "a step that is not known", "-", "step not known"]
    assert follow.progress(RUN) == "step 1234567, loss 2.346"
