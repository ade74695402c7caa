"""One run on one page, as text."""

from __future__ import annotations

import datetime as dt
from typing import Any

from orchestrator.cli.output import Column, Row, moment, number, table, text
from orchestrator.core.text import counted, words
from orchestrator.core.views.phases import PHASES


def _phase(phase: str) -> Column:
    def cell(row: Row) -> str:
        seconds = row["seconds"][phase]
        return "-" if seconds is None else f"{seconds:.1f}"

    return Column(phase.upper(), cell, wide=True)


def _total(row: Row) -> str:
    """All phases together; `-` until the run has recovered."""
    known = [seconds for seconds in row["seconds"].values() if seconds is not None]
    return f"{sum(known):.1f}" if row["recovered_at"] else "-"


def _where(row: Row) -> str:
    """`1 on node-2`: the rank that failed and its node, as far as they are known."""
    rank, node = row["rank"], row["node"]
    if rank is None:
        return node or "-"
    return f"{rank} on {node}" if node else str(rank)


RESTARTS = [
    Column("ATTEMPT", text("attempt")),
    Column("AT (UTC)", lambda row: moment(row["detected_at"])[5:]),
    Column("CAUSE", text("cause"), wide=True),
    Column("CLASS", text("class"), shrinks=True),
    Column("RANK", _where, shrinks=True),
    Column("RESUMED", text("resumed_step")),
    Column("LOST", text("lost_steps")),
    Column("SECONDS", _total),
    *map(_phase, PHASES),
    Column("REMEDY", text("remedy"), shrinks=True),
    Column("REASON", text("reason"), wide=True),
]
"""The seconds of a recovery; with `-o wide` also those of each phase."""
INCIDENTS = [
    Column("ID", lambda row: row["id"][-8:]),
    Column("KIND", text("kind")),
    Column("SEVERITY", text("severity")),
    Column("STATE", text("state")),
    Column("ONSET", text("onset_step")),
    Column("SUBJECT", text("subject"), shrinks=True),
    Column("REMEDY", text("remedy"), shrinks=True),
    Column("REASON", text("reason"), wide=True),
]


def page(run: dict[str, Any], now: dt.datetime, *, wide: bool = False) -> str:
    """The page of `babysit show`: the facts, the restarts and the incidents of a run."""
    parts = [_facts(run, now)]
    if run["restarts"]:
        title = counted(len(run["restarts"]), "restart")
        title += " (seconds by phase)" if wide else " (-o wide: seconds by phase, and why)"
        parts.append(f"{title}\n{table(run['restarts'], RESTARTS, wide=wide)}")
    if run["incidents"]:
        title = counted(len(run["incidents"]), "incident")
        parts.append(f"{title}\n{table(run['incidents'], INCIDENTS, wide=wide)}")
    return "\n\n".join(parts)


def _facts(run: dict[str, Any], now: dt.datetime) -> str:
    ettr = run["ettr"]
    begun = dt.datetime.fromisoformat(run["submitted_at"])
    end = dt.datetime.fromisoformat(run["ended_at"]) if run["ended_at"] else now
    facts = {
        "name": run["name"],
        "id": run["id"],
        "state": f"{run['state']} ({run['reason']})" if run["reason"] else run["state"],
        **_suspicion(run["suspect"], now),
        "attempt": f"{run['attempt']} on {', '.join(run['node_names']) or 'no node'}",
        "step": str(run["step"]) if run.get("reports", True) else "not known",
        "loss": number("loss")(run),
        **_metrics(run["metrics"]),
        "checkpoint": checkpoint_words(run["checkpoint"]),
        "age": words(max(0.0, (end - begun).total_seconds())),
        "ettr": "-" if ettr is None else f"{ettr:.1%} of allocated time was productive",
        "time": ", ".join(f"{k} {words(v)}" for k, v in run["seconds"].items() if v >= 0.05) or "-",
    }
    if run["skip_batches"]:
        facts["skipped"] = ", ".join(f"batches {a} to {b}" for a, b in run["skip_batches"])
    if run["avoid"]:
        facts["avoids"] = ", ".join(run["avoid"])
    if run.get("alerts"):  # a server of before has none
        facts["alerts"] = run["alerts"]
    if run.get("blind"):
        facts["blind"] = "; ".join(run["blind"])
    return "\n".join(f"{key + ':':<12}{value}" for key, value in facts.items())


def _metrics(newest: dict[str, float]) -> dict[str, str]:
    """`accuracy 0.91, reward 12.3`."""
    return {"metrics": ", ".join(f"{k} {v:.4g}" for k, v in newest.items())} if newest else {}


def _suspicion(suspect: dict[str, Any] | None, now: dt.datetime) -> dict[str, str]:
    """`silent for 40 s: rank 1 moves in validate (train.py:70); restarts at 60 s`."""
    if suspect is None:
        return {}
    silent = (now - dt.datetime.fromisoformat(suspect["since"])).total_seconds()
    said = f"silent for {words(max(0.0, silent))}: {suspect['evidence']}"
    if suspect["limit_seconds"] is not None:
        said += f"; restarts at {words(suspect['limit_seconds'])}"
    return {"suspect": said}


def checkpoint_words(checkpoint: dict[str, Any] | None) -> str:
    """`step 60 (directory, good), 12.0 s old`."""
    if checkpoint is None:
        return "none yet"
    what = f"step {checkpoint['step']} ({checkpoint['tier']}, {checkpoint['trust']})"
    return f"{what}, {words(checkpoint['age_seconds'])} old"
