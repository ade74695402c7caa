"""torchdata's StatefulDataLoader: a killed run draws what it would have drawn, as torch's does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.property.test_resume_data import (
    SIZE,
    Augmented,
    Own,
    Stream,
    alternating,
    from_its_epoch,
    once,
    per_epoch,
    same_after_kills,
    seeded,
    stages,
)

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


class Counted(IterableDataset[Any]):
    """A stream with a state of its own, split over the workers."""

    def __init__(self) -> None:
        self.at = 0
        self.rng = torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        while self.at * every + first < SIZE:
            self.at += 1
            place = (self.at - 1) * every + first
            yield torch.tensor([place, torch.rand(1, generator=self.rng).item()])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.rng.set_state(state["rng"])


def loader(data: Any, **options: Any) -> Any:
    return StatefulDataLoader(data(), **({"batch_size": 4} | options))


LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: loader(Augmented),
    "shuffled": lambda: loader(Augmented, shuffle=True, drop_last=True),
    "own generators": lambda: loader(Own, shuffle=True, generator=seeded()),
    "workers": lambda: loader(Augmented, shuffle=True, num_workers=2),
    "persistent workers": lambda: loader(
        Augmented, shuffle=True, num_workers=2, persistent_workers=True, prefetch_factor=3
    ),
    "stream": lambda: loader(Stream),
    "stream with a state": lambda: loader(Counted),
    "stream with a state, workers": lambda: loader(Counted, num_workers=2),
}


IN_WORKERS = [name for name in LOADERS if "workers" in name]
SCRIPTS = [once, per_epoch, from_its_epoch, alternating, stages]


@pytest.mark.parametrize("name", [name for name in LOADERS if name not in IN_WORKERS])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_draws_what_it_would_have_drawn(name: str, script: Any) -> None:
    same_after_kills(name, LOADERS, script, 1, [3, 9], ())


@pytest.mark.parametrize(
    ("name", "script"), [(n, s) for n in IN_WORKERS for s in (per_epoch, alternating)]
)
def test_a_resumed_run_draws_the_same_in_workers(name: str, script: Any) -> None:
    same_after_kills(name, LOADERS, script, 1, [7], ())


@pytest.mark.parametrize("name", ["shuffled", "workers", "stream with a state"])
def test_accumulation(name: str) -> None:
    same_after_kills(name, LOADERS, once, 3, [2, 5], ((5, 5),))
