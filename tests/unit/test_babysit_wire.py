"""What a rank and its agent share: the ring, the plan, the notes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import babysit
from babysit.errors import PlanError
from babysit.ring import Record, RingReader, RingWriter
from babysit.wire import (
    ENV_RANK_DIR,
    NOTES_FILE,
    PLAN_FILE,
    RING_FILE,
    Candidate,
    Phase,
    Plan,
    SavePolicy,
    Tier,
)


def record(step: int) -> Record:
    return Record(step, step + 100, 1.5 * step, 2.0, -1.0, 10.0, 0.1, 0.0, 1e-3)


def test_the_reader_gets_what_was_written_once(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    for step in (1, 2):
        writer.write(record(step))
    assert reader.drain() == ([record(1), record(2)], 0)
    assert reader.drain() == ([], 0)
    writer.write(record(3))
    assert reader.drain() == ([record(3)], 0)


def test_what_was_overwritten_is_counted(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring", capacity=8)
    reader = RingReader(tmp_path / "ring")
    for step in range(1, 21):
        writer.write(record(step))
    records, lost = reader.drain()
    # One slot of the eight may be in the making, so seven can be trusted.
    assert [r.step for r in records] == list(range(14, 21))
    assert lost == 13


def test_a_limited_drain_goes_on_where_it_stopped(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    for step in range(1, 6):
        writer.write(record(step))
    assert [r.step for r in reader.drain(limit=3)[0]] == [1, 2, 3]
    assert [r.step for r in reader.drain(limit=3)[0]] == [4, 5]


def test_progress_and_the_control_word(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    writer.progress(7, 9, 123.5, Phase.EVALUATING)
    assert reader.progress()[1:] == (7, 9, 123.5, Phase.EVALUATING, ())
    assert not writer.stop_requested
    reader.request_stop()
    assert writer.stop_requested


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"x" * 4096, "not a ring of this version"), (bytes(4096), "no header yet")],
)
def test_another_file_is_no_ring(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "ring").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        RingReader(tmp_path / "ring")


def test_the_plan_survives_its_json() -> None:
    plan = Plan(
        run="r",
        attempt=3,
        rank=1,
        world_size=2,
        restore=(Candidate("c", 20, Tier.MEMORY, "/x", 2, 1),),
        skip_batches=((3, 5), (9, 9)),
        save=SavePolicy("/d", 20, "/m", 1),
    )
    assert Plan.from_json(plan.to_json()) == plan


def test_importing_loads_the_standard_library_only() -> None:
    code = (
        "import sys, babysit\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops - set(sys.stdlib_module_names) - {'babysit', '__main__'}))"
    )
    # -S: no site-packages, whose .pth files may import things of their own.
    root = Path(babysit.__file__).parent.parent
    printed = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=root, text=True)
    assert printed.strip() == "[]"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rank directory an agent has prepared."""
    plan = Plan(run="r", attempt=1, rank=0, world_size=1)
    (tmp_path / PLAN_FILE).write_text(plan.to_json())
    monkeypatch.setenv(ENV_RANK_DIR, str(tmp_path))
    return tmp_path


def test_a_step_is_reported_with_what_is_known_of_it(agent: Path) -> None:
    run = babysit.init()
    reader = RingReader(agent / RING_FILE)
    for step, _ in run.steps(["a", "b"]):
        run.report(loss=step / 2, grad_norm=0.5, tokens=64, learning_rate=1e-3)
    (first, second), lost = reader.drain()
    assert lost == 0
    assert (first.step, first.batch, first.loss, first.grad_norm) == (1, 1, 0.5, 0.5)
    assert (second.step, second.batch, second.tokens, second.learning_rate) == (2, 2, 64, 1e-3)
    assert reader.progress().phase is Phase.FINISHED
    kinds = [json.loads(line)["kind"] for line in (agent / NOTES_FILE).read_text().splitlines()]
    assert kinds == ["started", "looping", "finished"]


def test_steps_may_be_numbered_by_the_script(agent: Path) -> None:
    run = babysit.init()
    run.report(step=41, loss=1)
    run.report(step=42, loss=float("nan"))
    records, _ = RingReader(agent / RING_FILE).drain()
    assert [r.step for r in records] == [41, 42]
    assert math.isnan(records[1].loss)
    assert (records[0].grad_norm, records[0].learning_rate) == (-1.0, -1.0)


def test_a_report_that_makes_no_sense_does_not_raise(
    agent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = babysit.init()
    for _ in range(2):
        run.report(step=1, loss="not a number")
    records, _ = RingReader(agent / RING_FILE).drain()
    assert [(r.step, r.loss) for r in records] == [
        (1, None),
        (1, None),
    ]  # signs of life all the same
    assert len(caplog.records) == 1  # said once


def test_phases_nest_and_come_back(agent: Path) -> None:
    run = babysit.init()
    reader = RingReader(agent / RING_FILE)
    with run.phase("evaluate"):
        assert reader.progress().phase is Phase.EVALUATING
        with run.phase("nonsense"):
            assert reader.progress().phase is Phase.EVALUATING
    assert reader.progress().phase is Phase.TRAINING


def test_the_agent_can_ask_to_stop(agent: Path) -> None:
    run = babysit.init()
    assert not run.should_stop
    RingReader(agent / RING_FILE).request_stop()
    assert run.should_stop


def test_notes_on_a_dead_disk_do_not_raise(agent: Path, caplog: pytest.LogCaptureFixture) -> None:
    (agent / NOTES_FILE).unlink(missing_ok=True)
    (agent / NOTES_FILE).mkdir()
    run = babysit.init()
    assert run.restore({}) == 0
    assert "cannot write the note" in caplog.text


def test_a_broken_plan_is_a_clear_error(agent: Path) -> None:
    (agent / PLAN_FILE).write_text("{")
    with pytest.raises(PlanError, match=r"plan\.json.*unset BABYSIT_RANK_DIR"):
        babysit.init()


def test_alone_everything_works_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENV_RANK_DIR, raising=False)
    monkeypatch.chdir(tmp_path)
    run = babysit.init()
    state = {"weight": 1.0}
    assert run.restore(state) == 0
    for _step, _batch in run.steps([1, 2, 3]):
        run.report(loss=1.0)
        run.checkpoint(state)
    assert run.step == 3
    assert not run.should_stop
    assert list(tmp_path.iterdir()) == []
