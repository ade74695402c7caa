"""Scripts of transformers, trl and accelerate: killed, asked to leave, and their batches skipped.

Real ranks, two of them, with tiny models made from configurations. Skipped where the libraries are
not installed (`pip install 'babysit[trainers]'`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.trainer_attempts import Attempts, go_through

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("accelerate", exc_type=ImportError)

pytestmark = pytest.mark.timeout(1500)


@pytest.mark.parametrize("words", [(), ("trl",)])
def test_a_trainer_goes_on_bit_for_bit(tmp_path: Path, words: tuple[str, ...]) -> None:
    if "trl" in words:
        pytest.importorskip("trl", exc_type=ImportError)
    straight = Attempts(tmp_path / "straight", "trainer_job.py", *words).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    for rank in straight:
        steps = [(r.step, r.batch) for r in rank.records]
        assert steps == [(s, 2 * s) for s in range(1, 17)], "each step, whatever logging_steps says"
        saved = [n["step"] for n in rank.notes if n["kind"] == "shard"]
        assert saved == [4, 8, 12, 16], "as the spec says, not save_steps"
    assert not list((tmp_path / "straight" / "out").glob("checkpoint-*")), "its own are its own"
    story = Attempts(tmp_path / "hurt", "trainer_job.py", *words)
    go_through(story, straight, kill="1:7", stop="0:11")


def test_a_loop_of_accelerates_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = Attempts(tmp_path / "straight", "accelerate_job.py").attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    assert [r.step for r in straight[0].records] == list(range(1, 16))
    # With `babysit.auto()`, the adapter is the same, and no line names it.
    story = Attempts(tmp_path / "hurt", "accelerate_job.py", "auto")
    go_through(story, straight, kill="1:1:5", stop="0:2:1")


def test_auto_gives_a_trainer_its_adapter(tmp_path: Path) -> None:
    story = Attempts(tmp_path / "auto", "trainer_job.py", "auto")
    left = story.attempt({"STOP": "1:2"})
    for rank in left:
        assert rank.code == 0, rank.output
        assert [(r.step, r.batch) for r in rank.records] == [(1, 2), (2, 4)]
        assert rank.note("left")["step"] == 2


@pytest.fixture(params=["fsdp", "fsdp1", "deepspeed", "zero3"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of training that shards the state; these scripts have it on CPUs."""
    if not request.param.startswith("fsdp"):
        pytest.importorskip("deepspeed", exc_type=ImportError)
    found: str = request.param
    return found


def test_a_loop_with_a_sharded_model_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    straight = Attempts(tmp_path / "straight", "accelerate_job.py", kind).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    story = Attempts(tmp_path / "hurt", "accelerate_job.py", kind)
    go_through(story, straight, kill="1:1:5", stop="0:2:1")


def test_a_trainer_with_a_sharded_model_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    a_sharded_trainer_goes_on(tmp_path, kind)


def test_a_trainer_with_an_offloaded_model_goes_on_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", exc_type=ImportError)
    a_sharded_trainer_goes_on(tmp_path, "offload")


def a_sharded_trainer_goes_on(tmp_path: Path, kind: str) -> None:
    straight = Attempts(tmp_path / "straight", "trainer_job.py", kind).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    for rank in straight:
        saved = [n["step"] for n in rank.notes if n["kind"] == "shard"]
        assert saved == [4, 8, 12, 16], "as the spec says, not save_steps"
    story = Attempts(tmp_path / "hurt", "trainer_job.py", kind)
    go_through(story, straight, kill="1:7", stop="0:11")  # saved at 7, right after an evaluation
