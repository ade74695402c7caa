"""Mistakes in the script: tried once more, to confirm, and then it is its owner's turn."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Jobs
from tests.control_plane import FAILED, ControlPlane


def test_an_exception_at_step_five_always(plane: ControlPlane, jobs: Jobs) -> None:
    """One confirmation; then `failed`, with the last line of the traceback; exit code 1."""
    job = jobs(faults=("raise@5",))
    process = plane.shell("run", job.spec)
    out, err = process.communicate(timeout=120)
    assert process.returncode == FAILED, err
    run = plane.ask("ls")[0]["id"]
    shown = plane.show(run)
    last_line = "RuntimeError: the batch of step 5 has the wrong shape"
    assert (shown["state"], shown["reason"]) == ("failed", last_line)
    assert [(r["class"], r["cause"]) for r in shown["restarts"]] == [("user_code", "user")]
    assert shown["attempt"] == 2
    assert last_line in out
    assert last_line in err, "who follows is told why"
    log = plane.babysit("logs", run, "--rank", 1).stdout
    assert last_line in log


def test_a_module_that_is_missing(plane: ControlPlane, jobs: Jobs) -> None:
    """A failure at import, before babysit is even heard of: as quickly, and as clear."""
    job = jobs(faults=("import",))
    shown = plane.state(plane.submit(job.spec), "failed")
    assert shown["reason"] == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    assert shown["attempt"] == 2
    assert job.events("start") == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("def main(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('no data under /data')\n", "no data under /data"),
        ("print('hello')\nraise SystemExit(3)\n", "exit code 3"),
    ],
)
def test_other_ways_to_fail(plane: ControlPlane, jobs: Jobs, script: str, reason: str) -> None:
    """Whatever a script dies of: tried once more, with the reason in its words, and no node blamed.

    So it is with the values a spec has by itself.
    """
    job = jobs()
    (job.spec.parent / "broken.py").write_text(script)
    job.spec.write_text("name: broken\ncommand: [python, broken.py]\n")
    shown = plane.state(plane.submit(job.spec), "failed")
    assert reason in shown["reason"]
    assert (shown["attempt"], shown["avoid"]) == (2, [])
    assert [restart["cause"] for restart in shown["restarts"]] == ["user"]
    assert not any(node["faults"] for node in plane.ask("nodes", "ls"))
