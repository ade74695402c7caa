"""`run.watch`: torch's hooks say when the parts of a step begin and end.

Time is virtual: a layer, a gradient, a callback of the autograd engine and an optimizer that take
so many seconds say so to the clock.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from babysit.step_times import PARTS, Hooks, StepTimes
from babysit.watch import _Waits
from babysit.wire import Part
from tests.control_plane import until

FORWARD, BACKWARD, WAIT, OPTIMIZER, REST = 1.0, 2.0, 4.0, 8.0, 16.0


class Time:
    """Virtual seconds, and the parts that they were counted in."""

    def __init__(self) -> None:
        self.now = 0.0
        self.times = StepTimes(lambda: self.now)
        self.times.enter(Part.OTHER)
        self.warnings: list[str] = []

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def watch(self, model: Any, optimizer: Any = None) -> Hooks:
        watch = self.times.watch(self.warnings.append)
        assert watch is not None
        return watch.add(model, optimizer)

    @property
    def parts(self) -> dict[Part, float]:
        """The parts that have had any time."""
        self.times.enter(self.times.part)
        return {part: self.times._sums[place] for place, part in enumerate(PARTS)}


class _Slow(torch.autograd.Function):
    """The identity; its gradient takes a while and, as in DDP, asks for the end of the pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, time: Time) -> torch.Tensor:
        ctx.time = time
        time.spend(FORWARD)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        ctx.time.spend(BACKWARD)
        queue = torch.autograd.Variable._execution_engine.queue_callback
        queue(lambda: ctx.time.spend(WAIT))
        return gradients[0], None


@dataclasses.dataclass
class Output:
    """As DDP takes one too."""

    loss: torch.Tensor
    name: str = "output"


