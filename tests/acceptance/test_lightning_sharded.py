"""Lightning's strategies with two ranks: killed, asked to leave, and a batch skipped.

Those that Lightning refuses on CPUs run through a subclass without that check.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.trainer_attempts import Attempts, go_through

pytest.importorskip("lightning", exc_type=ImportError)

pytestmark = pytest.mark.timeout(1500)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "model-parallel", "deepspeed", "zero3"])
def test_a_strategy_goes_on_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    if strategy in {"deepspeed", "zero3"}:
        pytest.importorskip("deepspeed", exc_type=ImportError)
    straight = Attempts(tmp_path / "straight", "lightning_job.py", strategy).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    for rank in straight:
        assert [(r.step, r.batch) for r in rank.records] == [(s, s) for s in range(1, 17)]
        saved = [n["step"] for n in rank.notes if n["kind"] == "shard"]
        assert saved == [4, 8, 12, 16], "as the spec says"
    story = Attempts(tmp_path / "hurt", "lightning_job.py", strategy)
    go_through(story, straight, kill="1:7", stop="0:10", accumulate=1)
