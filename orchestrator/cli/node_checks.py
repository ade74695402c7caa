"""`babysit nodes check`: what the control plane knows about a node, and what the node measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, Row, emit, say, text
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, session

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = [
    Column("CHECK", text("name")),
    Column("RESULT", lambda row: str(row["verdict"]).replace("passed", "ok")),
    Column("FIGURE", lambda row: _figure(row, "figure")),
    Column("LIMIT", lambda row: _figure(row, "limit")),
    Column("DETAIL", lambda row: row["detail"] or "-", shrinks=True),
    Column("DEVICE", lambda row: row["device"] or "-", wide=True),
    Column("MEASURED", lambda row: row["at"] or "-", wide=True),
]
_POLL_SECONDS = 0.3


def _figure(row: Row, field: str) -> str:
    return "-" if row[field] is None else f"{row[field]:.4g} {row['unit']}".rstrip()


def check(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="As shown by `babysit nodes ls`.")],
    checks: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="NAME", help="Measure this alone; may be given again."),
    ] = None,
    last: Annotated[
        bool,
        typer.Option("--last", help="Show the newest results; measure nothing."),
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Check a node: what the control plane knows about it, and what it measures of itself.

    An agent is launched on the node for it, which takes some seconds. A node that a run uses is not
    measured: the newest results are shown instead. Exit code 1 if a check fails. `link` is measured
    together with another idle node, and with no other check.

    For example:

        babysit nodes check node-2
        babysit nodes check node-2 --check matmul --check disk
        babysit nodes check node-2 --check link
    """
    here = session(ctx)
    known = [] if checks else here.api.get(path("nodes", node, "check"))
    found = here.api.get(path("nodes", node, "checks"))
    if not last:
        found = _measure(here, node, checks or [])
    measured = [row for row in found["results"] if not checks or _is_of(row["name"], checks)]
    rows = [*map(_known, known), *map(_measured, measured), *_no_link(found, checks)]
    emit(rows, COLUMNS, form, name="name", empty=f"Nothing was measured on {node} yet.")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(ExitCode.FAILED)


def _measure(here: Session, node: str, checks: Sequence[str]) -> Any:
    """Have the node measured and wait for it; the newest results.

    Raises:
        CliError: It was not measured.
    """
    where = path("nodes", node, "checks")
    try:
        begun = here.api.post(where, checks=list(checks))
    except CliError as error:
        if error.code is not ExitCode.REFUSED or checks:
            raise
        say(f"Nothing is measured now: {error.message}")
        return here.api.get(where)
    found = begun
    while begun["under_way"] is not None and found["under_way"] == begun["under_way"]:
        here.wait(_POLL_SECONDS)
        found = here.api.get(where)
    if found["unchecked"]:
        raise CliError(f"{node} was not measured: {found['unchecked']}", ExitCode.FAILED)
    return found


def _is_of(name: str, checks: Sequence[str]) -> bool:
    """True if a result is of one of these programs; `disk` gives disk-write and disk-read."""
    return any(name == each or name.startswith(f"{each}-") for each in checks)


def _known(row: Row) -> dict[str, Any]:
    verdict = "passed" if row["ok"] else "failed"
    nothing = {"figure": None, "unit": "", "limit": None, "device": "", "at": None}
    return {**row, "verdict": verdict, **nothing}


def _measured(row: Row) -> dict[str, Any]:
    peer = f"with {row['peer']}" if row.get("peer") else ""
    return {**row, "ok": row["verdict"] != "failed", "detail": row["reason"] or peer}


def _no_link(found: Row, checks: Sequence[str] | None) -> list[dict[str, Any]]:
    """A row that says why there is no figure of the link to other nodes, if there is none."""
    if any(row["name"].startswith("link-") for row in found["results"]):
        return []
    if checks and "link" not in checks:
        return []
    why = found.get("no_link") or "not measured yet: it takes another idle node (`--check link`)"
    return [_known({"name": "link", "ok": True, "detail": why}) | {"verdict": "skipped"}]
