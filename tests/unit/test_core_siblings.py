"""Lessons of one run for others of its program: errors that ended it, batches that it skips."""

from __future__ import annotations

import re

import pytest

from jobs.spec import RunSpec
from monitors.failures import Failure, FailureClass
from orchestrator.core.messages.events import RollbackAsked
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.states import RunState
from orchestrator.core.policy.siblings import program_of
from tests.world import World, reloaded, spec, trained

BUG = Failure(
    failure_class=FailureClass.USER_CODE,
    reason="ValueError: bad shape",
    signature="user_code:train.py forward:ValueError: bad shape",
)


def fail(world: World, run: str, failure: Failure = BUG) -> None:
    world.die(failure=failure, run=run)
    world.settle()


def start(world: World, number: int, **fields: object) -> str:
    run = world.submit(spec(f"sweep-{number}", **fields), run=f"run-{number}")
    world.trained_to(3, run)
    return run


def after(deaths: int, failure: Failure = BUG) -> World:
    """A cluster on which a number of runs of the program have failed by an error."""
    world = World()
    for number in range(1, deaths + 1):
        run = start(world, number)
        for _ in range(2):
            fail(world, run, failure)
        assert world.run(run).state is RunState.FAILED
    world.state = reloaded(world.state)
    return world


def test_an_error_that_ended_earlier_runs_is_named_and_confirmed_all_the_same() -> None:
    world = after(2)
    run = start(world, 3)
    fail(world, run)
    assert world.attempt(run).number == 2
    (incident,) = world.state.incidents_of(run)
    assert incident.reason == (
        "ValueError: bad shape; tried once more, to confirm that the code is the cause;"
        " it has ended 2 earlier runs of this program (sweep-2, sweep-1) before"
    )
    assert world.attempt(run).restart.reason == incident.reason  # type: ignore[union-attr]


def test_the_spec_may_stop_a_run_at_an_error_that_ended_enough_others() -> None:
    world = after(2)
    careful = start(world, 3, recovery={"stop_known": 3})
    fail(world, careful)
    assert world.run(careful).state is not RunState.FAILED, "two are fewer than three"
    fail(world, careful)
    run = start(world, 4, recovery={"stop_known": 3})
    assert world.run(run).state is not RunState.FAILED, "it has not met the error itself"
    fail(world, run)
    assert (world.run(run).state, world.run(run).attempt) == (RunState.FAILED, 1)
    assert world.run(run).reason == (
        "ValueError: bad shape; it has ended 3 earlier runs of this program"
        " (sweep-3, sweep-2, sweep-1) before, so it is not confirmed here"
        " (recovery.stop_known is 3)"
    )


@pytest.mark.parametrize(
    ("failure", "fields"),
    [
        (BUG.model_copy(update={"signature": "user_code:train.py loss:KeyError"}), {}),
        (BUG, {"command": ["python", "evaluate.py"]}),
        (BUG, {"project": "other"}),
    ],
    ids=["another error", "another program", "another project"],
)
def test_other_errors_programs_and_projects_teach_nothing(
    failure: Failure, fields: dict[str, object]
) -> None:
    world = after(1)
    run = start(world, 2, recovery={"stop_known": 1}, **fields)
    fail(world, run, failure)
    assert world.attempt(run).number == 2
    assert "earlier run" not in world.attempt(run).restart.reason  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [FailureClass.UNKNOWN, FailureClass.NETWORK, FailureClass.SIGNAL])
def test_an_end_that_says_no_cause_is_never_known(kind: FailureClass) -> None:
    """An exit code alone, or a fault of a machine, does not make two runs alike."""
    end = Failure(failure_class=kind, reason="exit 1", signature=f"{kind.value}:exit 1", code=1)
    world = World()
    first = start(world, 1, recovery={"infrastructure": 1})
    for _ in range(2):
        fail(world, first, end)
        world.advance(61)
        world.settle()
    run = start(world, 2, recovery={"stop_known": 1})
    fail(world, run, end)
    world.advance(61)
    world.settle()
    assert world.attempt(run).number == 2


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["python", "-u", "src/train.py", "--config", "other.py"], "train.py"),
        (["torchrun", "--nproc-per-node", "8", "-m", "pkg.train", "x"], "pkg.train"),
        (["/opt/bin/trainer", "--lr", "1"], "trainer"),
        (["python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "t.py"], "t.py"),
        (["nice", "-n", "5", "./sim"], "sim"),
        (["bash", "-c", "python train.py --lr 1"], "train.py"),
        (["bash", "runs/one.sh"], "one.sh"),
        (["python", "-c", "import a"], "python -c 'import a'"),
    ],
)
def test_the_program_of_a_command(command: list[str], program: str) -> None:
    assert program_of(RunSpec.model_validate({"name": "x", "command": command})) == program


SKIPS = {"monitors": {"loss_spike": {"skip_batches": 8}}}


def quarantine(world: World) -> None:
    """Run 1 finds that batches 41 to 48 are bad."""
    world.find(onset=41)
    world.trained_to(43)
    world.find(onset=41)
    world.settle()
    assert world.run().skip_batches == ((41, 48),)


def offers(world: World, run: str) -> list[str]:
    notices = [each for each in world.carried if isinstance(each, Notify) and each.run == run]
    return [each.text for each in notices if each.incident_kind == "skip_offered"]


def carry_out(world: World, run: str) -> None:
    """Do what the only offer to a run says, as a person would."""
    (text,) = offers(world, run)
    found = re.search(r"`babysit rollback (\S+)(?: --to (\d+))? --skip (\d+):(\d+)`", text)
    assert found is not None, text
    assert found[1] == world.run(run).name
    fields = {"skip": (int(found[3]), int(found[4]))}
    to = {"to_step": int(found[2])} if found[2] else {}
    world.do(world.event(RollbackAsked, run=run, actor="operator:ada", **fields, **to))
    world.settle()


def test_bad_batches_are_offered_to_live_siblings_that_have_not_passed_them() -> None:
    world = trained(45, **SKIPS)
    sibling = world.submit(spec("sibling", nodes=1), run="run-2")
    world.trained_to(35, sibling)
    other = world.submit(spec("other", nodes=1, command=["python", "eval.py"]), run="run-3")
    world.settle()
    quarantine(world)
    assert world.run(sibling).skip_batches == (), "nothing is applied by itself"
    assert world.attempt(sibling).number == 1
    assert offers(world, other) == []
    carry_out(world, sibling)
    assert world.run(sibling).skip_batches == ((41, 48),)
    assert world.attempt(sibling).number == 2
    assert offers(world, "run-1") == [], "it skips them already"


def test_a_sibling_that_is_beyond_the_batches_hears_nothing() -> None:
    world = trained(45, **SKIPS)
    sibling = world.submit(spec("sibling", nodes=1), run="run-2")
    world.trained_to(60, sibling)
    quarantine(world)
    assert offers(world, sibling) == []


def test_bad_batches_are_offered_to_a_run_that_starts_later() -> None:
    world = trained(45, **SKIPS)
    quarantine(world)
    world.trained_to(60)
    world.end()
    world.settle()
    later = world.submit(spec("later"), run="run-9")
    world.settle()
    assert len(offers(world, later)) == 1
    carry_out(world, later)
    assert world.run(later).skip_batches == ((41, 48),)
