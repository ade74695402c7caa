"""The command `babysit monitors drill`: its options, its confirmation and its scoreboard."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli import drill
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, Row, emit, put, say, table, text
from orchestrator.cli.session import Session
from orchestrator.judgement import scoreboard
from orchestrator.judgement.faults import FAULTS, IN_PROCESS_ONLY, NOT_PROVOKED, Fault
from orchestrator.judgement.scoreboard import Outcome, Targets

_MARK = "babysit-drill"
"""File that says that an output directory is a drill's own, and may be emptied."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The wishes of the caller, as they were typed."""

    spec: Path | None
    faults: str | None
    targets: Sequence[str]
    output: Path
    yes: bool = dataclasses.field(kw_only=True)


def run(outer: Session, asked: Asked, *, every: float, recover_within: float, form: Format) -> None:
    """Drill, and print the scoreboard.

    Raises:
        typer.Exit: With 1 if a fault missed a target.
        CliError: The options are wrong, or the run was not confirmed.
    """
    wanted, left_out = _chosen(asked)
    targets = Targets(_targets(asked.targets), recover_within)
    if asked.spec is None and importlib.util.find_spec("torch") is None:
        raise CliError("the built-in job needs torch: pip install 'babysit[torch]'", ExitCode.USAGE)
    _confirm(asked, wanted)
    started = outer.clock.monotonic()
    _prepare(asked.output)
    job = (
        drill.built_in(asked.output) if asked.spec is None else drill.own(asked.spec, asked.output)
    )
    with drill.control_plane(asked.output, outer.clock) as here:
        engine = drill.Drill(here, job, targets, every)
        outcomes = engine.run(wanted)
    answer = _answer(outcomes, targets, left_out)
    answer |= {"runs": engine.runs, "seconds": round(outer.clock.monotonic() - started, 1)}
    if form in {Format.TABLE, Format.WIDE}:
        _print(answer, wide=form is Format.WIDE)
    else:
        emit(answer, [], form)
    if not answer["ok"]:
        raise typer.Exit(ExitCode.FAILED)


def _chosen(asked: Asked) -> tuple[list[Fault], dict[str, str]]:
    """The faults to provoke, and the others with the reason.

    Raises:
        CliError: A fault is not known, or cannot be injected into the run.
    """
    names = list(FAULTS) if asked.faults is None else asked.faults.split(",")
    for name in names:
        if name not in FAULTS:
            known = ", ".join(FAULTS)
            raise CliError(f"--faults {name}: expected some of {known}", ExitCode.USAGE)
    blocked = {
        name: IN_PROCESS_ONLY
        for name in names
        if asked.spec is not None and FAULTS[name].means == "inside"
    }
    if asked.faults is not None and blocked:
        name, why = next(iter(blocked.items()))
        raise CliError(f"--faults {name}: {why}", ExitCode.USAGE)
    wanted = [fault for name, fault in FAULTS.items() if name in names and name not in blocked]
    skipped = {name: "not asked for" for name in FAULTS if name not in names}
    return wanted, {**blocked, **skipped, **NOT_PROVOKED}


def _targets(words: Sequence[str]) -> dict[str, float]:
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 < found[name] < math.inf:
            message = f"--target {word}: expected FAULT=SECONDS, such as hang=30"
            raise CliError(message, ExitCode.USAGE)
        if name not in FAULTS:
            raise CliError(f"--target {name}: expected one of {', '.join(FAULTS)}", ExitCode.USAGE)
    return found


def _confirm(asked: Asked, faults: Sequence[Fault]) -> None:
    """Ask before a run of the caller's own is struck.

    Raises:
        CliError: The answer was no, or nobody can answer.
    """
    if asked.spec is None or asked.yes:
        return
    say(
        f"A run of {asked.spec} is started on virtual nodes of this machine, and struck by"
        f" {len(faults)} faults: {', '.join(fault.name for fault in faults)}. Whatever the script"
        " writes besides its checkpoints, it writes where it always does."
    )
    try:
        agreed = typer.confirm("Go on?", err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise CliError("nothing was started: confirm, or give --yes", ExitCode.REFUSED)


def _prepare(output: Path) -> None:
    """Make the output directory, empty but for what is not a drill's.

    Raises:
        CliError: It is somebody else's, or cannot be written.
    """
    try:
        if output.exists() and any(output.iterdir()) and not (output / _MARK).exists():
            message = f"--directory {output}: holds files that are not of a drill: choose another"
            raise CliError(message, ExitCode.REFUSED)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        (output / _MARK).touch()
    except OSError as error:
        reason = error.strerror or error
        raise CliError(
            f"--directory {output}: cannot be written: {reason}", ExitCode.USAGE
        ) from error


def _answer(
    outcomes: Sequence[Outcome], targets: Targets, left_out: dict[str, str]
) -> dict[str, Any]:
    rows = scoreboard.rows(outcomes, targets)
    return {
        "ok": all(row["ok"] for row in rows),
        "faults": rows,
        "not_provoked": [{"class": name, "reason": why} for name, why in left_out.items()],
    }


def _print(answer: dict[str, Any], *, wide: bool) -> None:
    put(table(answer["faults"], _COLUMNS, wide=wide))
    put("\nNot provoked")
    for each in answer["not_provoked"]:
        put(f"  {each['class']}: {each['reason']}")
    good = sum(row["ok"] for row in answer["faults"])
    say(
        f"{good} of {len(answer['faults'])} faults met their targets, in {answer['seconds']:.0f} s."
    )
    for row in answer["faults"]:
        if not row["ok"]:
            say(f"{row['fault']}: {row['missed']}")


def _found(row: Row) -> str:
    return "-" if row["found_after"] is None else f"{row['found_after']:.1f} {_unit(row)}"


def _unit(row: Row) -> str:
    return "steps" if row["unit"] == "steps" else "s"


def _over(row: Row) -> str:
    if row["recovered_after"] is None:
        return "never"
    return f"{row['ending']}, {row['recovered_after']:.1f} s"


_COLUMNS = [
    Column("FAULT", text("fault")),
    Column("CLASS", text("class")),
    Column("WHAT", text("what"), wide=True),
    Column("FOUND AS", text("found_as")),
    Column("FOUND", _found),
    Column("TARGET", lambda row: f"{row['target']:g} {_unit(row)}"),
    Column("REFERENCE", text("reference"), wide=True),
    Column("END", _over),
    Column("ACTION", text("action"), wide=True),
    Column("OK", lambda row: "yes" if row["ok"] else "NO"),
]
