"""Where the time of a step goes: measured by the rank, published in its ring, sent in its beats."""

from __future__ import annotations

import pytest

import babysit
from babysit.ring import RingReader, RingWriter
from babysit.step_times import PARTS, StepTimes
from babysit.wire import ENV_RANK_DIR, PLAN_FILE, RING_FILE, Part, Phase, Plan
from jobs.agent.rank_reader import RankReader
from jobs.events import RankBeat


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def run(tmp_path, monkeypatch, clock):
    (tmp_path / PLAN_FILE).write_text(Plan(run="r", attempt=1, rank=0, world_size=2).to_json())
    monkeypatch.setenv(ENV_RANK_DIR, str(tmp_path))
    run = babysit.init()
    run._times = StepTimes(clock)
    return run


def parts_in(directory):
    progress = RingReader(directory / RING_FILE).progress()
    return progress, {part: s for part, s in zip(PARTS, progress.parts, strict=False) if s}


def test_each_part_gets_its_seconds(run, clock, tmp_path):
    def loader():
        for number in range(2):
            clock.now += 10.0
            yield number

    for step, _ in run.steps(loader()):
        with run.phase("forward"):
            clock.now += 1.0
        with run.phase("backward"):
            clock.now += 2.0
            with run.phase("communicate"):
                clock.now += 0.5
            clock.now += 2.0
        run.phase("optimizer")
        clock.now += 3.0
        if step == 2:
            with run.phase("evaluate"):
                clock.now += 100.0
                assert parts_in(tmp_path)[0].phase is Phase.EVALUATING
        run.phase("train")
        clock.now += 0.25
    progress, parts = parts_in(tmp_path)
    assert progress.step == 2
    assert parts == {
        Part.OTHER: 0.5,
        Part.DATA: 20.0,
        Part.FORWARD: 2.0,
        Part.BACKWARD: 8.0,
        Part.OPTIMIZER: 6.0,
        Part.WAIT: 1.0,
        Part.PAUSED: 100.0,
    }


def test_parts_of_a_step_change_no_phase_of_the_rank(run, tmp_path):
    for _ in run.steps([0]):
        with run.phase("optimizer"):
            run.report(loss=1.0)
            assert parts_in(tmp_path)[0].phase is Phase.TRAINING


def test_a_script_without_steps_publishes_with_its_reports(run, clock, tmp_path):
    run.phase("train")
    for step in (1, 2):
        clock.now += 1.0
        with run.phase("communicate"):
            clock.now += 4.0
        run.report(loss=1.0, step=step)
    assert parts_in(tmp_path)[1] == {Part.OTHER: 2.0, Part.WAIT: 8.0}


def test_the_agent_sends_the_parts_and_a_ring_of_an_older_babysit_has_none(run, clock, tmp_path):
    for _ in run.steps([0]):
        clock.now += 1.0
    beat = RankReader(0, tmp_path, 0.0).beat(alive=True)
    assert dict(zip(PARTS, beat.parts, strict=True))[Part.OTHER] == 1.0
    older = tmp_path / "older"
    older.mkdir()
    RingWriter(older / RING_FILE).progress(3, 3, 1.0, Phase.TRAINING)  # which writes no parts
    beat = RankReader(0, older, 0.0).beat(alive=True)
    assert (beat.step, beat.parts) == (3, ())
    assert RankBeat.model_validate(beat.model_dump(exclude={"parts"})).parts == ()


def test_an_unknown_phase_is_logged_with_the_known_ones(run, caplog):
    with run.phase("fetch"):
        pass
    assert "unknown phase 'fetch'" in caplog.text
    assert "optimizer" in caplog.text
