"""The parts of a state: restored exactly into the script's own objects, or refused by name."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from babysit.checkpoint import tensors
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import NOTES_FILE, Candidate, Plan, SavePolicy, Tier, step_directory

Script = tuple[dict[str, Any], Callable[[int], None], Callable[[], list[Any]]]
"""The state, a step of training, and what the script's own variables hold."""


def inputs(step: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(step))


def update(loss: torch.Tensor, *optimizers: Any) -> None:
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def seen(*things: Any) -> list[Any]:
    return [
        t.detach().to_dense().dequantize().tolist()
        if t.is_quantized
        else t.detach().to_dense().tolist()
        for t in things
    ]


def later_head(kind: Any = torch.optim.AdamW) -> Script:
    body, later = nn.Linear(8, 8), nn.Linear(8, 1)
    model = nn.ModuleDict({"body": body, "later": later, "never": nn.Linear(8, 1)})
    optimizer = kind(model.parameters(), lr=1e-2)

    def step(n: int) -> None:
        h = body(inputs(n))
        loss = h.square().mean()
        update(loss + later(h).square().mean() if n > 4 else loss, optimizer)

    return {"model": model, "opt": optimizer}, step, lambda: seen(*model.parameters())


def several(arrange: Callable[[Any, Any], Any]) -> Script:
    nets = [nn.Linear(8, 8), nn.Linear(8, 8)]
    a, b = (torch.optim.Adam(net.parameters(), lr=1e-2) for net in nets)
    scheduler = torch.optim.lr_scheduler.StepLR(a, 2)

    def step(n: int) -> None:
        for net, optimizer in zip(nets, (a, b), strict=True):
            update(net(inputs(n)).square().mean(), optimizer)
        scheduler.step()

    state = {"nets": nets, "optimizers": arrange(a, b), "more": {"deep": [scheduler]}}
    return (
        state,
        step,
        lambda: [
            *seen(*nets[0].parameters(), *nets[1].parameters()),
            a.state_dict()["param_groups"],
        ],
    )


def loose() -> Script:
    encoder, decoder = nn.Linear(8, 4), nn.Linear(4, 8)
    weight, others = nn.Parameter(torch.zeros(())), [nn.Parameter(torch.ones(8))]
    everything = [*encoder.parameters(), weight, *decoder.parameters(), *others]
    optimizer = torch.optim.SGD(everything, lr=1e-2, momentum=0.9)

    def step(n: int) -> None:
        out = decoder(encoder(inputs(n))) * others[0]
        update(out.square().mean() * torch.exp(-weight) + weight, optimizer)

    state = {"opt": optimizer, "a": encoder, "b": decoder, "w": weight, "o": {"list": others}}
    return state, step, lambda: seen(*everything)


class Ema:
    """Keeps tensors, with no state_dict: an object that is nothing but its attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        for name, parameter in model.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 0.1)


class StatefulEma(Ema):
    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.updates = state["shadow"], state["updates"]


def averaged(kind: Any) -> Script:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    ema, bare = kind(model), {}
    average = torch.optim.swa_utils.AveragedModel(model)

    def step(n: int) -> None:
        update(model(inputs(n)).square().mean(), optimizer)
        ema.update(model)
        average.update_parameters(model)
        bare[f"step {n}"] = model.weight.detach().clone()

    state = {"model": model, "opt": optimizer, "ema": ema, "average": average, "bare": bare}
    return (
        state,
        step,
        lambda: [ema.updates, *seen(*ema.shadow.values(), *average.parameters(), *bare.values())],
    )


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8).t())
        sparse = torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (4,), check_invariants=True)
        self.register_buffer("sparse", sparse)
        self.register_buffer(
            "quantised", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
        )
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64).conj())
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("eighth", torch.ones(3, dtype=torch.float8_e4m3fn))


def odd_buffers() -> Script:
    model = Odd()
    optimizer = torch.optim.Adafactor(model.parameters())
    kept = {"best": [model.sparse, model.quantised]}  # as of a model's best step, say

    def step(n: int) -> None:
        update((inputs(n) @ model.weight).square().mean(), optimizer)
        model.sparse = (model.sparse * 2).coalesce()
        model.quantised = torch.quantize_per_tensor(
            torch.full((3,), n / 2), 0.1 * n, 1, torch.quint8
        )
        model.complex.mul_(1j)
        kept["best"] = [model.sparse.clone(), model.quantised.clone()]

    own = lambda: seen(  # noqa: E731
        model.weight, model.sparse, model.quantised, model.complex, *kept["best"]
    )
    return {"model": model, "opt": optimizer, "kept": kept}, step, own


def lbfgs() -> Script:
    model = nn.Linear(8, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=4)

    def step(n: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(inputs(n)) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    return {"m": model, "o": optimizer}, step, lambda: seen(*model.parameters())


class Wide(torch.optim.Optimizer):
    """Keeps float32 and CPU state for bfloat16 parameters, and a value that is no tensor."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": torch.tensor(0.01)})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["seen"] = state.get("seen", 0) + 1
                state["sum"] = state.get("sum", torch.zeros(p.shape)) + p.grad.float()
                state["kept"] = [*state.get("kept", []), p.grad.clone()]
                p.data.add_(state["sum"].to(p.dtype) * -group["lr"] / state["seen"])


