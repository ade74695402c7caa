"""Signs of life: what the trainer's side publishes, and which process may."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import babysit
from babysit.ring import RingReader, RingWriter
from babysit.step_count import StepCount
from babysit.wire import ENV_RANK_DIR, NOTES_FILE, PLAN_FILE, RING_FILE, Phase, Plan
from jobs.agent.rank_reader import RankReader
from tests.unit.test_babysit_wire import record

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
ROOT = Path(babysit.__file__).parent.parent


def prepare(directory: Path, world_size: int = 1) -> Path:
    directory.mkdir(exist_ok=True)
    plan = Plan(run="r", attempt=1, rank=0, world_size=world_size)
    (directory / PLAN_FILE).write_text(plan.to_json())
    return directory


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_RANK_DIR, str(prepare(tmp_path)))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def notes(agent: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (agent / NOTES_FILE).read_text().splitlines()]


def run_script(agent: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the process of a rank."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), ENV_RANK_DIR: str(agent), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_drawing_a_batch_is_progress_without_any_report(agent: Path) -> None:
    run = babysit.init()
    reader = RingReader(agent / RING_FILE)
    seen: list[tuple[int, int, Phase]] = []

    def loader() -> Iterator[str]:
        for batch in "abc":
            now = reader.progress()
            seen.append((now.step, now.batch, now.phase))
            yield batch

    for step, _ in run.steps(loader()):
        now = reader.progress()
        assert (now.step, now.batch, now.phase) == (step - 1, step, Phase.TRAINING)
    # While a batch is drawn, the step before it has ended.
    assert seen == [(0, 0, Phase.LOADING), (1, 1, Phase.LOADING), (2, 2, Phase.LOADING)]
    assert reader.progress()[1:3] == (3, 3)


def test_passing_over_what_was_consumed_is_a_sign_of_life(agent: Path) -> None:
    """A stream is resumed by drawing a million batches: silence there would be called a hang."""
    from babysit.data import Feed, Position

    beats: list[int] = []
    drawn: list[int] = []

    def stream() -> Iterator[int]:
        for i in range(10):
            drawn.append(i)
            yield i

    feed = Feed(
        stream(), position=Position(offset=6, batch=6), beat=lambda: beats.append(len(drawn))
    )
    assert list(feed.batches(1)) == [6, 7, 8, 9]
    assert beats == [1, 2, 3, 4, 5, 6]


def test_a_loader_that_is_its_own_iterator_is_not_begun_again() -> None:
    """DeepSpeed's loader resets in `__iter__` and returns itself."""
    from babysit.data import Feed, Position

    class Own:
        def __iter__(self) -> Own:
            self.at = 0
            return self

        def __next__(self) -> int:
            if self.at == 10:
                raise StopIteration
            self.at += 1
            return self.at - 1

    assert list(Feed(Own(), position=Position(offset=4, batch=4)).batches(1)) == [4, 5, 6, 7, 8, 9]
    kept = list(Feed(Own(), skip=[(3, 4)], position=Position(offset=1, batch=1)).batches(1))
    assert kept == [1, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, 2.0),
        (numpy.float32(0.5), 0.5),
        (numpy.array(0.25), 0.25),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor([3.0]), 3.0),
        ("4.5", 4.5),
        (None, None),  # a stage of a pipeline without a loss
        (torch.ones(2), None),  # not a number: left out, warned of
        (object(), None),
        (10**400, None),  # too large for a float
    ],
)
def test_any_loss_is_a_sign_of_life(agent: Path, given: object, expected: float | None) -> None:
    run = babysit.init()
    run.report(step=7, loss=given)
    (taken,), _ = RingReader(agent / RING_FILE).drain()
    assert (taken.step, taken.loss) == (7, expected)


def test_a_loss_that_is_nan_stays_nan(agent: Path) -> None:
    babysit.init().report(loss=torch.tensor(math.nan))
    (taken,), _ = RingReader(agent / RING_FILE).drain()
    assert taken.loss is not None
    assert math.isnan(taken.loss)


