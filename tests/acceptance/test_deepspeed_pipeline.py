"""DeepSpeed's pipeline engine: each stage loads its own part, without the files of the others.

Skipped where DeepSpeed is not installed (`pip install 'babysit[trainers]'`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.trainer_attempts import Attempts, go_through

pytest.importorskip("deepspeed", exc_type=ImportError)

pytestmark = pytest.mark.timeout(1500)


def test_a_pipeline_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = Attempts(tmp_path / "straight", "pipeline_job.py").attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    story = Attempts(tmp_path / "hurt", "pipeline_job.py")
    go_through(story, straight, kill="1:8", stop="0:11")
