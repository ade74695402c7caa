"""Resuming at the exact batch, with quarantine, over epochs; without torch."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babysit import rng
from babysit.data import Feed, Position
from babysit.errors import EmptyLoaderError


class Watched:
    """A sequence that remembers which items were asked for."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self.items):
            raise IndexError
        self.asked.append(index)
        return self.items[index]


class Shuffled:
    """Draws a new order from the global generator at each pass, as many loaders do."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(6))
        random.shuffle(order)
        return iter(order)


class Stateful:
    """A loader that resumes by itself, as torchdata's."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.next = 0
        self.loaded: list[dict[str, int]] = []

    def __iter__(self) -> Iterator[int]:
        while self.next < self.length:
            self.next += 1
            yield self.next
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded.append(state)
        self.next = state["next"]


def numbered(feed: Feed, count: int, epochs: int | None = None) -> list[tuple[int, Any]]:
    batches = feed.batches(epochs)
    return [(feed.position.batch, item) for _, item in zip(range(count), batches, strict=False)]


def resumed_at(loader: Any, again: Any, after: int, count: int, skip: Any = ()) -> list[Any]:
    """Take `after` batches of `loader`, save, and take the rest of `again` from the saved place."""
    feed = Feed(loader, skip)
    batches = feed.batches(None)
    for _ in range(after):
        next(batches)
    saved = pickle.loads(pickle.dumps((feed.snapshot(), rng.capture())))
    random.seed(999)  # what the new process has done before it resumes does not matter
    feed = Feed(again, skip, saved[0])
    batches = feed.batches(None, saved[1])
    return [(next(batches), feed.position.batch) for _ in range(count - after)]


def test_batches_are_numbered_over_epochs_and_quarantine() -> None:
    feed = Feed(list("abcd"), skip=[(3, 6)])
    assert numbered(feed, 6) == [
        (1, "a"),
        (2, "b"),
        (7, "c"),
        (8, "d"),
        (9, "a"),
        (10, "b"),
    ]


def test_quarantine_may_swallow_whole_epochs() -> None:
    feed = Feed([10, 20], skip=[(2, 7)])
    assert numbered(feed, 3) == [(1, 10), (8, 20), (9, 10)]


def test_epochs_end() -> None:
    feed = Feed([10, 20], skip=[(2, 2)])
    assert numbered(feed, 100, epochs=2) == [(1, 10), (3, 10), (4, 20)]


@given(
    length=st.integers(1, 7),
    count=st.integers(1, 25),
    data=st.data(),
)
def test_resuming_changes_nothing(length: int, count: int, data: st.DataObject) -> None:
    after = data.draw(st.integers(1, count))
    first = data.draw(st.integers(1, 20))
    skip = [(first, first + data.draw(st.integers(0, 9)))]
    for make in (lambda: list(range(length)), lambda: range(length), lambda: Stateful(length)):
        feed = Feed(make(), skip)
        batches = feed.batches(None)
        straight = [(next(batches), feed.position.batch) for _ in range(count)]
        assert resumed_at(make(), make(), after, count, skip) == straight[after:]


@pytest.mark.parametrize("after", range(1, 14))
def test_a_shuffled_order_is_replayed(after: int) -> None:
    random.seed(1)
    feed = Feed(Shuffled())
    batches = feed.batches(None)
    straight = [(next(batches), feed.position.batch) for _ in range(14)]
    random.seed(1)
    assert resumed_at(Shuffled(), Shuffled(), after, 14) == straight[after:]


def test_what_is_passed_over_in_a_sequence_is_not_touched() -> None:
    from collections.abc import Sequence

    Sequence.register(Watched)
    watched = Watched(list(range(10)))
    position = Position(epoch=0, offset=4, batch=4, epoch_states=rng.capture())
    feed = Feed(watched, skip=[(6, 7)], position=position)
    assert numbered(feed, 3) == [(5, 4), (8, 7), (9, 8)]
    assert watched.asked == [4, 7, 8]


def test_a_stateful_loader_is_resumed_by_its_state() -> None:
    loader, again = Stateful(5), Stateful(5)
    assert resumed_at(loader, again, 3, 5) == [(4, 4), (5, 5)]
    assert again.loaded == [{"next": 3}]


def test_set_epoch_is_called_wherever_it_is() -> None:
    class Sampler:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    class Loader:
        sampler = Sampler()
        dataset = Sampler()

        def __iter__(self) -> Iterator[int]:
            return iter((1, 2))

    loader = Loader()
    numbered(Feed(loader), 5)
    assert loader.sampler.epochs == loader.dataset.epochs == [0, 1, 2]


@pytest.mark.parametrize("loader", [[], iter(())])
def test_an_empty_loader_is_an_error(loader: Any) -> None:
    with pytest.raises(EmptyLoaderError, match="gave no batch"):
        next(Feed(loader).batches(None))


def test_a_used_up_iterator_is_an_error_rather_than_a_loop() -> None:
    batches = Feed(iter([1, 2])).batches(None)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(EmptyLoaderError, match="epoch 1 of the loader"):
        next(batches)