@pytest.mark.parametrize("step", [numpy.int64(7), torch.tensor(7), 7.0, "7"])
def test_a_step_of_any_type_is_a_step(agent: Path, step: object) -> None:
    run = babysit.init()
    run.report(step=step, loss=1.0)
    assert type(run.step) is int
    assert run.step == 7


@pytest.mark.parametrize("step", [7.5, -1, None, "seven", math.nan, 2**70, object()])
def test_a_step_that_is_none_keeps_the_one_before(agent: Path, step: object) -> None:
    run = babysit.init()
    run.report(step=3, loss=1.0)
    run.report(step=step, loss=2.0)
    assert run.step == 3


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        # two epochs counted from 1, from 0, and reported every tenth step
        ([1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 6]),
        ([10, 20, 30, 10, 20], [10, 20, 30, 40, 50]),
        # two reports of one step are one step
        ([1, 1, 2, 2], [1, 1, 2, 2]),
        # put back by the script itself: it goes on from the next step
        ([1, 100, 40, 41], [1, 100, 101, 102]),
    ],
)
def test_a_counter_that_goes_back_is_counted_on(
    agent: Path, given: list[int], counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    run = babysit.init()
    for step in given:
        run.report(step=step, loss=1.0)
    records, _ = RingReader(agent / RING_FILE).drain()
    assert [r.step for r in records] == counted
    went_back = any(b < a for a, b in itertools.pairwise(given))
    assert ("the step went back" in caplog.text) is went_back


def test_a_look_never_goes_back(tmp_path: Path) -> None:
    """A reader that sees an old count must not hand records out twice."""
    writer = RingWriter(tmp_path / "ring")
    reader = RingReader(tmp_path / "ring")
    for step in range(3):
        writer.write(record(step))
    assert len(reader.drain()[0]) == 3
    writer._counts[2] = 0
    assert reader.drain() == ([], 0)
    writer._counts[2] = 3
    writer.write(record(3))
    assert [r.step for r in reader.drain()[0]] == [3]


def test_a_second_init_of_the_process_is_the_same_rank(agent: Path) -> None:
    babysit.init().report(step=1, loss=1.0)
    babysit.init().report(step=2, loss=1.0)
    records, lost = RingReader(agent / RING_FILE).drain()
    assert ([r.step for r in records], lost) == ([1, 2], 0)


def test_a_child_of_the_rank_stands_alone(agent: Path) -> None:
    """An evaluation script, a spawned worker: it inherits the directory, and is not the rank."""
    run = babysit.init()
    run.report(step=1, loss=1.0)
    child = run_script(
        agent,
        "import babysit, sys; run = babysit.init(); run.report(step=99, loss=1.0)\n"
        "print(run.plan.run or 'alone')",
    )
    assert child.stdout.strip() == "alone", child.stderr
    assert "stands alone" in child.stderr
    if (forked := os.fork()) == 0:
        run.report(step=98, loss=1.0)
        os._exit(0)
    os.waitpid(forked, 0)
    reader = RingReader(agent / RING_FILE)
    assert [r.step for r in reader.drain()[0]] == [1]
    assert reader.progress().pid == os.getpid()
    assert [note["kind"] for note in notes(agent)].count("started") == 1


def test_a_second_process_beside_the_rank_is_refused_by_name(tmp_path: Path) -> None:
    """Workers of `mp.spawn`: the first is the rank, the others would share its shard."""
    agent = prepare(tmp_path)
    code = (
        "import multiprocessing, os, babysit\n"
        "def work(gate, said):\n"
        "    try: babysit.init()\n"
        "    except babysit.errors.PlanError as error: said.put(str(error))\n"
        "    else: said.put('taken')\n"
        "    gate.wait()\n"
        "if __name__ == '__main__':\n"
        "    import babysit.errors\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    gate, said = context.Barrier(2), context.Queue()\n"
        "    both = [context.Process(target=work, args=(gate, said)) for _ in range(2)]\n"
        "    [p.start() for p in both]; [p.join() for p in both]\n"
        "    print(*sorted((said.get(), said.get()), key=len), sep='\\n')\n"
    )
    done = run_script(agent, code)
    first, second = done.stdout.strip().splitlines()
    assert first == "taken", done.stderr
    assert "is rank 0 of this run already" in second
    assert "processes_per_node" in second


def test_a_process_after_the_rank_takes_its_place(agent: Path) -> None:
    """`until python train.py; do :; done`: each is the rank, and no record of the first is lost."""
    for step in (1, 2):
        done = run_script(agent, f"import babysit; babysit.init().report(step={step}, loss=1.0)")
        assert done.returncode == 0, done.stderr
    assert [r.step for r in RingReader(agent / RING_FILE).drain()[0]] == [1, 2]


def test_ranks_of_a_launcher_inside_a_rank_are_refused(agent: Path) -> None:
    done = run_script(
        agent,
        "import babysit; babysit.init()",
        RANK="1",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="none",
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "torchrun started rank 1 of 2 inside rank 0 of 1" in said
    assert "processes_per_node: 2" in said
    assert not (agent / RING_FILE).exists()


def test_the_environment_the_agent_sets_is_no_launcher(
    agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert babysit.init().plan.run == "r"


@pytest.mark.parametrize(
    ("code", "kinds", "error", "status"),
    [
        ("pass", ["started", "exiting"], "", 0),
        ("for _ in run.steps('ab'): pass", ["started", "looping", "finished", "exiting"], "", 0),
        ("for _ in run.steps('ab'): break", ["started", "looping", "left", "exiting"], "", 0),
        ("run.finish()", ["started", "finished", "exiting"], "", 0),
        ("for _ in run.steps('ab'): raise ValueError('x')", None, "ValueError", 0),
        ("import sys; sys.exit(3)", ["started", "exiting"], "", 3),
        ("import sys; sys.exit('no data')", ["started", "exiting"], "", 1),
        ("import os; os._exit(0)", ["started"], None, None),
    ],
)
def test_the_rank_tells_its_own_end(
    tmp_path: Path, code: str, kinds: list[str] | None, error: str | None, status: int | None
) -> None:
    agent = prepare(tmp_path)
    run_script(agent, f"import babysit; run = babysit.init()\n{code}")
    said = notes(agent)
    if kinds is not None:
        assert [note["kind"] for note in said] == kinds
    if error is not None:
        assert (said[-1]["kind"], said[-1]["error"], said[-1]["code"]) == ("exiting", error, status)


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(4)", 4),
        ("exit(4)", 4),
        ("leave(4)", 4),
        ("sys.exit(-1)", 255),
        ("1 / 0", 1),
        ("pass", 0),
        ("threading.Thread(target=sys.exit, args=(4,)).start()", 0),
        ("with contextlib.suppress(SystemExit): sys.exit(4)", 0),
        ("os.fork() or exit(9)\nos.wait()", 0),
        ("os._exit(4)", None),
        ("os.kill(os.getpid(), 9)", None),
    ],
)
def test_the_exit_code_is_recorded_whichever_way_the_script_ends(
    agent: Path, ending: str, code: int | None
) -> None:
    """Its command may be a shell that hides the code."""
    script = "import babysit, contextlib, os, sys, threading\nfrom sys import exit as leave\n"
    run_script(agent, f"{script}run = babysit.init()\n{ending}\n")
    assert RankReader(0, agent, started=0.0).exit_code == code


HIDES = "try:\n    [][3]\nfinally:\n    "
ENDS = {
    "in finally": (HIDES + "sys.exit(0)", "IndexError"),
    "in a function that finally calls": (
        "def clean_up():\n    sys.exit()\n" + HIDES + "clean_up()",
        "IndexError",
    ),
    "in a finally around a handler": (
        "try:\n try:\n  [][3]\n except KeyError:\n  pass\nfinally:\n sys.exit(0)",
        "IndexError",
    ),
    "in a handler": ("try:\n    [][3]\nexcept IndexError:\n    sys.exit(0)", ""),
    "in a finally below except*": (
        "try:\n [][3]\nexcept* KeyError:\n pass\nfinally:\n sys.exit(0)",
        "IndexError",
    ),
    "in a handler within finally": (
        "try:\n pass\nfinally:\n try:\n  [][3]\n except IndexError:\n  sys.exit(0)",
        "",
    ),
    "with nothing in flight": ("try:\n    pass\nfinally:\n    sys.exit(0)", ""),
    "after a request to leave": (
        "try:\n    raise KeyboardInterrupt\nfinally:\n    sys.exit(0)",
        "",
    ),
}


@pytest.mark.parametrize(("ending", "error"), ENDS.values(), ids=ENDS.keys())
def test_an_exit_in_finally_does_not_hide_an_exception(
    agent: Path, tmp_path: Path, ending: str, error: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import babysit, sys\nrun = babysit.init()\n{ending}\n")
    run_script(agent, f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')")
    said = notes(agent)[-1]
    assert (said["error"], said["code"]) == (error, 0)
    assert ("list index out of range" in said["trace"]) is bool(error)


def test_an_exception_is_told_before_threads_that_keep_the_process_have_ended(agent: Path) -> None:
    ending = "threading.Thread(target=lambda: (time.sleep(0.2), os._exit(0))).start()\n1 / 0"
    run_script(agent, f"import babysit, os, threading, time\nrun = babysit.init()\n{ending}")
    said = notes(agent)[-1]
    assert (said["kind"], said["error"]) == ("raised", "ZeroDivisionError")
    assert said["trace"].endswith("ZeroDivisionError: division by zero\n")


def test_the_rank_tells_which_signals_it_handles(agent: Path) -> None:
    """`sys.exit(143)` may be the end that a handler of SIGTERM makes."""
    handle = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"
    run_script(agent, f"import babysit, signal, sys\nrun = babysit.init()\n{handle}\nsys.exit(143)")
    assert notes(agent)[-1]["handled"] == [15]


def test_a_loop_that_is_left_and_one_that_begins_are_told_apart_from_one_that_ends(
    agent: Path,
) -> None:
    run = babysit.init()
    for step, _ in run.steps(range(9)):
        if step == 3:
            break
    for _ in run.steps(range(2)):
        pass
    kinds = [note["kind"] for note in notes(agent)]
    assert kinds == ["started", "looping", "left", "looping", "finished"]


def test_the_time_after_a_loop_that_was_left_is_no_training(agent: Path) -> None:
    """An export may follow a `break`; another loop is training again."""
    run = babysit.init()
    phases = []
    for _ in run.steps(range(9)):
        break
    phases.append(run._phase)
    phases.extend(run._phase for _ in run.steps(range(2)))
    assert phases == [Phase.FINISHED, Phase.TRAINING, Phase.TRAINING]


def counted(count: StepCount, numbers: list[int], ended: int) -> int:
    """The last step of the run after a script has counted."""
    for number in numbers:
        ended, _ = count.counted(number, ended)
    return ended


@pytest.mark.parametrize(
    ("then", "step"),
    [
        ([6, 7], 47),  # the epoch goes on where the checkpoint was
        ([1, 2], 47),  # the script begins the epoch again
        ([46, 47], 47),  # the script goes on from what `restore` returned
    ],
)
def test_a_counter_of_the_epoch_is_counted_on_after_a_restore(then: list[int], step: int) -> None:
    before = StepCount()
    epochs = [*range(1, 21), *range(1, 21), *range(1, 6)]
    assert counted(before, epochs, 0) == 45
    after = StepCount()
    after.resume(before.state)
    assert counted(after, then, 45) == step
