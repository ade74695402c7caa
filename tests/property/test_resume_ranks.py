"""An epoch that is resumed by other numbers of ranks: no sample comes twice or never."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from babysit.data import Feed, Position
from babysit.reporter import Reporter

torch = pytest.importorskip("torch")
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler  # noqa: E402


def feeds(
    ranks: int, samples: int, batch: int, position: bytes | None, **sampler: Any
) -> list[Feed]:
    """One feed for each rank, from a saved position on."""
    made = []
    for rank in range(ranks):
        order = DistributedSampler(range(samples), ranks, rank, seed=3, **sampler)
        loader = DataLoader(range(samples), batch_size=batch, sampler=order)
        made.append(Feed(loader, position=pickle.loads(position) if position else None))
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
