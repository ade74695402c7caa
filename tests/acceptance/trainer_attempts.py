"""Attempts of a trainer's script that is killed, asked to leave, and has batches skipped."""

from __future__ import annotations

from pathlib import Path

from babysit.wire import Tier
from tests.launch import Job, Rank

HERE = Path(__file__).parent


class Attempts:
    """Attempts of one script, in a directory of their own."""

    def __init__(self, root: Path, script: str, *words: str) -> None:
        root.mkdir()
        self._job = Job(root, command=(str(HERE / script), *words))
        self.root = root

    def attempt(
        self, fault: dict[str, str] | None = None, step: int = 0, **changes: object
    ) -> list[Rank]:
        """One attempt, from the copy in memory that the last one made after `step`."""
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
        found = [(Tier.MEMORY, step, self._job.attempts)] if step else []
        return self._job.attempt(found, quiet | (fault or {}), **changes)


def go_through(
    story: Attempts, straight: list[Rank], kill: str, stop: str, accumulate: int = 2
) -> None:
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
        assert [(r.step, r.batch) for r in after.records] == [
            (s, accumulate * s) for s in range(8, 12)
        ]
    skipped = (12 * accumulate + 1, 13 * accumulate)
    last = story.attempt(step=11, skip_batches=(skipped,))
    for rank in last:
        assert rank.code == 0, rank.output
        batches = [record.batch for record in rank.records]
        assert batches[:3] == [accumulate * s for s in (12, 14, 15)], "those of 13 are passed over"
        assert rank.note("restored")["step"] == 11
    assert len(list(story.root.glob("tail-*"))) == 2
