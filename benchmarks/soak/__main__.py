"""Soak: many healthy but awkward runs at once; every intervention is a defect.

    python -m benchmarks.soak [--minutes 30] [--kinds all|NAME,…] [--scale 1]

Real agents and real ranks on the embedded local cluster. The ranks use no torch and sleep most of
the time. Exits with 1 if babysit restarted a run, acted on an incident, blamed or cordoned a node,
or if a run did not succeed. The files are removed at the end, unless `--keep DIRECTORY` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.soak.judge import complaints_about_nodes, complaints_about_run  # noqa: E402
from benchmarks.soak.kinds import KINDS, Kind  # noqa: E402
from benchmarks.support.harness import (  # noqa: E402
    Api,
    control_plane,
    last_line,
    path,
    submit,
    table,
    workplace,
)
from orchestrator.cli.session import Session  # noqa: E402

JOB = ROOT / "benchmarks" / "soak" / "job.py"
NODES = 4
POLL_SECONDS = 0.5
"""Below the time after which the control plane leaves once all runs are over."""
STAGGER_SECONDS = 0.5
"""Between two submissions, as the start of runs is not what the soak tests."""
END_PATIENCE_SECONDS = 180.0
"""After the end of its time, a run may finish what it is at, and linger."""
LEAST_SECONDS_TO_START = 60.0
"""A run that is shorter than this shows nothing."""


@dataclasses.dataclass
class Runner:
    """One run of a kind, and those that follow it when it is short.

    Attributes:
        name: Of its runs.
        seed: Of the run that goes on.
        run: Id of the run that goes on; empty: none.
        asked: Restarts of that run that were asked for.
        ended: All runs that have ended, as shown, with the restarts that were asked for.
    """

    name: str
    kind: Kind
    seed: int
    run: str = ""
    begun: float = 0.0
    asked: int = 0
    ended: list[tuple[dict[str, Any], int]] = dataclasses.field(default_factory=list)

    def start(self, session: Session, directory: Path, until: float) -> None:
        """Submit the next run."""
        self.seed += 1
        self.begun, self.asked = time.time(), 0
        ends_at = until if self.kind.lasts is None else min(until, self.begun + self.kind.lasts)
        scratch = directory / self.name / str(self.seed)
        scratch.mkdir(parents=True)
        command = [sys.executable, str(JOB), self.kind_name, "--until", str(ends_at)]
        spec = {
            "name": self.name,
            "command": [*command, "--seed", str(self.seed), "--scratch", str(scratch)],
            "workdir": str(scratch),
            "env": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            "resources": {
                "nodes": self.kind.nodes,
                "processes_per_node": self.kind.processes,
                "cpus_per_node": 0.01,
            },
            "checkpoint": {"directory": str(scratch / "checkpoints")},
        }
        self.run = submit(session, scratch, spec)

    @property
    def kind_name(self) -> str:
        """Name of its kind."""
        return next(name for name, kind in KINDS.items() if kind is self.kind)

    def look(self, api: Api, ended: set[str], until: float) -> None:
        """Take the run if it has ended, and restart it if it is due to be restarted."""
        if self.run in ended:
            self.ended.append((api.get(path("runs", self.run)), self.asked))
            self.run = ""
        elif self.kind.restarted and not self.asked and _is_past_a_third(self.begun, until):
            api.post(path("runs", self.run, "restart"), reason="the soak wants to see a replay")
            self.asked = 1

    def complaints(self) -> list[str]:
        """Wrongs done to its runs."""
        return [
            text
            for shown, asked in self.ended
            for text in complaints_about_run(shown, asked_restarts=asked)
        ]

    def row(self) -> tuple[object, ...]:
        """One row of the table of results."""
        runs = [shown for shown, _ in self.ended]
        incidents = [incident["kind"] for shown in runs for incident in shown["incidents"]]
        counts = ", ".join(f"{incidents.count(kind)} {kind}" for kind in sorted(set(incidents)))
        steps = sum(shown["step"] for shown in runs)
        return (self.name, len(runs), steps, counts or "-", len(self.complaints()))


def _is_past_a_third(begun: float, until: float) -> bool:
    return time.time() > begun + (until - begun) / 3


def soak(session: Session, directory: Path, runners: list[Runner], until: float) -> None:
    """Run everything until the time is up and the runs have ended."""
    for runner in runners:
        runner.start(session, directory, until)
        time.sleep(STAGGER_SECONDS)
    while time.time() < until + END_PATIENCE_SECONDS and any(r.run for r in runners):
        # One request for all runs: the soak must not be the load that it looks for.
        shown = session.api.get(path("runs"), limit=1000)
        over = {run["id"] for run in shown if run["ended_at"] is not None}
        for runner in runners:
            if runner.run:
                before = len(runner.complaints())
                runner.look(session.api, over, until)
                if new := runner.complaints()[before:]:
                    print("\n".join(new), flush=True)
                    _print_logs(session, runner.ended[-1][0])
            elif runner.kind.lasts and until - time.time() > LEAST_SECONDS_TO_START:
                runner.start(session, directory, until)
        time.sleep(POLL_SECONDS)


def _print_logs(session: Session, shown: dict[str, Any]) -> None:
    for file in sorted(session.settings.log_directory(shown["id"]).rglob("*.log")):
        lines = file.read_text(errors="replace").splitlines()[-8:]
        print(f"  the end of {file.parent.name}/{file.name}:")
        print("".join(f"    {line}\n" for line in lines), end="", flush=True)


def unfinished(session: Session, runners: list[Runner]) -> list[str]:
    """Runs that should have ended by now."""
    shown = [session.api.get(path("runs", runner.run)) for runner in runners if runner.run]
    return [f"{run['name']} has not ended: {run['state']}, {run['reason']}" for run in shown]


def chosen(words: str) -> dict[str, Kind]:
    """The kinds by this name: empty: the default ones, `all`, or names with commas between.

    Raises:
        SystemExit: There is no such kind.
    """
    if not words:
        return {name: kind for name, kind in KINDS.items() if kind.default}
    names = list(KINDS) if words == "all" else words.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise SystemExit(f"no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return {name: KINDS[name] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kinds", default="", help="all, or names: " + ", ".join(KINDS))
    parser.add_argument("--scale", type=int, default=1, help="runs of each kind at once")
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, not removed")
    options = parser.parse_args()
    runners = [
        Runner(f"{name}-{copy}" if copy else name, kind, seed=1000 * copy)
        for name, kind in chosen(options.kinds).items()
        for copy in range(options.scale)
    ]
    kept = contextlib.nullcontext(options.keep.absolute()) if options.keep else workplace("soak")
    with kept as directory, control_plane(directory, nodes=NODES) as session:
        until = time.time() + options.minutes * 60
        soak(session, directory, runners, until)
        nodes = complaints_about_nodes(session.api.get(path("nodes")))
        late = unfinished(session, runners)
        for runner in runners:
            if runner.run:
                runner.ended.append((session.api.get(path("runs", runner.run)), runner.asked))
    table(("run", "runs", "steps", "incidents", "wrongs"), [runner.row() for runner in runners])
    wrongs = [*(text for runner in runners for text in runner.complaints()), *late, *nodes]
    print("\n".join(["", *wrongs]))
    shown = [shown for runner in runners for shown, _ in runner.ended]
    incidents = [incident for run in shown for incident in run["incidents"]]
    last_line(
        {
            "minutes": options.minutes,
            "kinds": len({runner.kind_name for runner in runners}),
            "runs": len(shown),
            "ranks": sum(runner.kind.ranks for runner in runners),
            "not_succeeded": sum(run["state"] != "succeeded" for run in shown),
            "restarts": sum(r["remedy"] != "as asked" for run in shown for r in run["restarts"]),
            "incidents": len(incidents),
            "slow_incidents": sum(incident["kind"] == "slow" for incident in incidents),
            "nodes_blamed": len(nodes),
            "wrongs": len(wrongs),
        }
    )
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