def wide() -> Script:
    model = nn.Linear(8, 8).bfloat16()
    optimizer = Wide(model.parameters())

    def step(n: int) -> None:
        update(model(inputs(n).bfloat16()).float().square().mean(), optimizer)

    return {"m": model, "o": optimizer}, step, lambda: seen(*model.parameters())


def plain_values() -> Script:
    t = {key: torch.zeros(2) for key in ("a/b", "1", "%")}
    keys: dict[Any, Any] = {
        **t,
        1: torch.zeros(2),
        "a": {"b": torch.zeros(2)},
        None: torch.zeros(2),
    }
    losses, counts, history = [], collections.Counter(), collections.deque(maxlen=3)
    array, rng, generator = np.zeros(3), random.Random(1), np.random.default_rng(3)
    meter, tg, both = Meter(), torch.Generator().manual_seed(2), ([], (torch.zeros(1), 5))
    flat = [t for v in keys.values() for t in (v.values() if isinstance(v, dict) else [v])]

    def step(n: int) -> None:
        for i, tensor in enumerate(flat):
            tensor.add_(i + rng.random() + generator.random() + torch.rand(1, generator=tg).item())
        losses.append(n)
        both[0].append(n)
        both[1][0].add_(n)
        counts[n % 2] += 1
        history.append(n)
        array[n % 3] += n
        meter.total += n

    state = {"keys": keys, "losses": losses, "n": [counts, history], "array": array}
    state |= {"random": [rng, generator, tg], "meter": meter, "both": both}

    def own() -> list[Any]:
        return [
            *seen(*flat),
            losses,
            dict(counts),
            list(history),
            array.tolist(),
            both,
            meter.total,
        ]

    return state, step, own


class Masked(nn.Linear):
    """A mask whose elements share their memory, as models make it for a batch."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("mask", torch.ones(1).expand(8))


def not_writable() -> Script:
    """Tensors into which torch copies nothing, and a module that has no tensor."""
    model, kept = Masked(), {"shared": torch.zeros(1).expand(3), "best": torch.zeros(8)}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def step(n: int) -> None:
        update((model(inputs(n)) * model.mask).square().mean(), optimizer)
        kept["shared"] = torch.tensor([float(n)]).expand(3)
        with torch.inference_mode():
            kept["best"] = model.bias.clone()
        kept["ragged"] = torch.nested.nested_tensor([torch.ones(n), torch.ones(2)])

    step(0)  # a script may have such tensors before it restores
    state = {"model": model, "opt": optimizer, "loss": nn.CrossEntropyLoss(), "kept": kept}
    own = lambda: [  # noqa: E731
        *seen(*model.parameters(), model.mask, kept["shared"], kept["best"]),
        *seen(*kept["ragged"].unbind()),
    ]
    return state, step, own


class Meter:
    total = 0


SCRIPTS: dict[str, Callable[[], Script]] = {
    "a head with its first gradient later": later_head,
    "the same, with SGD": lambda: later_head(torch.optim.SGD),
    "optimizers in a list": lambda: several(lambda a, b: [a, b]),
    "optimizers in a tuple": lambda: several(lambda a, b: (a, 5, b)),
    "optimizers in nested dicts": lambda: several(lambda a, b: {"g": {"x": a}, 7: b}),
    "one optimizer over modules and loose parameters": loose,
    "averages in a plain object": lambda: averaged(Ema),
    "averages in an object with a state": lambda: averaged(StatefulEma),
    "sparse, quantised and other buffers": odd_buffers,
    "L-BFGS": lbfgs,
    "optimizer state of another dtype": wide,
    "values and keys of all kinds": plain_values,
    "tensors that cannot be written in place": not_writable,
}


def make_run(root: Path, step: int = 0) -> Run:
    path = str(step_directory(root, step))
    restore = (Candidate("c", step, Tier.MEMORY, path, 1, 1, "r"),) if step else ()
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1, memory_keep=9)
    return Run(Plan("r", 1, 0, 1, restore, save=policy), Reporter(root, 0))


def train(root: Path, script: Script, after: int = 0, until: int = 7) -> list[Any]:
    state, step, own = script
    run = make_run(root, after)
    assert run.restore(state) == after
    for n, _ in run.steps(range(99), total=until):
        step(n)
        run.checkpoint(state)
    return own()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_script_holds_what_it_would_have_held(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    straight = train(tmp_path, SCRIPTS[name]())
    for after in (1, 3, 5):
        torch.manual_seed(after)
        assert train(tmp_path, SCRIPTS[name](), after) == straight
    notes = (tmp_path / NOTES_FILE).read_text()
    assert "save_failed" not in notes


def test_names_of_tensors_do_not_collide(tmp_path: Path) -> None:
    train(tmp_path, plain_values(), until=1)
    names = tensors.read(step_directory(tmp_path, 1), 1)
    assert {"keys/a%2Fb", "keys/a/b", "keys/1", "keys/%1", "keys/%25", "keys/%None"} <= set(names)
