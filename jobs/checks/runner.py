"""Runs check programs one after the other, each in a process and with a time limit of its own.

The problem: a hung driver hangs each caller, for ever and beyond SIGKILL. The design: the
caller only waits for a child. A child that does not end in time is killed and left behind, and the
check has failed.

Limits: a check that crashes by an error of its own (a module that is missing) is skipped, not
failed: that says nothing about the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

import structlog

from jobs.checks.measurement import Measurement, Task
from jobs.checks.program import PROGRAMS
from jobs.checks.results import CheckResult, Verdict

LIMIT_SECONDS = 60.0
"""Time of one check; each takes 0.1 to 5 s on a healthy machine. An estimate of ours."""
PREFLIGHT_SECONDS = 30.0
"""Time of one of the quick checks before a worker joins, which has 300 s to do so."""
_PROGRAM = f"{__package__}.program"
_KILL_SECONDS = 5.0
"""Time that a killed program gets to vanish."""
_OUR_KILL = -signal.SIGKILL
_FAULTS = {
    -each: each.name
    for each in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
}
"""The signals that a broken processor or driver raises in a program. Others come from outside: a
node that is shut down ends its processes with SIGTERM."""


async def run_checks(
    names: Iterable[str], task: Task, limit_seconds: float = LIMIT_SECONDS
) -> tuple[CheckResult, ...]:
    """Run the programs with these names, in order; the results of all.

    Unknown names are skipped and say so. Cancelled, it kills the program under way.
    """
    found: list[CheckResult] = []
    for name in names:
        if name not in PROGRAMS:
            why = f"this agent has no check {name}; it has {', '.join(PROGRAMS)}"
            found.append(CheckResult(check=name, verdict=Verdict.SKIPPED, reason=why))
            continue
        found += await _run(name, task, limit_seconds)
    return tuple(found)


async def _run(name: str, task: Task, limit_seconds: float) -> list[CheckResult]:
    arguments = ("-P", "-m", _PROGRAM, name, json.dumps(dataclasses.asdict(task)))
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return [_skipped(name, f"the check cannot be started: {error}")]
    try:
        async with asyncio.timeout(limit_seconds):
            output, errors = await child.communicate()
    except TimeoutError:
        why = f"did not end within {limit_seconds:g} s: it was killed"
        return [CheckResult(check=name, verdict=Verdict.FAILED, reason=why)]
    finally:
        await _end_group(child)
    return read_end(name, child.returncode or 0, output.decode(), errors.decode(errors="replace"))


async def _end_group(child: asyncio.subprocess.Process) -> None:
    """Kill what a program has left; one that is stuck in the kernel is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILL_SECONDS):
            await child.wait()


def read_end(name: str, code: int, output: str, errors: str) -> list[CheckResult]:
    """The results of a program that has ended.

    The signal of a fault fails the check. A program that raised an error, was killed for memory or
    was ended from outside says nothing of the node.
    """
    if code in _FAULTS:
        why = f"the program was killed by {_FAULTS[code]}"
        return [CheckResult(check=name, verdict=Verdict.FAILED, reason=why)]
    try:
        rows: list[dict[str, Any]] = json.loads(output.splitlines()[-1]) if code == 0 else []
        return [_result(Measurement(**row)) for row in rows] or [_skipped(name, _end(code, errors))]
    except (ValueError, TypeError, IndexError):
        return [_skipped(name, f"the check printed no measurements; {_end(code, errors)}")]


def _end(code: int, errors: str) -> str:
    last = (errors.strip().splitlines() or [""])[-1]
    structlog.get_logger(part="checks").warning("check program failed", code=code, errors=errors)
    ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    how = "it was killed" if code == _OUR_KILL else ended
    return f"{how}: {last[:500]}" if last else how


def _skipped(name: str, why: str) -> CheckResult:
    return CheckResult(check=name, verdict=Verdict.SKIPPED, reason=why)


def _result(measured: Measurement) -> CheckResult:
    verdict = Verdict.PASSED
    if measured.problem:
        verdict = Verdict.FAILED
    elif measured.skipped:
        verdict = Verdict.SKIPPED
    return CheckResult(
        check=measured.check,
        figure=measured.figure,
        unit=measured.unit,
        device=measured.device[:200],
        verdict=verdict,
        reason=(measured.problem or measured.skipped)[:2000],
    )
