"""Ranks see what torchrun would show them, and torch's record of an exception is heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.events import RankExited
from tests.agent_helpers import playground, start

SHOW = """
import json, os, sys
names = [n for n in os.environ if n.split("_")[0] in ("RANK", "LOCAL", "GROUP", "ROLE", "WORLD",
    "MASTER", "TORCHELASTIC", "TORCH")]
line = json.dumps({n: os.environ[n] for n in names}) + "\\n"
sys.stdout.write(line)  # at once: the ranks of torchrun share a pipe
sys.stdout.flush()
"""
RECORDED = """
import sys
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    sys.stdout.close()
    raise ValueError("shard 7 has no header")

sys.stderr = None
main()
"""
PRINTS = """
import os, time
if os.environ["RANK"] == "1":
    time.sleep(60)
for step, loss in ((0, 3.0), (10, 2.5)):
    print(f"iter {step}: loss {loss:.4f}, time 9.00ms, mfu -100.00%", flush=True)
time.sleep(3)  # heartbeats are one a second
print("iter 20: loss 2.0000, time 9.00ms, mfu -100.00%", flush=True)
os._exit(1)
"""
OWN = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
"""Each launch has its own."""
DIFFERENT = {
    "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 keeps the store here
    "TORCHELASTIC_MAX_RESTARTS": "50",  # the budget of the spec
}


def by_torchrun(root: Path) -> dict[str, str]:
    """The variables of rank 1 of 2 under torchrun itself."""
    (root / "show.py").write_text(SHOW)
    environment = {n: v for n, v in os.environ.items() if not n.startswith("TORCH")}
    said = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "show.py"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ranks = [json.loads(line) for line in said.splitlines()]
    return next(found for found in ranks if found["RANK"] == "1")


async def test_variables_are_those_of_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variable that torchrun sets is set, with the same value where one can be the same."""
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    due = by_torchrun(tmp_path)
    async with playground(tmp_path, SHOW) as (server, agent):
        await server.send(start(ranks=(0, 1), world_size=2))
        await server.event(RankExited, lambda event: event.rank == 1)
        found = json.loads(agent.log(1, 1))
    assert set(due) <= set(found)
    for name in set(due) - OWN:
        assert found[name] == DIFFERENT.get(name, due[name]), name
    assert found["TORCHELASTIC_RUN_ID"] == "run-1"


async def test_a_single_process_gets_none_of_them(tmp_path: Path) -> None:
    """Scripts take RANK as a sign of several ranks."""
    async with playground(tmp_path, SHOW) as (server, agent):
        await server.send(start(ranks=(0,), world_size=1))
        await server.event(RankExited)
        assert json.loads(agent.log(1, 0)) == {}


async def test_a_recorded_exception_is_the_cause(tmp_path: Path) -> None:
    """A rank that prints nothing has told torch's `@record` what it died of, and when."""
    async with playground(tmp_path, RECORDED, launcher="torchrun") as (server, _):
        await server.send(start(ranks=(0,), world_size=1))
        failure = (await server.event(RankExited)).failure
    assert failure is not None
    assert failure.reason == "ValueError: shard 7 has no header"
    assert failure.evidence[-1].startswith("ValueError: shard 7 has no header (recorded at 20")


async def test_steps_are_read_from_the_output_of_a_silent_script(tmp_path: Path) -> None:
    """One rank prints, and all of its node are known to move; the last step has no successor."""
    async with playground(tmp_path, PRINTS) as (server, _):
        await server.send(start(ranks=(0, 1), world_size=2))
        await server.event(RankExited, lambda event: event.rank == 0)
        beats = [beat for heartbeat in server.heartbeats for beat in heartbeat.beats]
        exited = server.of(RankExited)
    assert server.steps(0) == [1, 11, 21]
    assert [loss for samples in server.samples(0) for loss in samples.loss] == [3.0, 2.5, 2.0]
    assert server.steps(1) == []
    assert {beat.rank for beat in beats if beat.step == 11 and beat.moved} == {0, 1}
    assert [event.last_step for event in exited if event.rank == 0] == [21]
