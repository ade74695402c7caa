"""What must hold of a run's record, whatever happened to it."""

from __future__ import annotations

from itertools import pairwise

from jobs.events import RankSamples
from tests.acceptance.conftest import Job
from tests.acceptance.job import Weights
from tests.control_plane import ControlPlane

Steps = list[tuple[int, int, float]]


def check_record(plane: ControlPlane, run: str, job: Job, *, agents_died: bool = False) -> None:
    """No attempt overlapped another; no sample is lost, doubled or made up.

    That the journal is whole, and replays, is checked at the end of every test. With `agents_died`,
    an attempt's last samples may be missing: those that an agent took with it.
    """
    check_attempts(plane, run, job)
    check_samples(plane.samples(run), job.steps(), agents_died=agents_died)


def check_attempts(plane: ControlPlane, run: str, job: Job) -> None:
    """One attempt after the other: as recorded, and as the ranks themselves saw it."""
    attempts = plane.attempts(run)
    assert [attempt.number for attempt in attempts] == list(range(1, len(attempts) + 1))
    for before, after in pairwise(attempts):
        assert before.ended_at is not None
        assert before.ended_at <= after.started_at
    assert job.events("overlap") == []
    starts = {(line["attempt"], line["rank"]) for line in job.events("start")}
    assert len(starts) == len(job.events("start")), "a rank of an attempt was started twice"
    assert {attempt for attempt, _ in starts} <= {attempt.number for attempt in attempts}


def check_memory_tier(plane: ControlPlane, run: str) -> None:
    """The newest attempt went on from node memory. How many steps before the failure, the load of
    the machine decides: a save is put off while the one before it is under way."""
    assert "/memory/" in (plane.attempts(run)[-1].restored or "")


def check_samples(
    stored: dict[tuple[int, int], RankSamples],
    seen: dict[tuple[int, int], Steps],
    *,
    agents_died: bool,
) -> None:
    """Each attempt's samples are those its ranks wrote down, each once; none of the lowest rank,
    which speaks for the run, is missing."""
    assert stored.keys() <= seen.keys()
    expected = losses(max(batch for steps in seen.values() for _, batch, _ in steps))
    for key, steps in seen.items():
        numbers = [step for step, _, _ in steps]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), key
        assert [loss for _, _, loss in steps] == [expected[batch - 1] for _, batch, _ in steps], key
        samples = stored.get(key, RankSamples(rank=key[1]))
        kept = list(zip(samples.step, samples.batch, samples.loss, strict=True))
        if key[1] > min(rank for attempt, rank in seen if attempt == key[0]):
            assert sorted(set(kept) & set(steps)) == kept, f"{key}: not what the rank saw"
            continue
        # A rank writes a step down just before it reports it: killed in between, it has one more.
        assert kept == steps[: len(kept)], f"{key}: not what the rank saw"
        missing = len(steps) - len(kept)
        assert missing <= 1 or agents_died, f"{key}: {missing} of {len(steps)} samples are missing"


def losses(batches: int) -> list[float]:
    """The losses of a run left alone."""
    weights = Weights()
    return [weights.train(batch) for batch in range(1, batches + 1)]
