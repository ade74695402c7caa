"""What a spec means for a run on other machines, and what a server needs to have such runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.agent.code import bundle_url
from jobs.elsewhere import resolve_elsewhere
from jobs.environment import Environment
from jobs.spec import RunSpec
from jobs.spec_file import SpecError, parse
from jobs.spec_trainers import Launcher
from monitors.exit_rules import RuleFile
from orchestrator.cli.local import _agents, _bundles
from orchestrator.cli.session import Session
from orchestrator.errors import InvalidError
from orchestrator.server.process import _refuse_unreachable
from orchestrator.settings import Settings

RULES = RuleFile.model_validate(
    {"rules": [{"name": "mine", "class": "storage", "match": "my words"}]}
)


def resolved(text: str, *rules: RuleFile, **named: str) -> RunSpec:
    spec, source = parse(f"name: a\ncommand: [python, t.py]\n{text}")
    environment = Environment(shell={"HOME": "/home/mia"}, named=named)
    return resolve_elsewhere(spec, source, environment, rules)


def test_nothing_of_this_machine_is_looked_at() -> None:
    spec = resolved(
        "workdir: ~/code/$HERE\nresources: {nodes: 2}\n"
        "checkpoint: {directory: /mnt/../mnt/ckpt/}\nmonitors: {logs: [mine.yaml]}\n",
        RULES,
    )
    assert spec.workdir == "~/code/$HERE"
    assert spec.checkpoint.directory == "/mnt/ckpt"
    assert spec.monitors.logs == (RULES,)
    assert spec.launcher is Launcher.TORCHRUN


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ("checkpoint: {directory: $DATA/ckpt}", "/mnt/ckpt"),
        ("env: {HERE: /srv}\ncheckpoint: {directory: $HERE/ckpt}", "/srv/ckpt"),
        ("upload: false\nworkdir: /mnt/code\ncheckpoint: {directory: ../ckpt}", "/mnt/ckpt"),
        ("upload: false\nworkdir: $DATA\ncheckpoint: {directory: ckpt}", "/mnt/ckpt"),
        ("checkpoint: {memory_every_steps: 5}", None),
    ],
)
def test_checkpoints_are_where_every_node_finds_them(text: str, directory: str | None) -> None:
    assert resolved(text, DATA="/mnt").checkpoint.directory == directory


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("checkpoint: {directory: ckpt}", "3:25: checkpoint.directory: .*a copy on each node"),
        ("upload: false\ncheckpoint: {directory: ckpt}", r"4:25: .*the workdir \. is in the image"),
        ("checkpoint: {directory: s3://bucket/x}", "3:25: .*got the URL s3://bucket/x"),
        ("checkpoint: {directory: ~/ckpt}", r"3:25: .*HOME.* is not set"),
        ("env: {HF_HOME: ~/cache}", r"3:16: .*HOME.* is not set"),
        ("upload: false\nworkdir: ~/code", r"4:10: workdir: .*HOME.* is not set"),
        ("monitors: {logs: [mine.yaml]}", "3:19: .*mine.yaml is read by `babysit submit`"),
    ],
)
def test_what_means_nothing_on_the_nodes_is_refused_in_its_place(text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        resolved(text)


def test_a_bundle_is_where_agents_are_answered() -> None:
    for url, place in {
        "wss://babysit.example.org/agent": "https://babysit.example.org/agent",
        "ws://10.1.2.3:80/agent": "http://10.1.2.3:80/agent",
        "wss://[fd00::7]:8443/x/agent/": "https://[fd00::7]:8443/x/agent",
    }.items():
        assert bundle_url(url, "ab") == f"{place}/bundles/ab"
    for url in ("unix-agent:/run/x.sock", "https://x/agent", "wss:///agent"):
        with pytest.raises(ValueError, match="expected a URL such as"):
            bundle_url(url, "ab")


def test_a_server_that_agents_elsewhere_cannot_reach_does_not_start(tmp_path: Path) -> None:
    given = Settings(home=tmp_path, cluster="kubernetes", agent_url="wss://b.example.org/agent")
    _refuse_unreachable(given)
    unix = given.model_copy(update={"agent_url": f"ws+unix:{tmp_path}/server.sock"})
    with pytest.raises(InvalidError, match="set BABYSIT_AGENT_URL to the URL at which they reach"):
        _refuse_unreachable(unix)


def test_doctor_knows_what_runs_elsewhere_need(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, cluster="kubernetes")
    assert _agents(Session(settings)) == (
        False,
        "agents on other machines cannot reach this server: set BABYSIT_AGENT_URL",
    )
    assert _bundles(Session(settings)) == (True, f"0, 0 B, in {tmp_path}")
    several = settings.model_copy(update={"database_url": "postgresql://db/babysit"})
    assert _bundles(Session(several)) == (True, f"0, 0 B, in the run database and in {tmp_path}")
    (tmp_path / "bundles").mkdir()
    with (tmp_path / "bundles" / "x.tar").open("wb") as large:
        large.truncate(33 * 2**20)
    found, words = _bundles(Session(several))
    assert not found
    assert "1 above 32 MiB in this home alone" in words
    shared = several.model_copy(update={"bundles": f"file://{tmp_path}"})
    assert _bundles(Session(shared))[0]
    wrong = several.model_copy(update={"bundles": "nosuch://x"})
    assert _bundles(Session(wrong)) == (
        False,
        "BABYSIT_BUNDLES=nosuch://x: Protocol not known: nosuch",
    )
