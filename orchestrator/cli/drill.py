"""Faults on purpose against a real run: the engine of `babysit monitors drill`.

The problem: monitors and remedies that nobody exercises fail when they are needed. The design: a
run of its own, in a control plane of its own below the output directory, is struck by one fault
after the other. A fault waits until the run trains calmly again, and is followed to its end in what
`show` says of the run: a drill sees what people see.

Limits: the virtual nodes of one machine. Faults from inside need a script that takes orders.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

import jobs
from jobs.spec import RunSpec
from monitors.types import FindingKind
from orchestrator.cli.drill_strikes import ALLOWED, StrikeError, Strikes
from orchestrator.cli.errors import CliError
from orchestrator.cli.output import say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.cli.submit import Given, from_file, send
from orchestrator.cli.views import read as read_view
from orchestrator.controller.sample_pipeline import monitor_settings
from orchestrator.core.model.states import TERMINAL_RUN_STATES, RunState
from orchestrator.core.views.models import IncidentView, RestartView, RunDetail
from orchestrator.judgement.faults import Fault
from orchestrator.judgement.scoreboard import Outcome, Targets, misses
from orchestrator.settings import Settings

TEMPLATE = Path(jobs.__file__).parent / "templates" / "tiny_gpt"
CALM_STEPS = 30
"""Steps that a run trains before a fault: a checkpoint needs 10 to be good."""
GOES_ON_STEPS = 20
"""Steps of the same attempt after a fault that show that the run goes on."""
_POLL_SECONDS = 0.2
_CALM_LIMIT_SECONDS = 180.0
"""For each `CALM_STEPS` that the run trains before the fault."""
_STOP_LIMIT_SECONDS = 90.0
_EARLY_SECONDS = 0.5
"""Slack between the clock of a file system and that of the server."""
_MANY_STEPS = 100_000


class Job(NamedTuple):
    """The run to drill on."""

    given: Given
    orders: Path
    """The directory of orders for the script."""
    takes_orders: bool


def built_in(output: Path) -> Job:
    """The tiny GPT of the demo on two nodes, which takes orders."""
    job = output / "tiny_gpt"
    ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
    shutil.copytree(TEMPLATE, job, dirs_exist_ok=True, ignore=ignored)
    spec = YAML(typ="safe").load(TEMPLATE / "run.yaml")
    drill = output / "drill"
    spec["name"] = "drill"
    spec["command"] = [sys.executable, "train.py", "--steps", str(_MANY_STEPS)]
    spec["env"] = {**spec.get("env", {}), "BABYSIT_DRILL_DIRECTORY": str(drill), ALLOWED: "1"}
    spec["checkpoint"] = {
        "directory": "./checkpoints",
        "every_steps": 20,
        "memory_every_steps": 1,
        "keep": 3,
        "good_after_steps": 10,
    }
    # The defaults are for runs of days. A drill has minutes, and nothing to swap.
    spec["monitors"] = {"straggler": {"steps": 24, "after": "8s", "action": "observe"}}
    file = job / "run.yaml"
    _write(file, spec)
    return Job(from_file(file), drill / "orders", takes_orders=True)


def own(spec: Path, output: Path) -> Job:
    """A user's spec, with checkpoints below the output directory, and no notices to people.

    Raises:
        CliError: The spec cannot be read, or its script saves by itself.
    """
    from jobs.spec_file import SpecError, parse
    from orchestrator.cli.errors import ExitCode

    given = from_file(spec)
    try:
        checked, _ = parse(given.text, given.name)
    except SpecError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    if checked.resume is not None:
        raise CliError(
            f"{given.name} has `resume`: a drill would go on from the script's own checkpoints, and"
            " may move or delete them; give a copy of the spec without `resume` whose script saves"
            " somewhere else",
            ExitCode.USAGE,
        )
    content = YAML(typ="safe").load(given.text)
    content["env"] = {**(content.get("env") or {}), ALLOWED: "1"}
    saves = content.get("checkpoint") or {}
    content["checkpoint"] = {**saves, "directory": str(output / "checkpoints")}
    content.pop("notify", None)
    file = output / "run.yaml"
    _write(file, content)
    changed = Given(file.read_text(), given.name, given.base)
    return Job(changed, output / "drill" / "orders", takes_orders=False)


def _write(file: Path, content: dict[str, Any]) -> None:
    yaml = YAML(typ="safe")
    yaml.default_flow_style = None
    with file.open("w") as stream:
        yaml.dump(content, stream)


@contextlib.contextmanager
def control_plane(output: Path, clock: Any) -> Iterator[Session]:
    """A session with an embedded control plane of the drill's own, which is stopped at the end.

    The caller's settings do not reach it: a drill pages nobody and writes into no other database.
    """
    kept = {name: value for name, value in os.environ.items() if name.startswith("BABYSIT_")}
    for name in kept:
        del os.environ[name]
    here = Session(Settings(home=output / "home", idle_exit_seconds=30.0), clock)
    try:
        yield here
    finally:
        os.environ.update(kept)
        say("Stopping the run and its control plane")
        try:
            _stop(here)
        finally:
            here.close()


def _stop(here: Session) -> None:
    """Cancel the runs, wait until their processes are gone, and stop the server."""
    import signal

    from orchestrator.cli import embedded
    from orchestrator.server.server_file import is_alive, read_record

    if embedded.find(here.settings, here.clock) is None and not here.settings.server_file.exists():
        return
    over = {state.value for state in TERMINAL_RUN_STATES}
    for run in here.api.get(path("runs")):
        if run["state"] not in over:
            here.api.post(path("runs", run["id"], "cancel"), reason="the drill is over")
    _until(here, lambda: _is_idle(here), _STOP_LIMIT_SECONDS)
    record = read_record(here.settings.server_file)
    if record is not None and is_alive(record):
        os.kill(record.pid, signal.SIGTERM)
        _until(here, lambda: not is_alive(record), _STOP_LIMIT_SECONDS)


def _is_idle(here: Session) -> bool:
    from orchestrator.clusters.local.worker_records import Records

    over = {state.value for state in TERMINAL_RUN_STATES}
    runs = here.api.get(path("runs"))
    return (
        all(r["state"] in over for r in runs) and not Records(here.settings.home).unacknowledged()
    )


def _until(here: Session, holds: Callable[[], bool], seconds: float) -> bool:
    deadline = here.clock.monotonic() + seconds
    while not holds():
        if here.clock.monotonic() > deadline:
            return False
        here.wait(_POLL_SECONDS)
    return True


class Drill:
    """Provokes faults, one after the other."""

    def __init__(self, here: Session, job: Job, targets: Targets, every: float) -> None:
        self._here, self._job, self._targets, self._every = here, job, targets, every
        self._run: str | None = None
        self._struck_at = 0
        """The step at which the last fault struck."""
        self.runs: list[str] = []

    def run(self, faults: Sequence[Fault]) -> list[Outcome]:
        """Provoke the faults in their order, and say how each ended."""
        outcomes = []
        for number, fault in enumerate(faults, 1):
            say(f"[{number}/{len(faults)}] {fault.name}: {fault.what}")
            started = self._here.clock.monotonic()
            outcome = self._one(fault)
            outcomes.append(outcome)
            say(f"    {_told(outcome, misses(outcome, self._targets))}")
            left = self._every - (self._here.clock.monotonic() - started)
            if left > 0 and number < len(faults):
                self._here.wait(left)
        return outcomes

    def _one(self, fault: Fault) -> Outcome:
        try:
            detail = self._calm(fault)
            strikes = Strikes(self._here, detail, self._job.orders)
            before = _Seen.of(detail)
            struck = strikes.inject(fault)
        except StrikeError as error:
            return Outcome(fault=fault, trouble=str(error))
        self._struck_at = self._detail().step
        return _follow(self._here, self._detail, fault, before, struck, self._limit(fault))

    def _limit(self, fault: Fault) -> float:
        """Seconds until the drill goes on: more than the targets, to show the real figure."""
        found = self._targets.of(fault) if not fault.in_steps else 0.0
        return max(60.0, found) + max(60.0, min(self._targets.recovered, 120.0))

    def _detail(self) -> RunDetail:
        assert self._run is not None  # noqa: S101 (`_calm` has started it)
        return read_view(RunDetail, self._here.patient.get(path("runs", self._run)))

    def _calm(self, fault: Fault) -> RunDetail:
        """The run once it trains calmly and could show the fault; a new run if the last is over.

        Raises:
            StrikeError: It does not get there.
        """
        if self._run is None or self._detail().state in TERMINAL_RUN_STATES:
            self._submit()
        detail = self._detail()
        first = max(self._struck_at + CALM_STEPS, first_step(fault, detail.spec))
        limit = _CALM_LIMIT_SECONDS * max(1.0, (first - self._struck_at) / CALM_STEPS)
        deadline = self._here.clock.monotonic() + limit
        while True:
            if detail.state in TERMINAL_RUN_STATES:
                raise StrikeError(f"the run {detail.state} before the fault: {detail.reason}")
            trains = detail.state is RunState.RUNNING and detail.suspect is None
            if trains and detail.step >= first and _checked(detail):
                return detail
            if self._here.clock.monotonic() > deadline:
                raise StrikeError(f"the run did not train calmly within {limit:.0f} s")
            self._here.wait(_POLL_SECONDS)
            detail = self._detail()

    def _submit(self) -> None:
        shutil.rmtree(self._job.orders.parent, ignore_errors=True)
        self._run = send(self._here, self._job.given, with_shell=False)["id"]
        self.runs.append(str(self._run))
        self._struck_at = 0


def first_step(fault: Fault, spec: RunSpec) -> int:
    """The step of a run from which on it is certain to see a fault and to outlive it; 0: any."""
    if FindingKind.LOSS_SPIKE in fault.found_as:
        return monitor_settings(spec).loss.settled_steps
    if fault.saves:
        return fault.saves * spec.checkpoint.every_steps + spec.checkpoint.good_after_steps
    return 0


def _checked(detail: RunDetail) -> bool:
    """True if the last recovery of the run is over; one that another cut short never is."""
    last = max(detail.restarts, key=lambda restart: restart.attempt, default=None)
    return last is None or last.recovered_at is not None


class _Seen(NamedTuple):
    """The restarts and incidents from before a fault."""

    attempts: frozenset[int]
    incidents: frozenset[str]
    attempt: int

    @classmethod
    def of(cls, detail: RunDetail) -> _Seen:
        return cls(
            frozenset(each.attempt for each in detail.restarts),
            frozenset(each.id for each in detail.incidents),
            detail.attempt,
        )


def _follow(
    here: Session,
    read: Callable[[], RunDetail],
    fault: Fault,
    before: _Seen,
    struck: float,
    limit: float,
) -> Outcome:
    """Follow a run from a fault to its right end, or to the limit."""
    deadline = here.clock.monotonic() + limit
    outcome = Outcome(fault=fault)
    found_step = 0
    while here.clock.monotonic() < deadline:
        detail = read()
        if outcome.found_after is None:
            outcome = _found(fault, detail, before, struck)
            found_step = detail.step
        if outcome.found_after is not None:
            end = _end(fault, detail, before, found_step, here.clock.now())
            if end is not None:
                seconds = max(0.0, end.timestamp() - struck)
                return Outcome(**{**_fields(outcome), "recovered_after": seconds})
        if detail.state in TERMINAL_RUN_STATES:
            break
        here.wait(_POLL_SECONDS)
    return Outcome(**{**_fields(outcome), "trouble": _instead(read(), before)})


def _fields(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}


def _found(fault: Fault, detail: RunDetail, before: _Seen, struck: float) -> Outcome:
    """The outcome with what was found of a fault; as it was if nothing was."""
    for incident in detail.incidents:
        if incident.id not in before.incidents and incident.kind in fault.found_as:
            after = _steps(incident) if fault.in_steps else None
            seconds = max(0.0, incident.opened_at.timestamp() - struck)
            found = seconds if after is None else after
            return Outcome(fault=fault, found_as=str(incident.kind), found_after=found)
    for restart in _new(detail, before):
        if restart.failure_class in fault.found_as and not fault.in_steps:
            seconds = max(0.0, restart.detected_at.timestamp() - struck)
            return Outcome(fault=fault, found_as=restart.failure_class, found_after=seconds)
    return Outcome(fault=fault)


def _steps(incident: IncidentView) -> float | None:
    finding = incident.evidence.get("finding")
    if not isinstance(finding, dict):
        return None
    return float(str(finding["detected_step"])) - float(str(finding["onset_step"]))


def _new(detail: RunDetail, before: _Seen) -> list[RestartView]:
    return [each for each in detail.restarts if each.attempt not in before.attempts]


def _end(
    fault: Fault, detail: RunDetail, before: _Seen, found_step: int, now: dt.datetime
) -> dt.datetime | None:
    """When a fault had its right end; None: not yet."""
    if fault.ending == "stops":
        return (detail.ended_at or now) if detail.state is RunState.FAILED else None
    if fault.ending == "goes on":
        goes_on = detail.attempt == before.attempt and detail.step >= found_step + GOES_ON_STEPS
        return now if goes_on else None
    last = max(_new(detail, before), key=lambda restart: restart.attempt, default=None)
    return None if last is None else last.recovered_at


def _instead(detail: RunDetail, before: _Seen) -> str:
    """Say what happened to a run instead of the right end."""
    words = [f"restart as {each.failure_class}: {each.reason}" for each in _new(detail, before)]
    words += [
        f"incident {each.kind}: {each.reason}"
        for each in detail.incidents
        if each.id not in before.incidents
    ]
    if detail.state in TERMINAL_RUN_STATES:
        words.append(f"the run {detail.state}: {detail.reason}")
    return "; ".join(words)[:400]


def _told(outcome: Outcome, missed: list[str]) -> str:
    if outcome.found_after is None:
        return f"NOT FOUND: {'; '.join(missed)}"
    unit = "steps" if outcome.fault.in_steps else "s"
    end = (
        "never over"
        if outcome.recovered_after is None
        else (f"{outcome.fault.ending} after {outcome.recovered_after:.1f} s")
    )
    words = f"found as {outcome.found_as} after {outcome.found_after:.1f} {unit}, {end}"
    return f"{words}. MISSED: {'; '.join(missed)}" if missed else words
