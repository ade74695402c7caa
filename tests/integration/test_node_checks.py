"""Checks of nodes: real programs, real agents on the local cluster, and causes that are real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.agent import command as agent_command
from jobs.checks import processor
from jobs.checks.measurement import Task
from jobs.checks.results import QUICK, Verdict
from jobs.checks.runner import read_end, run_checks
from jobs.clock import Clock
from orchestrator.clusters.local.cluster import LocalCluster
from orchestrator.clusters.local.virtual_nodes import LocalClusterSettings
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.core.model.checking import PREFLIGHT
from tests.cli import babysit, connect
from tests.control_plane import FAILED, OK, REFUSED, USAGE, until
from tests.plane import Plane

PATIENCE = 90.0
LIMITED = """
case "$(cat "$1")" in *'"node":"{node}"'*) ulimit -f 2048;; esac
exec {agent} "$1"
"""
"""An agent whose processes on one node can write no file beyond a MiB or two."""


# --- programs -----------------------------------------------------------------------------------


def task(root: Path, **fields: object) -> Task:
    return Task(**{"disk": str(root), "memory": str(root), **fields})


async def test_a_healthy_machine_passes_and_says_why_it_has_no_gpus(tmp_path: Path) -> None:
    found = {each.check: each for each in await run_checks((*QUICK, "nvlink"), task(tmp_path))}
    measured = {"matmul", "memory", "disk-write", "disk-read", "tmpfs-free"}
    for name in measured:
        assert found[name].verdict is Verdict.PASSED, found[name]
        assert (found[name].figure or 0) > 0
    for name in ("gpu-count", "nvlink"):
        assert found[name].verdict is Verdict.SKIPPED
        assert found[name].reason == "no GPU is asked of this node"
    assert not list(tmp_path.iterdir()), "a check leaves nothing behind"


async def test_a_program_that_hangs_is_killed_and_has_failed(tmp_path: Path) -> None:
    (found,) = await run_checks(["memory"], task(tmp_path), limit_seconds=0.001)
    assert found.verdict is Verdict.FAILED
    assert found.reason == "did not end within 0.001 s: it was killed"


async def test_a_directory_that_is_gone_fails_and_a_name_that_is_wrong_does_not(
    tmp_path: Path,
) -> None:
    found = await run_checks(["disk", "tmpfs", "warp"], task(tmp_path / "gone"))
    assert [each.verdict for each in found] == [Verdict.FAILED, Verdict.FAILED, Verdict.SKIPPED]
    assert all("No such file or directory" in each.reason for each in found[:2])


def limited(what: str, root: Path, *names: str) -> list[dict[str, object]]:
    """Results of checks in a process with a limit of the kernel."""
    program = (
        "import asyncio, json, resource, sys\n"
        f"{what}\n"
        "from jobs.checks.measurement import Task\n"
        "from jobs.checks.runner import read_end, run_checks\n"
        "task = Task(disk=sys.argv[1], memory=sys.argv[1])\n"
        "found = asyncio.run(run_checks(sys.argv[2:], task))\n"
        "print(json.dumps([each.model_dump(mode='json') for each in found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rows: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def test_a_disk_that_takes_no_more_fails_with_the_words_of_the_system(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    disk, tmpfs = limited(limit, tmp_path, "disk", "tmpfs")
    assert (disk["check"], disk["verdict"]) == ("disk-write", "failed")
    assert (tmpfs["check"], tmpfs["verdict"]) == ("tmpfs-free", "failed")
    assert "File too large" in str(disk["reason"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (-signal.SIGSEGV, "", Verdict.FAILED),
        (-signal.SIGBUS, "", Verdict.FAILED),
        (-signal.SIGKILL, "", Verdict.SKIPPED),
        (-signal.SIGTERM, "", Verdict.SKIPPED),
        (-signal.SIGRTMIN - 1, "", Verdict.SKIPPED),
        (1, "", Verdict.SKIPPED),
        (0, "hello", Verdict.SKIPPED),
        (0, "", Verdict.SKIPPED),
        (0, "[]", Verdict.SKIPPED),
    ],
)
def test_a_program_that_a_signal_ends_has_failed_and_one_that_raised_has_not(
    code: int, output: str, verdict: Verdict
) -> None:
    (found,) = read_end("matmul", code, output, "Traceback\nMemoryError")
    assert found.verdict is verdict
    assert found.reason


def test_a_wrong_product_is_seen_whichever_entry_is_wrong(tmp_path: Path) -> None:
    def flipped(a: processor.Matrix, b: processor.Matrix) -> processor.Matrix:
        right = processor.multiply(a, b)
        right[processor.SIZE // 2][processor.SIZE // 3] ^= 1
        return right

    (found,) = processor.matmul(task(tmp_path), flipped)
    assert (
        found.problem == "the processor computed a wrong product of two matrices of whole numbers"
    )


# --- agents -------------------------------------------------------------------------------------


class LocalPlane(Plane):
    """A control plane with a local cluster, on whose first node no large file can be written."""

    def make_cluster(self, clock: Clock) -> Cluster:
        script = self.settings.home / "agent.sh"
        here = " ".join(agent_command.HERE)
        script.write_text(LIMITED.format(node="node-1", agent=here))
        settings = LocalClusterSettings(
            home=self.settings.home, nodes=3, agent=("/bin/sh", str(script)), gpus_per_node=0
        )
        return LocalCluster(settings, clock)

    def access(self, run: str, worker: str) -> AgentAccess:
        url = self.url.replace("http", "ws")
        return AgentAccess(f"{url}/agent", self.worker_tokens.make(run, worker))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with LocalPlane(tmp_path_factory.mktemp("home"), check_join_hours=24.0) as running:
        yield running


@pytest.fixture(autouse=True)
def connected(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "plane" in request.fixturenames:
        connect(request.getfixturevalue("plane"), monkeypatch, tmp_path)


NAMES = ("--check", "memory", "--check", "disk", "--check", "clock-skew")


def rows(output: str) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(output)}


def test_a_gang_starts_on_the_nodes_whose_checks_pass(plane: Plane, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('trained')\n")
    command = [sys.executable, str(script)]
    spec = {"name": "tiny", "command": command, "workdir": str(tmp_path)}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**spec, "resources": {"nodes": 2}}))
    submitted = babysit("submit", str(file))
    assert submitted.exit_code == OK, submitted.output
    waited = babysit("wait", "tiny", "--timeout", "90s")
    assert waited.exit_code == OK, waited.output
    node = plane.controller.state.nodes["node-1"]
    assert node.by == PREFLIGHT
    assert "disk-write" in node.reason
    assert "File too large" in node.reason
    shown = json.loads(babysit("events", "tiny", "-o", "json").stdout)
    assert any("node-1 failed a check before it joined" in str(each) for each in shown)


def test_a_node_is_checked_by_hand(plane: Plane) -> None:
    until(lambda: not plane.controller.state.workers, "the run has left", PATIENCE)
    good = babysit("nodes", "check", "node-2", *NAMES, "-o", "json")
    assert good.exit_code == OK, good.output
    found = rows(good.stdout)
    assert {"memory", "disk-read", "disk-write", "clock-skew"} <= set(found)
    assert all(row["ok"] for row in found.values())
    bad = babysit("nodes", "check", "node-1", "--check", "disk", "-o", "json")
    assert bad.exit_code == FAILED, bad.output
    assert rows(bad.stdout)["disk-write"]["verdict"] == "failed"
    table = babysit("nodes", "check", "node-2", "--last")
    assert table.exit_code == OK
    assert "MB/s" in table.stdout
    assert plane.controller.state.nodes["node-1"].measured.under_way is None


def test_what_cannot_be_checked_is_refused_in_words(plane: Plane) -> None:
    wrong = babysit("nodes", "check", "node-2", "--check", "warp")
    assert wrong.exit_code == USAGE
    assert "checks: there is no warp; expected some of" in wrong.stderr
    assert babysit("nodes", "check", "node-9").exit_code not in {OK, REFUSED}


def test_a_check_that_cannot_start_is_no_verdict(plane: Plane) -> None:
    records = plane.settings.home / "runs" / "checks" / "workers"
    aside = records.rename(records.with_name("aside"))
    records.write_text("in the way")
    try:
        failed = babysit("nodes", "check", "node-3", "--check", "memory")
        assert failed.exit_code == FAILED
        assert "node-3 was not measured: " in failed.stderr
    finally:
        records.unlink()
        aside.rename(records)
    assert plane.controller.state.nodes["node-3"].by == ""
