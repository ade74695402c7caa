"""A state that cannot be saved or restored is refused before training, and named."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from babysit.errors import StateMismatchError
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import NOTES_FILE, Candidate, Plan, SavePolicy, Tier, step_directory


def make_run(root: Path, step: int = 0) -> Run:
    path = str(step_directory(root, step))
    restore = (Candidate("c", step, Tier.MEMORY, path, 1, 1, "r"),) if step else ()
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1, memory_keep=9)
    return Run(Plan("r", 1, 0, 1, restore, save=policy), Reporter(root, 0))


class Holder:
    def __init__(self, part: Any) -> None:
        self.inner = {"part": part}


def make(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    model = nn.Linear(2, 2)
    state = {"model": model, "opt": torch.optim.SGD(model.parameters(), lr=0.1)}
    change(state)
    return state


def circle(state: dict[str, Any]) -> None:
    state["circle"] = [torch.zeros(1)]
    state["circle"].append(state["circle"])


REFUSED = {
    "an unknown parameter": (
        lambda s: s["opt"].add_param_group({"params": [nn.Parameter(torch.zeros(5))]}),
        r"'opt' updates .*group 1, parameter 0, shape \(5,\).*both into the dict",
    ),
    "a lambda": (lambda s: s.update(config={"f": [lambda x: x]}), "'config/f/%0' .*Leave it out"),
    "a lock": (lambda s: s.update(lock=threading.Lock()), "'lock' .*lock.*Leave it out"),
    "an object with a module": (lambda s: s.update(t=Holder(s["model"])), "'t' .*Holder.*Linear"),
    "an object with an optimizer": (lambda s: s.update(t=[Holder(s["opt"])]), "'t/%0' .*SGD"),
    "a lazy module": (lambda s: s.update(lazy=nn.LazyLinear(3)), "'lazy/weight' has no content"),
    "the meta device": (
        lambda s: s.update(big=nn.Linear(2, 2, device="meta")),
        "'big/weight' .*meta device",
    ),
    "a circle": (circle, "holds itself"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_restored_is_refused_before_training(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    with pytest.raises(StateMismatchError, match=message):
        make_run(tmp_path).restore(make(change))
    with pytest.raises(StateMismatchError, match=message):  # a script that restores nothing
        make_run(tmp_path).checkpoint(make(change), step=1)


CHANGED = {
    "another width": (lambda s: s.update(model=nn.Linear(2, 3)), "Has the model changed"),
    "another dtype": (lambda s: s["model"].bfloat16(), "'model/weight' was saved as .*float32"),
    "one more layer": (
        lambda s: s.update(model=nn.Sequential(nn.Linear(2, 2))),
        "module 'model' does not fit",
    ),
    "another group": (
        lambda s: s["opt"].add_param_group(
            {"params": [s.setdefault("w", nn.Parameter(torch.ones(1)))]}
        ),
        "'w'|2 groups|1 groups",
    ),
    "no optimizer": (lambda s: s.pop("opt"), "the checkpoint has 'opt'"),
    "a new part": (lambda s: s.update(new=5), "the script's state has 'new'"),
    "another kind": (lambda s: s.update(opt=5), "'opt' was saved as optimizer, and is value now"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_script_is_refused_by_part(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    state = make(lambda _: None)
    for _ in run.steps([1], total=1):
        run.checkpoint(state)
    change, message = CHANGED[name]
    changed = make(lambda _: None)
    change(changed)
    if name in ("another width", "one more layer"):
        changed["opt"] = torch.optim.SGD(changed["model"].parameters(), lr=0.1)
    with pytest.raises(StateMismatchError, match=message):
        make_run(tmp_path, 1).restore(changed)


def test_after_the_first_save_none_raises_and_none_fails_in_silence(tmp_path: Path) -> None:
    class Moody:
        failing: Exception | None = None

        def state_dict(self) -> dict[str, Any]:
            if self.failing:
                raise self.failing
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    moody, values, run = Moody(), {}, make_run(tmp_path)
    state = {"moody": moody, "values": values}
    run.restore(state)
    for step, _ in run.steps(range(9), total=4):
        moody.failing = KeyError(2) if step == 2 else None
        values["f"] = (lambda: 0) if step == 3 else 0
        run.checkpoint(state)
    notes = [json.loads(line) for line in (tmp_path / NOTES_FILE).read_text().splitlines()]
    failed = [(n["step"], n["error"].split(":")[0]) for n in notes if n["kind"] == "save_failed"]
    assert [step for step, _ in failed] == [2, 3]
    assert failed[0][1] == "KeyError"
    assert make_run(tmp_path, 4).restore({"moody": moody, "values": {}}) == 4


def test_an_error_in_the_background_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from babysit.checkpoint import saver, shard

    def broken(writer: shard.ShardWriter) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(saver, "INLINE_BYTES", 0)
    monkeypatch.setattr(shard.ShardWriter, "seal", broken)
    run = make_run(tmp_path)
    for _ in run.steps([1], total=1):
        run.checkpoint({"t": torch.zeros(1)})
    assert '"error": "ValueError: a defect"' in (tmp_path / NOTES_FILE).read_text()