class Model(torch.nn.Module):
    def __init__(self, time: Time, wrap: Callable[[torch.Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self._time, self._wrap = time, wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self._wrap(_Slow.apply(self.layer(x), self._time))

    def __deepcopy__(self, memo: Any) -> Model:
        raise AssertionError("only plain models are copied here")


class Optimizer(torch.optim.SGD):
    def __init__(self, model: Model, time: Time) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self._time = time

    def step(self, closure: Any = None) -> Any:
        self._time.spend(OPTIMIZER)
        return super().step(closure)


def loss_of(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = vars(output) if isinstance(output, Output) else output
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output.sum()


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y, lambda y: (y, None), lambda y: {"loss": y, "more": [y.detach()]}, Output],
    ids=["a tensor", "a tuple", "a mapping", "a dataclass"],
)
def test_each_second_is_counted_in_its_part(wrap: Callable[[torch.Tensor], Any]) -> None:
    time = Time()
    model = Model(time, wrap)
    optimizer = Optimizer(model, time)
    time.watch(model, optimizer)
    for _ in range(3):
        loss = loss_of(model(torch.ones(1, 2)))
        loss.backward()
        time.spend(REST)
        optimizer.step()
    assert time.parts == dict.fromkeys(PARTS, 0.0) | {
        Part.FORWARD: 3 * FORWARD,
        Part.BACKWARD: 3 * BACKWARD,
        Part.WAIT: 3 * WAIT,
        Part.OPTIMIZER: 3 * OPTIMIZER,
        Part.OTHER: 3 * REST,
    }
    assert not time.warnings


def test_a_backward_pass_that_fails_leaves_no_trace_in_the_next() -> None:
    time = Time()
    model = Model(time)
    time.watch(model)
    failing = model(torch.ones(1, 2))
    failing.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.sum().backward()
    model(torch.ones(1, 2)).sum().backward()
    assert time.parts[Part.WAIT] == WAIT


def test_an_evaluation_counts_as_before() -> None:
    """Neither without gradients, nor in the mode of an evaluation, nor in a pause."""
    time = Time()
    model = Model(time)
    time.watch(model)
    with torch.no_grad():
        model(torch.ones(1, 2))
    model.eval()
    model(torch.ones(1, 2))
    model.train()
    time.times.enter(Part.PAUSED)
    model(torch.ones(1, 2)).sum().backward()
    assert {part for part, seconds in time.parts.items() if seconds} == {Part.OTHER, Part.PAUSED}


def plain(time: Time | None) -> torch.nn.Sequential:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    if time is not None:
        time.watch(model)
    return model


def test_what_is_computed_stays_the_same_bit_for_bit() -> None:
    gradients = []
    for model in (plain(None), plain(Time())):
        model(torch.ones(3, 4)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_copied_model_has_no_hooks_that_do_anything() -> None:
    """Averaged weights are a deep copy; what the hooks belong to cannot be copied."""
    time = Time()
    copied = copy.deepcopy(plain(time))
    time.spend(REST)
    copied(torch.ones(1, 4)).sum().backward()
    assert time.times.part is Part.OTHER
    assert time.parts[Part.OTHER] == REST


def test_a_model_that_was_saved_whole_loads_without_babysit(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(plain(Time()), file)
    code = (
        "import sys, torch; sys.modules['babysit'] = None\n"
        f"model = torch.load({str(file)!r}, weights_only=False)\n"
        "print(model(torch.ones(1, 4)).shape)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.strip() == "torch.Size([1, 1])"


def test_a_compiled_model_is_one_graph_still() -> None:
    """With the hooks inside it is not measured; with them outside it is."""
    time = Time()
    inside = torch.compile(plain(time), backend="eager", fullgraph=True)
    loss = inside(torch.ones(1, 4)).sum()
    assert time.times.part is Part.OTHER
    loss.backward()
    compiled = torch.compile(plain(None), backend="eager", fullgraph=True)
    time.watch(compiled)
    compiled(torch.ones(1, 4))
    assert time.times.part is Part.BACKWARD


def test_a_wrapped_optimizer_is_watched_inside() -> None:
    """accelerate's has the one that steps as `optimizer`, and no hooks of its own; around

    DeepSpeed's, which does the same, there are two.
    """

    class Wrapper:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    time = Time()
    model = Model(time)
    optimizer = Optimizer(model, time)
    time.watch(model, [Wrapper(Wrapper(optimizer))])
    optimizer.step()
    assert (time.parts[Part.OPTIMIZER], time.warnings) == (OPTIMIZER, [])


def test_a_second_call_for_the_same_ones_changes_nothing() -> None:
    time = Time()
    model, other = plain(None), plain(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = time.watch(model, optimizer)
    second = time.watch(model, optimizer)
    assert len(model._forward_hooks) == len(optimizer._optimizer_step_pre_hooks) == 1
    second.remove()
    assert len(model._forward_hooks) == 1, "it has put on none"
    third = time.watch(other, optimizer)
    first.remove()
    first.remove()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert len(other._forward_hooks) == 1
    third.remove()
    time.watch(model)
    assert len(model._forward_hooks) == 1, "it may be watched anew"


def test_a_model_inside_another_is_a_part_of_its_forward_pass() -> None:
    """A teacher without gradients, say, or a model and the DDP around it."""

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = Model(time), Model(time)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.teacher(x)
            y: torch.Tensor = self.student(x)
            time.spend(FORWARD)
            return y

    time = Time()
    outer = Outer()
    for each in (outer.teacher, outer.student, outer):
        time.watch(each)
    for _ in range(2):
        outer(torch.ones(1, 2)).sum().backward()
    assert time.parts[Part.FORWARD] == 2 * 3 * FORWARD
    assert (time.parts[Part.BACKWARD], time.parts[Part.WAIT]) == (2 * BACKWARD, 2 * WAIT)


def test_a_closure_has_its_parts_inside_the_step_of_its_optimizer() -> None:
    time = Time()
    model = Model(time)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    time.watch(model, optimizer)

    def closure() -> float:
        time.spend(OPTIMIZER / 2)
        loss = loss_of(model(torch.ones(1, 2)))
        loss.backward()
        time.spend(OPTIMIZER / 2)
        return loss.item()

    optimizer.step(closure)
    time.spend(REST)
    assert time.parts == dict.fromkeys(PARTS, 0.0) | {
        Part.FORWARD: FORWARD,
        Part.BACKWARD: BACKWARD,
        Part.WAIT: WAIT,
        Part.OPTIMIZER: OPTIMIZER,
        Part.OTHER: REST,
    }


class _WithItsScale(torch.nn.Linear):
    """Returns a parameter beside its output, as models of images and texts do."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.scale, super().forward(x)


def test_a_parameter_that_a_model_returns_collects_no_hooks() -> None:
    time, model = Time(), _WithItsScale()
    time.watch(model)
    for _ in range(3):
        scale, output = model(torch.ones(1, 2))
        assert time.times.part is Part.BACKWARD
        (scale * output).sum().backward()
        assert time.times.part is Part.OTHER
    assert not model.scale._backward_hooks


def test_a_hook_that_fails_is_logged_and_training_goes_on() -> None:
    time = Time()
    model = plain(time)
    time.times.enter = None  # type: ignore[method-assign,assignment]  # called, it raises
    model(torch.ones(1, 4)).sum().backward()
    assert time.warnings
    assert all(
        each.startswith("a hook of run.watch failed: ") and "not callable" in each
        for each in time.warnings
    )


class Collectives:
    """Two ranks of gloo in this process. The other one comes once this one waits."""

    def __init__(self, time: Time) -> None:
        store = torch.distributed.HashStore()
        with ThreadPoolExecutor(2) as pool:
            made = pool.map(lambda r: torch.distributed.ProcessGroupGloo(store, r, 2), range(2))
            self._mine, self._others = made
        self._time = time

    def wait(self, expected: Part) -> None:
        """Be in a collective for `WAIT` seconds; this rank is in `expected` then."""

        def other() -> None:
            until(lambda: self._time.times.part is expected, f"this rank is in {expected}")
            self._time.spend(WAIT)
            self._others.allreduce([torch.ones(1)]).wait()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(other)
            self._mine.allreduce([torch.ones(1)]).wait()
            done.result()


class Gathered(torch.nn.Module):
    """A layer that has to wait for other ranks in its forward pass, as one of FSDP."""

    def __init__(self, time: Time, collectives: Collectives) -> None:
        super().__init__()
        self.layer = Model(time)
        self._collectives = collectives

    def forward(self, x: torch.Tensor) -> Any:
        self._collectives.wait(Part.WAIT)
        return self.layer(x)


def test_waiting_for_a_collective_is_told_from_the_part_around_it() -> None:
    time = Time()
    collectives = Collectives(time)
    model = Gathered(time, collectives)
    optimizer = Optimizer(model.layer, time)
    hooks = time.watch(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    collectives.wait(Part.WAIT)
    time.spend(REST)
    assert time.parts == dict.fromkeys(PARTS, 0.0) | {
        Part.FORWARD: FORWARD,
        Part.BACKWARD: BACKWARD,
        Part.WAIT: 3 * WAIT,
        Part.OTHER: REST,
    }
    hooks.remove()
    collectives.wait(Part.OTHER)
    assert time.parts[Part.WAIT] == 3 * WAIT, "nothing is watched any more"


def test_waiting_in_a_pause_or_in_a_thread_beside_the_step_is_none_of_the_step() -> None:
    time = Time()
    collectives = Collectives(time)
    model = Model(time)
    time.watch(model)
    model(torch.ones(1, 2)).sum().backward()
    with ThreadPoolExecutor(1) as pool:  # of a save, say
        pool.submit(collectives.wait, Part.OTHER).result()
    time.times.enter(Part.PAUSED)
    collectives.wait(Part.PAUSED)
    parts = time.parts
    assert (parts[Part.WAIT], parts[Part.OTHER], parts[Part.PAUSED]) == (WAIT, WAIT, WAIT)


def test_a_torch_without_such_a_class_has_no_waiting_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Waits, "watch", None)
    monkeypatch.delattr(torch.distributed, "Work")
    time = Time()
    model = Model(time)
    time.watch(model)
    model(torch.ones(1, 2)).sum().backward()
    assert (time.parts[Part.BACKWARD], time.warnings) == (BACKWARD, [])


def test_what_cannot_have_hooks_is_left_out_with_a_word() -> None:
    time = Time()
    time.watch(print)
    time.watch(plain(None), "adam")
    assert len(time.warnings) == 2
    assert all("leaves a model or optimizer out" in each for each in time.warnings)


def test_a_model_can_be_pickled_to_memory() -> None:
    torch.save(plain(Time()), io.BytesIO())
