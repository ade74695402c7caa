"""`babysit demo`: trains a small GPT through five injected failures, without human help."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

import jobs
from orchestrator.cli import follow, picture, show_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import put, say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, session
from orchestrator.cli.submit import from_file, send
from orchestrator.cli.views import read as read_view
from orchestrator.core.views.logbook import text
from orchestrator.core.views.models import StoryView

TEMPLATE = Path(jobs.__file__).parent / "templates" / "tiny_gpt"
STEPS = 360
DRILL = "kill@45:1 stop@90:0 flip@150:0 poison@211-240 truncate@310:1"
"""Faults at fixed steps.

A rank is killed; a rank is stopped (a hang); an exponent bit of a weight is flipped; data is
poisoned (the spike comes back after a rollback); the newest checkpoints are truncated just before
another kill.
"""
SPEC: dict[str, Any] = {
    "checkpoint": {
        "directory": "./checkpoints",
        "every_steps": 20,
        "memory_every_steps": 1,
        "keep": 3,
        "good_after_steps": 10,
    },
    "monitors": {"loss_spike": {"action": "act", "skip_batches": 30}},
}


def demo(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option(help="Directory for the job, its control plane and the picture.")
    ] = Path("demo-output"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the output of an earlier demo.")
    ] = False,
) -> None:
    """Train a small GPT on two local nodes through five faults, without human help.

    A rank is killed, a rank hangs, a bit flips in a weight, a stretch of the data is poisoned, and
    the newest checkpoints are truncated just before another kill. Takes about 3 minutes on 2 cores;
    needs torch.

    For example:

        babysit demo
        babysit demo --output /tmp/drill
    """
    if importlib.util.find_spec("torch") is None:
        raise CliError("the demo needs torch: pip install 'babysit[torch]'", ExitCode.USAGE)
    output = output.absolute()
    try:
        job = _prepare(output, keep=keep)
    except OSError as error:
        reason = error.strerror or error
        raise CliError(f"--output {output}: cannot be written: {reason}", ExitCode.USAGE) from error
    outer = session(ctx)
    settings = outer.settings.model_copy(
        update={"home": output / "home", "server": None, "token": None, "idle_exit_seconds": 20.0}
    )
    here = Session(settings, outer.clock)
    try:
        say(f"The job: {job / 'run.yaml'}. The faults, at fixed steps: {DRILL}")
        last = follow.to_the_end(here, send(here, from_file(job / "run.yaml")))
        _tell(here, last, output)
    finally:
        here.close()
    raise typer.Exit(follow.OUTCOMES[last["state"]])


def _prepare(output: Path, *, keep: bool) -> Path:
    """Copy the template, and write the spec with the drill into it."""
    job = output / "tiny_gpt"
    if not keep:
        for old in (job, output / "drill"):
            shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(
        TEMPLATE,
        job,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "checkpoints"),
    )
    yaml = YAML(typ="safe")
    yaml.default_flow_style = None
    spec = yaml.load(TEMPLATE / "run.yaml")
    spec.update(SPEC, command=[sys.executable, "train.py", "--steps", str(STEPS)])
    drill = {"BABYSIT_DRILL": DRILL, "BABYSIT_DRILL_DIRECTORY": str(output / "drill")}
    spec["env"] = {**spec.get("env", {}), **drill}
    with (job / "run.yaml").open("w") as file:
        yaml.dump(spec, file)
    return job


def _tell(here: Session, last: dict[str, Any], output: Path) -> None:
    """Print the logbook and the page of the run, and draw its picture."""
    run = last["id"]
    story = [read_view(StoryView, line) for line in here.api.get(path("runs", run, "logbook"))]
    put("\nThe logbook\n" + "\n".join(text(story)))
    put("\n" + show_run.page(last, here.clock.now()))
    series = {
        number: here.api.get(path("runs", run, "samples"), attempt=number, points=2000)
        for number in range(1, last["attempt"] + 1)
    }
    file = output / "run.png"
    picture.draw(last, series, file)
    put(f"\nThe picture of the run: {os.path.relpath(file)}")
