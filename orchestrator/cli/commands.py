"""The commands there are, each with its place in the help and where to import it from.

The problem: `babysit --version`, a completion and `babysit ls` would all pay for importing what
other commands need (a database, a simulator, plots), which takes seconds. The design: this table is
all that the root command knows. A module is imported when one of its commands is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
import typer.main

from orchestrator.cli.help import reflow
from orchestrator.cli.trailing import TakesCommand


class Entry(NamedTuple):
    """One command, or one group of commands."""

    panel: str
    target: str
    """`module:attribute`, below `orchestrator.cli`: a function, or a Typer app for a group."""
    help: str
    """The first sentence of its help, for completion."""


_RUNS = "Runs"
_PAST = "What happened, and why"
_ACT = "Step in"
_CLUSTER = "The cluster and the control plane"
_START = "Start here"
COMMANDS: Mapping[str, Entry] = {
    "run": Entry(_RUNS, "submit:run", "Submit a run and follow it to its end; Ctrl-C detaches."),
    "submit": Entry(_RUNS, "submit:submit", "Submit a run and return at once."),
    "ls": Entry(_RUNS, "runs:list_runs", "List runs, newest first."),
    "show": Entry(_RUNS, "runs:show", "Show one run."),
    "watch": Entry(_RUNS, "watch:watch", "Watch runs on a screen: curve, ranks, incidents, log."),
    "wait": Entry(_RUNS, "watch:wait", "Wait until a run has reached a state or a step."),
    "logs": Entry(_RUNS, "history:logs", "Print the output of the ranks."),
    "explain": Entry(_PAST, "history:explain", "Explain why a run is in its state."),
    "events": Entry(_PAST, "history:events", "Print the journal."),
    "logbook": Entry(_PAST, "history:logbook", "Print the story of a run in sentences."),
    "report": Entry(_PAST, "report:report", "Write a report of a run: one file."),
    "usage": Entry(_PAST, "usage:usage", "Show the GPU-hours that runs held."),
    "audit": Entry(_PAST, "audit:audit", "Show who did what."),
    "cancel": Entry(_ACT, "runs:cancel", "Cancel a run."),
    "hold": Entry(_ACT, "runs:hold", "Stop all automatic action for a run, or for everything."),
    "release": Entry(_ACT, "runs:release", "End a hold."),
    "restart": Entry(_ACT, "runs:restart", "Restart a run from its newest checkpoint."),
    "rollback": Entry(_ACT, "runs:rollback", "Restart a run from an older checkpoint."),
    "monitors": Entry("Look ahead", "monitors:app", "Judge the monitors: backtests and drills."),
    "simulate": Entry("Look ahead", "simulate:simulate", "Simulate scenarios, and replay traces."),
    "demo": Entry(_START, "demo:demo", "Train a small GPT on two local nodes through five faults."),
    "init": Entry(_START, "local:init", "Write a commented run.yaml and a train.py to start from."),
    "schema": Entry(_START, "local:schema", "Print the JSON Schema of the run spec."),
    "doctor": Entry(_START, "local:doctor", "Check what babysit needs on this machine."),
    "checkpoints": Entry(_PAST, "checkpoints:app", "Saved states of a run."),
    "incidents": Entry(_PAST, "incidents:app", "Failures and anomalies."),
    "nodes": Entry(_CLUSTER, "nodes:app", "The hosts of the cluster."),
    "queues": Entry(_CLUSTER, "queues:app", "Quotas of GPUs, and the runs that wait for them."),
    "grafana": Entry(_CLUSTER, "grafana:app", "Dashboards for Grafana: fleet, run, nodes, queues."),
    "prometheus": Entry(_CLUSTER, "prometheus:app", "Alert rules for Prometheus."),
    "server": Entry(_CLUSTER, "server:server", "Run the control plane, or look at it."),
    "db": Entry(_CLUSTER, "db:database", "The run database: schema, backups, retention."),
    "alerts": Entry(_CLUSTER, "alerts:app", "Notices to people."),
    "token": Entry(_CLUSTER, "token:token", "Credentials of the API."),
    "login": Entry(_CLUSTER, "login:login", "Sign in at the identity provider of a server."),
    "logout": Entry(_CLUSTER, "login:logout", "End the sign-in for a server."),
    "whoami": Entry(_CLUSTER, "login:whoami", "Show who you are to the server."),
}


_TAKE_A_COMMAND = frozenset({"submit:run", "submit:submit"})


class LazyCommands(Mapping[str, Any]):
    """Commands by name; each is imported and built when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _make(name, COMMANDS[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _make(name: str, entry: Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    target = getattr(import_module(f"orchestrator.cli.{module}"), attribute)
    parent = typer.Typer()
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=name, rich_help_panel=entry.panel)
    else:
        kind = TakesCommand if entry.target in _TAKE_A_COMMAND else None
        parent.command(name, cls=kind, rich_help_panel=entry.panel)(target)
        parent.callback()(_nothing)  # so that the parent is a group
    command = typer.main.get_group(parent).commands[name]
    reflow(command)
    return command


def _nothing() -> None:
    """A group has a callback."""
