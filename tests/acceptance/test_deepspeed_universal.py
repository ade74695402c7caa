"""Another number of ranks goes on from what DeepSpeed saved, as the same number would have.

Skipped where DeepSpeed is not installed (`pip install 'babysit[trainers]'`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prometheus import free_port

pytest.importorskip("deepspeed", exc_type=ImportError)

pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).parents[2]


def losses(ranks: int, *words: str) -> dict[int, float]:
    """The losses of steps by as many ranks."""
    job = [sys.executable, str(Path(__file__).with_name("universal_job.py")), *words]
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        quiet = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **own, **place, **quiet}
        processes.append(
            subprocess.Popen(
                job, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [each.communicate()[0] for each in processes]
    assert [each.returncode for each in processes] == [0] * ranks, outputs[0]
    found = re.findall(r"^step (\d+) loss (\S+)$", outputs[0], re.MULTILINE)
    return {int(step): float(loss) for step, loss in found}


@pytest.mark.parametrize(("stage", "after"), [(2, 1), (3, 3)])
def test_two_ranks_become_others(tmp_path: Path, stage: int, after: int) -> None:
    straight = losses(2, str(stage), str(tmp_path))
    before = sorted(tmp_path.iterdir())
    resumed = losses(after, str(stage), str(tmp_path), "2")
    assert list(resumed) == list(range(6, 12))
    assert resumed == pytest.approx({step: straight[step] for step in resumed}, rel=1e-4)
    assert sorted(tmp_path.iterdir()) == before
