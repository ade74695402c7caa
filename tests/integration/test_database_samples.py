"""Samples: each once, none of an old attempt, and curves that are quick and right."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from orchestrator.core.model.states import AttemptState
from orchestrator.database.port import Batch, RunNumbers, Series, Store
from orchestrator.database.sample_rows import UNPACKED
from orchestrator.database.samples import CHUNK
from orchestrator.errors import InvalidError, InvariantError
from tests.database_data import RUN, attempt, begin, columns, run, samples, worker


async def next_attempt(store: Store, epoch: int, number: int) -> None:
    """End the attempt before, and start this one."""
    entities = [
        run(attempt=number),
        attempt(number - 1, state=AttemptState.ENDED),
        attempt(number),
    ]
    await store.commit(Batch(entities=entities), epoch=epoch)


async def test_samples_come_back_bit_for_bit(store: Store) -> None:
    epoch = await begin(store)
    sent = columns(1, 1300)
    sent.loss[7], sent.loss[8], sent.grad_norm[9] = math.nan, math.inf, -0.0
    cuts = [0, 1, 500, 513, 1024, 1300]  # reports that end in, at, and over chunks
    for sequence, (first, last) in enumerate(itertools.pairwise(cuts)):
        part = {
            name: value[first:last] if isinstance(value, list) else value
            for name, value in dict(sent).items()
        }
        piece = type(sent)(**part)
        batch = Batch(samples=[samples(piece)], sequences={"w1": sequence})
        assert await store.commit(batch, epoch=epoch) == 0
    ((number, found),) = await store.sample_tail(RUN, count=5000)
    assert number == 1
    assert found.step == sent.step
    assert found.batch == sent.batch
    for name in ("time", "loss", "grad_norm", "tokens", "seconds", "learning_rate"):
        expected, got = np.array(getattr(sent, name)), np.array(getattr(found, name))
        assert expected.tobytes() == got.tobytes(), name
    assert await store.sample_total(RUN) == 1300
    assert await store.sample_total(RUN, 1) == 1300
    assert await store.sample_total(RUN, 2) == 0


async def test_records_are_read_page_by_page_of_each_rank_and_attempt(store: Store) -> None:
    epoch = await begin(store)
    lost = columns(1, 40, rank=3)
    lost.loss[:] = [math.nan] * 40
    ranks = [samples(columns(1, 9000), lost)]
    await store.commit(Batch(samples=ranks, sequences={"w1": 0}), epoch=epoch)
    await next_attempt(store, epoch, 2)
    again = samples(columns(501, 520, loss=2.0), attempt=2)
    await store.commit(Batch(samples=[again], sequences={"w1": 1}), epoch=epoch)

    parts = await store.sample_parts(RUN)
    assert [tuple(part) for part in parts] == [
        (1, 0, 1, 9000, 9000, 9000),
        (1, 3, 1, 40, 40, 0),
        (2, 0, 501, 520, 20, 20),
    ]
    read: list[int] = []
    pages = 0
    while page := (await store.sample_page(RUN, 1, 0, after=read[-1] if read else -1)).step:
        read += page
        pages += 1
    assert read == list(range(1, 9001))
    assert pages == 3
    (newer,) = [await store.sample_page(RUN, 2, 0, after=510)]
    assert (newer.step, newer.loss) == (list(range(511, 521)), [2.0] * 10)
    assert (await store.sample_page(RUN, 7, 0)).step == []
    assert await store.sample_parts("nobody") == []


async def test_a_batch_that_comes_twice_is_stored_once(store: Store) -> None:
    epoch = await begin(store)
    batch = Batch(samples=[samples(columns(1, 20))], sequences={"w1": 3})
    for _ in range(3):
        assert await store.commit(batch, epoch=epoch) == 0
    older = Batch(samples=[samples(columns(1, 20))], sequences={"w1": 2})
    await store.commit(older, epoch=epoch)
    assert await store.sample_total(RUN) == 20
    assert (await store.load()).sequences == {"w1": 3}


async def test_reports_in_other_batches_than_before_are_stored_once(store: Store) -> None:
    """The outcome of a commit was lost; the retry carries newer reports as well."""
    epoch = await begin(store)
    await store.commit(Batch(entities=[worker("w2")]), epoch=epoch)

    def report(worker: str, rank: int, sequence: int) -> object:
        first = sequence * 10 + 1
        return samples(columns(first, first + 9, rank=rank), worker=worker, sequence=sequence)

    first = [report("w1", 0, 0), report("w1", 0, 1), report("w2", 1, 0)]
    await store.commit(Batch(samples=first, sequences={"w1": 1, "w2": 0}), epoch=epoch)
    second = [report("w1", 0, 1), report("w1", 0, 2), report("w2", 1, 0), report("w2", 1, 1)]
    await store.commit(Batch(samples=second, sequences={"w1": 2, "w2": 1}), epoch=epoch)
    assert await store.sample_total(RUN) == 50
    assert (await store.samples(RUN)).step == list(range(1, 31))


async def test_samples_of_an_old_attempt_are_refused_and_counted(store: Store) -> None:
    epoch = await begin(store)
    await next_attempt(store, epoch, 2)
    late = samples(columns(1, 7), columns(1, 5, rank=1), attempt=1)
    current = samples(columns(1, 3), attempt=2)
    future = samples(columns(1, 2), attempt=3)
    batch = Batch(samples=[late, current, future], sequences={"w1": 0})
    assert await store.commit(batch, epoch=epoch) == 12 + 2
    assert await store.sample_total(RUN) == 3


async def test_the_last_samples_of_an_attempt_may_come_with_its_end(store: Store) -> None:
    epoch = await begin(store)
    batch = Batch(
        entities=[run(attempt=2), attempt(1, state=AttemptState.ENDED), attempt(2)],
        samples=[samples(columns(1, 9), attempt=1), samples(columns(6, 8), attempt=2)],
        sequences={"w1": 0},
    )
    assert await store.commit(batch, epoch=epoch) == 0
    assert await store.sample_total(RUN, 1) == 9
    assert await store.sample_total(RUN, 2) == 3


async def test_a_report_of_an_unknown_worker_is_refused(store: Store) -> None:
    epoch = await begin(store)
    with pytest.raises(InvariantError, match="w7"):
        await store.commit(
            Batch(samples=[samples(columns(1, 3))], sequences={"w7": 0}), epoch=epoch
        )
    assert await store.sample_total(RUN) == 0


async def test_columns_of_unequal_length_are_refused(store: Store) -> None:
    epoch = await begin(store)
    broken = columns(1, 3).model_copy(update={"loss": [1.0]})
    with pytest.raises(InvalidError, match="1 values of loss for 3 steps"):
        await store.commit(Batch(samples=[samples(broken)]), epoch=epoch)
    assert await store.sample_total(RUN) == 0


async def test_a_column_that_was_not_sent_has_its_absent_value(store: Store) -> None:
    epoch = await begin(store)
    bare = columns(1, 2).model_copy(update={"grad_norm": [], "loss": [], "tokens": []})
    await store.commit(Batch(samples=[samples(bare)]), epoch=epoch)
    ((_, found),) = await store.sample_tail(RUN)
    assert found.grad_norm == [-1.0, -1.0]
    assert found.tokens == [0.0, 0.0]
    assert np.isnan(found.loss).all()


async def test_the_newest_attempt_wins_where_steps_repeat(store: Store) -> None:
    epoch = await begin(store)
    await store.commit(Batch(samples=[samples(columns(1, 100, loss=1.0))]), epoch=epoch)
    await next_attempt(store, epoch, 2)
    await store.commit(Batch(samples=[samples(columns(51, 70, loss=2.0), attempt=2)]), epoch=epoch)
    await next_attempt(store, epoch, 3)
    await store.commit(Batch(samples=[samples(columns(41, 60, loss=3.0), attempt=3)]), epoch=epoch)

    found = await store.samples(RUN)
    assert found.step == list(range(1, 101))
    expected = [1] * 40 + [3] * 20 + [2] * 10 + [1] * 30
    assert found.attempt == expected
    assert found.loss == [float(each) for each in expected]
    assert (await store.samples(RUN, attempt=1)).loss == [1.0] * 100
    assert (await store.samples(RUN, first_step=65)).step == list(range(65, 101))
    tail = await store.sample_tail(RUN, count=45)
    assert [(number, part.step) for number, part in tail] == [
        (1, list(range(96, 101))),
        (2, list(range(51, 71))),
        (3, list(range(41, 61))),
    ]


async def test_a_run_without_samples_has_an_empty_curve(store: Store) -> None:
    await begin(store)
    empty = Series(**{field.name: [] for field in dataclasses.fields(Series)})
    assert await store.samples(RUN) == empty
    assert await store.sample_tail(RUN) == []
    assert await store.sample_total(RUN) == 0
    assert await store.samples("nothing") == empty


async def test_a_thinned_curve_keeps_spikes_and_the_last_of_each_bucket(store: Store) -> None:
    epoch = await begin(store)
    sent = columns(1, 1000)
    sent.loss[123] = 99.0
    sent.loss[-1] = math.nan
    await store.commit(Batch(samples=[samples(sent)]), epoch=epoch)
    found = await store.samples(RUN, points=10)
    assert found.step == list(range(100, 1001, 100))
    assert found.loss_max[1] == 99.0
    assert found.loss_min[1] == 10 / 200
    assert found.missing == [0] * 9 + [1]
    assert found.loss[1] == 10 / 200
    assert math.isnan(found.loss[-1])
    assert found.loss_max[-1] == 10 / 901  # NaN does not hide the others
    assert found.seconds == pytest.approx([0.1] * 10)
    assert found.grad_norm[0] == 1 / 107
    assert found.time[0] == 1.7e9 + 100 / 3


async def test_a_long_run_is_drawn_from_summaries_as_from_its_samples(store: Store) -> None:
    """Long enough not to be unpacked; the same run, short, is checked above."""
    epoch = await begin(store)
    length = CHUNK * (UNPACKED + 10)
    spike = columns(1, length)
    spike.loss[CHUNK * 50 + 3] = 77.0
    spike.loss[CHUNK * 60 + 3] = 1e-9
    spike.loss[CHUNK * 70 + 3] = math.nan
    await store.commit(Batch(samples=[samples(spike)], sequences={"w1": 0}), epoch=epoch)
    await next_attempt(store, epoch, 2)
    back = length - 100  # the second attempt goes back into the middle of a chunk
    again = samples(columns(back + 1, length + 400, loss=5.0), attempt=2)
    await store.commit(Batch(samples=[again], sequences={"w1": 1}), epoch=epoch)

    found = await store.samples(RUN, points=length)
    assert found.step == sorted(set(found.step))
    by_step = dict(zip(found.step, zip(found.attempt, found.loss, strict=True), strict=True))
    assert by_step[back] == (1, 10 / back)
    assert all(number == 2 for step, (number, _) in by_step.items() if step > back)
    assert all(number == 1 for step, (number, _) in by_step.items() if step <= back)
    assert found.step[-1] == length + 400

    coarse = await store.samples(RUN, points=20)
    assert len(coarse.step) == 20
    assert max(coarse.loss_max) == 77.0
    assert min(coarse.loss_min) == 1e-9
    assert sum(coarse.missing) == 1
    assert sum(each >= 5.0 for each in coarse.loss_max) == 3  # step 1, the spike, attempt 2
    later = await store.samples(RUN, first_step=CHUNK * 3 + 5)
    assert later.step[0] >= CHUNK * 3 + 5


async def test_curves_are_those_of_the_lowest_rank_with_a_loss(store: Store) -> None:
    """In a pipeline only the last stage has one."""
    epoch = await begin(store)
    first, last = columns(1, 700), columns(1, 700)
    nothing, ones = [None] * len(first.step), [1.0] * len(first.step)
    first = first.model_copy(update={"rank": 0, "loss": nothing, "metrics": {"stage": ones}})
    last = last.model_copy(update={"rank": 3, "metrics": {"accuracy": ones}})
    await store.commit(Batch(samples=[samples(first), samples(last)]), epoch=epoch)
    series = await store.samples(RUN, points=50)
    assert not any(math.isnan(loss) for loss in series.loss)
    ((_, tail),) = await store.sample_tail(RUN, count=5)
    assert tail.rank == 3
    assert tail.loss == last.loss[-5:]
    assert list((await store.metrics(RUN)).metrics) == ["accuracy"]


async def test_metrics_come_back_thinned_with_the_newest_attempt_first(store: Store) -> None:
    epoch = await begin(store)
    count = CHUNK + 88
    sent = columns(1, count)
    accuracy = [step / 1000 if step % 10 == 0 else math.nan for step in sent.step]
    for first, last in ((0, 300), (300, len(sent.step))):  # the second part begins another name
        fields = {
            name: value[first:last] for name, value in dict(sent).items() if isinstance(value, list)
        }
        named = {"accuracy": accuracy[first:last]}
        if first:
            named["reward"] = [float(step) for step in sent.step[first:last]]
        part = type(sent)(rank=0, metrics=named, **fields)
        await store.commit(Batch(samples=[samples(part)]), epoch=epoch)
    whole = await store.metrics(RUN, points=10_000)
    told = {
        step: value
        for step, value in zip(whole.step, whole.metrics["accuracy"], strict=True)
        if not math.isnan(value)
    }
    assert told == {step: step / 1000 for step in sent.step if step % 10 == 0}
    assert whole.metrics["reward"][-1] == float(sent.step[-1])
    (newest,) = (await store.metrics(RUN, points=1)).metrics["accuracy"]
    assert newest == max(told.values())
    late = await store.metrics(RUN, first_step=sent.step[-1] - 5)
    assert min(late.step) >= sent.step[-1] - 5
    await next_attempt(store, epoch, 2)
    again = columns(100, 119)
    again = again.model_copy(update={"metrics": {"accuracy": [0.5] * len(again.step)}})
    await store.commit(Batch(samples=[samples(again, attempt=2)]), epoch=epoch)
    both = await store.metrics(RUN, points=10_000)
    at = both.step.index(110)
    assert (both.attempt[at], both.metrics["accuracy"][at]) == (2, 0.5)
    only = await store.metrics(RUN, attempt=1)
    assert set(only.attempt) == {1}


async def test_a_run_without_metrics_has_an_empty_series(store: Store) -> None:
    epoch = await begin(store)
    await store.commit(Batch(samples=[samples(columns(1, 20))]), epoch=epoch)
    assert (await store.metrics(RUN)).metrics == {}


async def test_the_newest_numbers_of_runs_are_those_of_the_rank_that_speaks(store: Store) -> None:
    """The newest attempt counts, though it is at a lower step."""
    epoch = await begin(store)
    silent = columns(1, 600, loss=math.nan)
    told = columns(1, 600, rank=3, loss=1.5)
    await store.commit(Batch(samples=[samples(silent, told)]), epoch=epoch)
    await next_attempt(store, epoch, 2)
    again = samples(columns(501, 510, rank=3), attempt=2)
    await store.commit(Batch(samples=[again]), epoch=epoch)
    none = run("01JRUN0000000000000000BBBB", "other")
    numbers = await store.run_numbers([run(attempt=2), none])
    assert numbers[RUN] == RunNumbers(step=510, loss=10 / 510)
    assert numbers[none.id] == RunNumbers()
    for count in (5, 20, 1000):
        tail = await store.sample_tail(RUN, count=count)
        assert await store.sample_tails([RUN, none.id], count=count) == {RUN: tail}
