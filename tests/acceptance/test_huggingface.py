"""Scripts of transformers, trl and accelerate: killed, asked to leave, and their batches skipped.

Real ranks, two of them, with tiny models made from configurations. Skipped where the libraries are
not installed (`pip install 'babysit[trainers]'`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from babysit.wire import Tier
from tests.launch import Job, Rank

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("accelerate", exc_type=ImportError)

HERE = Path(__file__).parent
SKIPPED = ((25, 26),)
"""Batches of step 13 of both scripts; each step has two."""

pytestmark = pytest.mark.timeout(1500)


class Story:
    """Attempts of one script, in a directory of their own."""

    def __init__(self, root: Path, script: str, *words: str) -> None:
        root.mkdir()
        self._job = Job(root, command=(str(HERE / script), *words))
        self.root = root

    def attempt(
        self, fault: dict[str, str] | None = None, step: int = 0, **changes: object
    ) -> list[Rank]:
        """One attempt, from the copy in memory that the last one made after `step`."""
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **(fault or {})}
        found = [(Tier.MEMORY, step, self._job.attempts)] if step else []
        return self._job.attempt(found, quiet, **changes)


def _go_through(story: Story, straight: list[Rank], kill: str, stop: str) -> None:
    """Killed in step 8, asked to leave in step 11, then to its end without two batches."""
    killed = story.attempt({"KILL": kill})
    assert any(rank.code for rank in killed)
    left = story.attempt({"STOP": stop}, step=7)
    assert [rank.code for rank in left] == [0, 0], left[0].output
    assert not list(story.root.glob("tail-*")), "the rest of the script does not run"
    for rank, before, after in zip(straight, killed, left, strict=True):
        assert after.note("restored")["step"] == 7
        assert after.note("left")["step"] == 11
        joined = {s: v for s, v in before.losses().items() if s <= 7} | after.losses()
        assert joined == {s: v for s, v in rank.losses().items() if s <= 11}, "bit for bit"
        assert [(r.step, r.batch) for r in after.records] == [(s, 2 * s) for s in range(8, 12)]
    last = story.attempt(step=11, skip_batches=SKIPPED)
    for rank in last:
        assert rank.code == 0, rank.output
        batches = [record.batch for record in rank.records]
        assert batches[:3] == [24, 28, 30], "25 and 26 are passed over"
        assert rank.note("restored")["step"] == 11
    assert len(list(story.root.glob("tail-*"))) == 2


@pytest.mark.parametrize("words", [(), ("trl",)])
def test_a_trainer_goes_on_bit_for_bit(tmp_path: Path, words: tuple[str, ...]) -> None:
    if "trl" in words:
        pytest.importorskip("trl", exc_type=ImportError)
    straight = Story(tmp_path / "straight", "trainer_job.py", *words).attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    for rank in straight:
        steps = [(r.step, r.batch) for r in rank.records]
        assert steps == [(s, 2 * s) for s in range(1, 17)], "each step, whatever logging_steps says"
        saved = [n["step"] for n in rank.notes if n["kind"] == "shard"]
        assert saved == [4, 8, 12, 16], "as the spec says, not save_steps"
    assert not list((tmp_path / "straight" / "out").glob("checkpoint-*")), "its own are its own"
    story = Story(tmp_path / "hurt", "trainer_job.py", *words)
    _go_through(story, straight, kill="1:7", stop="0:11")


def test_a_loop_of_accelerates_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight = Story(tmp_path / "straight", "accelerate_job.py").attempt()
    assert [rank.code for rank in straight] == [0, 0], straight[0].output
    assert [r.step for r in straight[0].records] == list(range(1, 16))
    # With `babysit.auto()`, the adapter is the same, and no line names it.
    story = Story(tmp_path / "hurt", "accelerate_job.py", "auto")
    _go_through(story, straight, kill="1:1:5", stop="0:2:1")


def test_auto_gives_a_trainer_its_adapter(tmp_path: Path) -> None:
    story = Story(tmp_path / "auto", "trainer_job.py", "auto")
    left = story.attempt({"STOP": "1:2"})
    for rank in left:
        assert rank.code == 0, rank.output
        assert [(r.step, r.batch) for r in rank.records] == [(1, 2), (2, 4)]
        assert rank.note("left")["step"] == 2
