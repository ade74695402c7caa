"""An epoch that is resumed by other numbers of ranks: no sample comes twice or never."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babysit.calls import Calls
from babysit.data import Feed, Position
from babysit.reporter import Reporter

torch = pytest.importorskip("torch")
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler  # noqa: E402


def feeds(
    ranks: int,
    samples: int,
    batch: int,
    position: bytes | None,
    skip: tuple[tuple[int, int], ...] = (),
    **sampler: Any,
) -> list[Feed]:
    """One feed for each rank, from a saved position on."""
    made = []
    for rank in range(ranks):
        order = DistributedSampler(range(samples), ranks, rank, seed=3, **sampler)
        loader = DataLoader(range(samples), batch_size=batch, sampler=order)
        made.append(Feed(loader, skip, pickle.loads(position) if position else None))
    return made


def draw(found: list[Feed], batches: int | None) -> tuple[list[int], bytes, bool]:
    """What all ranks draw in so many batches of an epoch; the position; whether it is over."""
    drawn, lengths = [], []
    for feed in found:
        mine = list(itertools.islice(feed.batches(1), batches))
        lengths.append(len(mine))
        drawn += [int(sample) for batch in mine for sample in batch]
    assert len(set(lengths)) == 1, "ranks that draw unequal numbers of batches wait for each other"
    over = batches is None or lengths[0] < batches
    return drawn, pickle.dumps(found[0].snapshot()), over


@settings(max_examples=60)
@given(
    st.integers(8, 60),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_sample_is_drawn_once(
    samples: int, batch: int, parts: list[tuple[int, int]], last: int, shuffle: bool
) -> None:
    position, drawn = None, []
    for ranks, batches in parts:
        found, position, over = draw(
            feeds(ranks, samples, batch, position, shuffle=shuffle), batches
        )
        drawn += found
        if over:
            break
    else:
        drawn += draw(feeds(last, samples, batch, position, shuffle=shuffle), None)[0]
    assert set(drawn) == set(range(samples))
    # A sampler fills the last round up, so that ranks draw equal numbers.
    assert sum(Counter(drawn).values()) - samples < max(last, *(ranks for ranks, _ in parts))


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (6, 3), (3, 1)])
def test_an_epoch_whose_ranks_divide_it_is_exact_with_batches_of_another_size(before, after):
    drawn, position, _ = draw(feeds(before, 1200, 4, None), 25)
    rest, position, _ = draw(feeds(after, 1200, 2, position), 10)
    more = draw(feeds(after, 1200, 2, position), None)[0]
    assert sorted(drawn + rest + more) == list(range(1200))


def test_the_next_epoch_is_whole_and_its_own(caplog: pytest.LogCaptureFixture) -> None:
    position = draw(feeds(2, 24, 2, None), 3)[1]
    for feed in (found := feeds(4, 24, 2, position)):
        feed.position.resized = "said of loaders whose order is not known"
        feed.warn_of_limits(Reporter(None, 0))
    assert "order is not known" not in caplog.text
    epochs: list[list[int]] = [[], []]
    for feed in found:
        for batch in feed.batches(2):
            epochs[feed.position.epoch].extend(batch.tolist())
    assert len(epochs[0]) == 12
    assert sorted(epochs[1]) == list(range(24))
    alone = feeds(4, 24, 2, pickle.dumps(Position(epoch=1, first_epoch=1)))
    assert sorted(draw(alone, None)[0]) == sorted(epochs[1])


def test_a_split_of_another_kind_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Own(DistributedSampler):
        pass

    loader = DataLoader(range(8), batch_sampler=BatchSampler(Own(range(8), 2, 0), 2, False))
    feed = Feed(loader, position=Position(resized="samples of this epoch are left out"))
    feed.warn_of_limits(Reporter(None, 0))
    assert "samples of this epoch are left out" in caplog.text
    assert feed.snapshot().resized == ""


def in_numbers(ranks: int, samples: int, batch: int, epoch: int) -> dict[int, set[int]]:
    """The samples of each batch of an epoch, as so many ranks draw them."""
    found: dict[int, set[int]] = {}
    begin = pickle.dumps(Position(epoch=epoch, first_epoch=epoch))
    for feed in feeds(ranks, samples, batch, begin):
        for drawn in feed.batches(1):
            found.setdefault(feed.position.batch, set()).update(drawn.tolist())
    return found


@settings(max_examples=80)
@given(
    st.integers(12, 60),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=2, max_size=4),
    st.integers(0, 20),
    st.integers(0, 3),
    st.integers(0, 1),
)
def test_a_quarantine_names_the_same_samples_at_any_number_of_ranks(
    samples: int,
    batch: int,
    parts: list[tuple[int, int]],
    first: int,
    more: int,
    epoch: int,
) -> None:
    """In this epoch, or in the next one, which begins with other ranks than the run."""
    began = parts[0][0]
    of_epoch = in_numbers(began, samples, batch, epoch)
    first = first % len(of_epoch) + 1
    bad = set().union(*(of_epoch.get(n, set()) for n in range(first, first + more + 1)))
    before, position = 0, None
    if epoch:
        found = feeds(began, samples, batch, None)
        before = max(len(list(feed.batches(1))) for feed in found)
        position, parts = pickle.dumps(found[0].position), parts[1:]
    skip = ((before + first, before + first + more),)
    drawn: list[int] = []
    for ranks, batches in [*parts, (parts[-1][0], 1000)]:
        found = feeds(ranks, samples, batch, position, skip)
        mine = [list(itertools.islice(feed.batches(epoch + 1), batches)) for feed in found]
        drawn += [int(sample) for rank in mine for b in rank for sample in b]
        position = pickle.dumps(found[0].snapshot())
        assert len({len(rank) for rank in mine}) == 1
        if len(mine[0]) < batches:
            break
    most = max(ranks for ranks, _ in [*parts, (began, 0)])
    order = DistributedSampler(range(samples), 1, 0, seed=3)
    order.set_epoch(epoch)
    filling = set(itertools.islice(order, most))  # by the sampler, at the end of an epoch
    assert not (bad - filling) & set(drawn)
    # A batch with a bad sample is left out whole, and nothing else is.
    left_out = set(range(samples)) - set(drawn) - bad
    assert len(left_out) <= 2 * most * batch
    if len({ranks for ranks, _ in [*parts, (began, 0)]}) == 1:
        assert left_out == set()


def test_numbers_go_on_as_if_the_ranks_had_not_changed() -> None:
    position = draw(feeds(2, 48, 2, None), 3)[1]  # 12 samples in batches of 4: numbers 1 to 3
    found = {}
    for ranks in (1, 2, 4):
        feed = feeds(ranks, 48, 2, position)[0]
        found[ranks] = [feed.position.batch for _ in feed.batches(2)]
    assert found[2] == list(range(4, 25))
    assert found[4] == [5, 7, 9, 11, 12, 14, 16, 18, 20, 22, 24]
    assert found[1] == sorted([*range(4, 25)] * 2)


def test_a_script_that_calls_steps_once_per_epoch_keeps_the_numbers() -> None:
    calls, batch, numbers = Calls(), 0, []
    for ranks in (2, 4, 1):
        position, _ = calls.begin(None, batch, {})
        feed = feeds(ranks, 24, 2, pickle.dumps(position), skip=((8, 8), (14, 14)))[0]
        numbers.append([feed.position.batch for _ in feed.batches(1)])
        batch = feed.position.batch
        calls.end(feed)
    assert numbers == [[1, 2, 3, 4, 5, 6], [10, 12], [13, 13, 15, 15, 16, 16, 17, 17, 18, 18]]
