# ruff: noqa: NPY002  # the global generator of numpy is one of those that come back
"""Killed anywhere and resumed, a run draws the data and the random numbers of one left alone.

Over loaders, samplers, workers, shapes of the script (once, per epoch, in stages, left by `break`)
and accumulation. A kill is an abandoned process state: everything is made anew, and all generators
are set to something else before the resume.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import Candidate, Plan, SavePolicy, Tier, step_directory

SIZE = 23


class Augmented(Dataset[Any]):
    """Draws from every global generator for each item."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> Any:
        noise = [random.random(), np.random.random(), torch.rand(1).item()]
        return torch.tensor([i, *noise], dtype=torch.float64)


class Own(Augmented):
    """Draws from generators of its own, one of them in a transformation."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.transforms = [{"flip": random.Random(6)}]
        self.torch = torch.Generator().manual_seed(7)

    def __getitem__(self, i: int) -> Any:
        noise = [self.rng.random(), self.transforms[0]["flip"].random()]
        noise.append(torch.rand(1, generator=self.torch).item())
        return torch.tensor([i, *noise], dtype=torch.float64)


class Stream(IterableDataset[Any]):
    """Shuffles in a buffer, so that what comes depends on what was drawn before."""

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        buffer: list[int] = []
        for i in range(first, SIZE, every):
            buffer.append(i)
            if len(buffer) > 5:
                yield torch.tensor([buffer.pop(random.randrange(6)), torch.rand(1).item()])
        while buffer:
            yield torch.tensor([buffer.pop(), np.random.random()])


class Lazy(Sampler[int]):
    """Draws from the global generator batch by batch."""

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(SIZE) for _ in range(SIZE))

    def __len__(self) -> int:
        return SIZE


class ByHand:
    """A loader made by hand that begins anew, and draws as it goes."""

    def __iter__(self) -> Iterator[Any]:
        self.left = list(range(9))
        return self

    def __next__(self) -> Any:
        if not self.left:
            raise StopIteration
        return self.left.pop(random.randrange(len(self.left))), random.random()


class KeepsPlace:
    """Has a state of its own, and a generator."""

    def __init__(self) -> None:
        self.given, self.random = 0, random.Random(3)

    def __iter__(self) -> Iterator[Any]:
        while self.given < 8:
            self.given += 1
            yield self.given, self.random.random()
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given, "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]
        self.random.setstate(state["random"])


def loader(data: Any = Augmented, **options: Any) -> Any:
    return DataLoader(data(), **({"batch_size": 4} | options))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def sampled(make: Callable[[Any], Any], data: Any = Augmented, **options: Any) -> Any:
    return DataLoader(data(), batch_size=4, sampler=make(data()), **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "range": lambda: range(7),
    "by hand": ByHand,
    "keeps its place": KeepsPlace,
    "in order": loader,
    "shuffled": lambda: loader(shuffle=True, drop_last=True),
    "own generators": lambda: loader(Own, shuffle=True),
    "shared generator": lambda: loader(shuffle=True, generator=seeded()),
    "replacement": lambda: sampled(
        lambda d: RandomSampler(d, replacement=True, num_samples=50, generator=seeded())
    ),
    "more than there is": lambda: sampled(
        lambda d: RandomSampler(d, num_samples=60, generator=seeded())
    ),
    "weighted": lambda: sampled(lambda _: WeightedRandomSampler([1.0] * SIZE, 30)),
    "distributed": lambda: sampled(lambda d: DistributedSampler(d, 2, 1)),
    "lazy": lambda: sampled(lambda _: Lazy()),
    "lazy batches": lambda: DataLoader(Augmented(), batch_sampler=BatchSampler(Lazy(), 3, False)),
    "no batches": lambda: loader(batch_size=None, shuffle=True),
    "stream": lambda: loader(Stream),
}
WITH_WORKERS: dict[str, Callable[[], Any]] = {
    "workers": lambda: loader(shuffle=True, num_workers=2),
    "persistent workers": lambda: loader(
        Own, shuffle=True, generator=seeded(), num_workers=2, persistent_workers=True
    ),
    "workers, replacement": lambda: sampled(
        lambda d: RandomSampler(d, replacement=True, num_samples=70, generator=seeded()),
        num_workers=2,
        generator=seeded(),
    ),
    "workers, no batches": lambda: loader(batch_size=None, shuffle=True, num_workers=2),
    "workers, stream": lambda: loader(Stream, num_workers=2),
    "workers, lazy": lambda: sampled(lambda _: Lazy(), num_workers=2, prefetch_factor=3),
}


def once(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    yield from run.steps(loaders[0], epochs=3, accumulate=accumulate)


def per_epoch(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    for _ in range(3):
        yield from run.steps(loaders[0], accumulate=accumulate)


def from_its_epoch(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    for _ in run.epochs(3):
        yield from run.steps(loaders[0], accumulate=accumulate)


def alternating(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    for i in range(4):
        yield from run.steps(loaders[i % 2], accumulate=accumulate)


def stages(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    yield from run.steps(loaders[0], total=5, accumulate=accumulate)
    yield from run.steps(loaders[1], total=12, accumulate=accumulate)


def left_early(run: Run, loaders: list[Any], accumulate: int) -> Iterator[Any]:
    for epoch in range(3):
        for count, item in enumerate(run.steps(loaders[0], accumulate=accumulate)):
            yield item
            if run.sync_gradients and run.step >= 3 * (epoch + 1):
                break
            assert count < 100


SCRIPTS = [once, per_epoch, from_its_epoch, alternating, stages, left_early]


def make_run(root: Path, step: int = 0, skip: Any = ()) -> Run:
    path = str(step_directory(root, step))
    restore = (Candidate("c", step, Tier.MEMORY, path, 1, 1, "r"),) if step else ()
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1, memory_keep=99)
    return Run(Plan("r", 1, 0, 1, restore, skip, policy), Reporter(None, 0))


def train(run: Run, script: Any, make: Any, accumulate: int, die: int = 10**9) -> list[Any]:
    """What each step saw; a death leaves everything behind after the save of step `die`."""
    weights = {"sum": torch.zeros((), dtype=torch.float64)}
    run.restore(weights)
    seen = []
    for step, batch in script(run, make, accumulate):
        seen.append((step, run.batch, str(batch), random.random(), torch.rand(1).item()))
        weights["sum"] += torch.rand(1).item()
        if run.sync_gradients:
            np.random.random()
        run.checkpoint(weights)
        if step == die and run.sync_gradients:
            break
    return [*seen, weights["sum"].item()] if die == 10**9 else seen


def same_after_kills(
    name: str, table: dict[str, Any], script: Any, accumulate: int, kills: list[int], skip: Any
) -> None:
    other = LOADERS["shuffled"]

    def begin(seed: int) -> list[Any]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return [table[name](), other()]

    if script is left_early:
        # A kill between the save and the `break` resumes within the loop, as any loop would.
        kills = [3 * kill for kill in kills]
        if name == "keeps its place":
            return  # left early, it goes on where it was

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        loaders = begin(1)
        straight = train(make_run(root / "straight", skip=skip), script, loaders, accumulate)
        last = straight[-2][0]
        at, seen = 0, []
        for kill in [*sorted({1 + k % last for k in kills}), 10**9]:
            loaders = begin(1 if at == 0 else 50 + kill)
            seen += train(make_run(root / "killed", at, skip), script, loaders, accumulate, kill)
            at = kill
        assert seen == straight


CASES = {
    "script": st.sampled_from(SCRIPTS),
    "accumulate": st.integers(1, 4),
    "kills": st.lists(st.integers(0, 200), min_size=1, max_size=3),
    "skip": st.sampled_from([(), ((2, 3), (9, 9))]),
}


@pytest.mark.parametrize("name", LOADERS)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(**CASES)
def test_a_resumed_run_draws_what_it_would_have_drawn(name: str, **case: Any) -> None:
    same_after_kills(name, LOADERS, **case)


@pytest.mark.parametrize(("name", "script"), list(zip(WITH_WORKERS, SCRIPTS, strict=True)))
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_draws_the_same_in_workers(name: str, script: Any, accumulate: int) -> None:
    same_after_kills(name, WITH_WORKERS, script, accumulate, [3, 9], ((5, 5),))
