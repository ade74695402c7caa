"""Loaders and states of torch, in one process."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from babysit import rng
from babysit.data import Feed
from babysit.errors import StateMismatchError
from babysit.numbers import real
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import Candidate, Plan, SavePolicy, Tier, step_directory


class Numbers(Dataset[int]):
    """Twenty items; those asked for are written down."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        return index


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(20))


LOADERS: dict[str, Any] = {
    "in order": lambda: DataLoader(Numbers(), batch_size=3),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True),
    "own generator": lambda: DataLoader(
        Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "no batches": lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    "distributed": lambda: DataLoader(
        Numbers(), batch_size=3, sampler=DistributedSampler(Numbers(), 2, 1)
    ),
    "workers": lambda: DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=2),
    "persistent": lambda: DataLoader(
        Numbers(), batch_size=3, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=3),
}


def drawn(batches: Any, feed: Feed, count: int) -> list[tuple[Any, int]]:
    # Training draws random numbers of its own between the batches.
    taken = []
    for _ in range(count):
        batch = next(batches)
        taken.append((torch.as_tensor(batch).tolist(), feed.position.batch, torch.rand(1).item()))
    return taken


@pytest.mark.parametrize("after", [2, 7, 9])
@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_resumes_at_the_exact_batch(name: str, after: int) -> None:
    make, skip, count = LOADERS[name], [(4, 5), (13, 13)], 16
    torch.manual_seed(0)
    feed = Feed(make(), skip)
    straight = drawn(feed.batches(None), feed, count)
    assert len({tuple(batch) if isinstance(batch, list) else batch for batch, *_ in straight}) > 3

    torch.manual_seed(0)
    feed = Feed(make(), skip)
    batches = feed.batches(None)
    drawn(batches, feed, after)
    saved = pickle.dumps((feed.snapshot(), rng.capture()))
    del batches

    torch.manual_seed(77)
    position, states = pickle.loads(saved)
    feed = Feed(make(), skip, position)
    assert drawn(feed.batches(None, states), feed, count - after) == straight[after:]


def test_what_is_passed_over_is_not_loaded() -> None:
    data = Numbers()
    feed = Feed(DataLoader(data, batch_size=2), skip=[(5, 6)])
    batches = feed.batches(None)
    drawn(batches, feed, 2)
    position = feed.snapshot()
    data.asked.clear()
    feed = Feed(DataLoader(data, batch_size=2), [(5, 6)], position)
    drawn(feed.batches(None), feed, 3)
    assert data.asked == [4, 5, 6, 7, 12, 13]


def test_the_users_loader_is_left_as_it_was() -> None:
    loader = DataLoader(Numbers(), batch_size=2)
    feed = Feed(loader, skip=[(1, 3)])
    drawn(feed.batches(None), feed, 2)
    assert next(batch.tolist() for batch in loader) == [0, 1]


class Average:
    """Stateful, and its state grows."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def make_state(width: int = 4) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2),
        "average": Average(),
        "extra": {"tensor": torch.zeros(3, dtype=torch.bfloat16), "list": [torch.zeros(()), 1]},
        "note": "fresh",
    }


def step_once(state: dict[str, Any]) -> float:
    loss = state["model"](torch.randn(5, 4)).square().mean()
    loss.backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    state["scheduler"].step()
    state["average"].seen.append(loss.detach())
    state["extra"]["tensor"] += 1
    state["extra"]["list"][0] += 2
    return loss.item()


def make_run(root: Path, step: int = 0) -> Run:
    path = str(step_directory(root, step))
    restore = (Candidate("c", step, Tier.MEMORY, path, 1, 1, "r"),) if step else ()
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1)
    return Run(Plan("r", 1, 0, 1, restore, save=policy), Reporter(None, 0))


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = make_state()
    run = make_run(tmp_path)
    losses = []
    for step, _ in run.steps(range(6), total=6):
        losses.append(step_once(state))
        state["note"] = f"step {step}"
        run.checkpoint(state)

    torch.manual_seed(5)
    again = make_state()
    run = make_run(tmp_path, step=4)
    assert run.restore(again) == 4
    assert again["note"] == "step 4"
    assert again["scheduler"].last_epoch == 4
    assert [x.item() for x in again["average"].seen] == losses[:4]
    assert again["extra"]["tensor"].tolist() == [4, 4, 4]
    assert again["extra"]["list"][0].item() == 8
    assert [step_once(again) for _ in run.steps(range(6), total=6)] == losses[4:]
    taken = [run.fingerprint(each["model"], every=1) for each in (again, state)]
    assert taken[0] == taken[1] is not None
    again["model"][0].weight.data[0, 0] += 1e-6
    assert run.fingerprint(again["model"], every=1) != taken[0]


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    state = {"tensor": torch.ones(1000)}
    run = make_run(tmp_path)
    for _ in run.steps(range(2), total=1):
        run.checkpoint(state)
        state["tensor"].zero_()  # as the next step would, perhaps before the bytes are on disk
    run = make_run(tmp_path, step=1)
    run.restore(state)
    assert state["tensor"].eq(1).all()


def test_a_changed_model_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for _ in run.steps(range(2), total=1):
        run.checkpoint(make_state())
    with pytest.raises(StateMismatchError, match="Has the model changed"):
        make_run(tmp_path, step=1).restore(make_state(width=6))


def test_an_optimizer_needs_its_module(tmp_path: Path) -> None:
    state = make_state()
    del state["model"]
    run = make_run(tmp_path)
    with pytest.raises(StateMismatchError, match="both into the dict"):
        run.checkpoint(state, step=1)


def test_a_loss_with_its_graph_is_a_number_without_a_warning() -> None:
    loss = torch.tensor(1.5, requires_grad=True) * 2
    torch.set_warn_always(True)  # by default only once per process, which others may have used up
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert real(loss) == 3.0
    finally:
        torch.set_warn_always(False)
    assert loss.requires_grad, "the script's own loss is left as it was"
