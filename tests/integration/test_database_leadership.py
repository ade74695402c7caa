"""The lease: one leader at a time, and a deposed one writes nothing."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from orchestrator.database.port import Batch, Store
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import LeadershipLostError
from tests.database_data import NOW, RUN, begin, columns, entry, lead, run, samples

LATER = NOW + dt.timedelta(seconds=31)


async def test_a_lease_is_held_renewed_and_taken_over(store: Store) -> None:
    assert await store.leader() is None
    first = await store.acquire("a", 30.0, NOW)
    assert first is not None
    assert first.expires_at == NOW + dt.timedelta(seconds=30)
    assert await store.leader() == first
    assert await store.acquire("b", 30.0, NOW) is None

    renewed = await store.acquire("a", 30.0, NOW + dt.timedelta(seconds=20))
    assert renewed is not None
    assert renewed.epoch == first.epoch
    assert await store.acquire("b", 30.0, LATER) is None  # thanks to the renewal

    taken = await store.acquire("b", 30.0, LATER + dt.timedelta(seconds=20))
    assert taken is not None
    assert taken.epoch > first.epoch
    assert await store.acquire("a", 30.0, LATER + dt.timedelta(seconds=20)) is None


async def test_a_released_lease_is_free_and_its_epoch_is_over(store: Store) -> None:
    epoch = await lead(store, "a")
    await store.release("a", epoch)
    assert await store.leader() is None
    again = await lead(store, "a")
    assert again > epoch
    await store.release("a", epoch)  # of an old epoch: changes nothing
    await store.release("b", again)  # of another: likewise
    leader = await store.leader()
    assert leader is not None
    assert (leader.holder, leader.epoch) == ("a", again)


async def test_force_takes_a_lease_that_has_not_expired(store: Store) -> None:
    epoch = await lead(store, "dead")
    lease = await store.acquire("new", 30.0, NOW, force=True)
    assert lease is not None
    assert lease.epoch > epoch


@pytest.mark.parametrize("how", ["taken over", "released", "never led"])
async def test_a_deposed_leader_writes_nothing(store: Store, how: str) -> None:
    epoch = await begin(store)
    await store.commit(Batch(outbox=[]), epoch=epoch)
    if how == "taken over":
        assert await store.acquire("b", 30.0, LATER)
    elif how == "released":
        await store.release("server-1", epoch)
        await lead(store, "b")
    else:
        epoch += 1
    snapshot = await store.load()
    batch = Batch(
        entities=[run("01JNEW", "new")],
        journal=[entry("E1")],
        samples=[samples(columns(1, 9))],
        sequences={"w1": 5},
    )
    with pytest.raises(LeadershipLostError, match="nothing was written"):
        await store.commit(batch, epoch=epoch)
    with pytest.raises(LeadershipLostError):
        await store.carried_out(["E1.1"], epoch=epoch)
    assert await store.load() == snapshot
    assert await store.journal() == []
    assert await store.sample_total(RUN) == 0


async def test_of_many_who_race_for_the_lease_one_wins(database_url: str) -> None:
    stores = [await SqlStore.open(database_url) for _ in range(4)]
    epochs: list[int] = []
    try:
        for round_ in range(8):
            now = NOW + round_ * dt.timedelta(minutes=1)
            leases = await asyncio.gather(
                *(store.acquire(f"{i}-{round_}", 30.0, now) for i, store in enumerate(stores))
            )
            won = [lease for lease in leases if lease is not None]
            assert len(won) == 1
            epochs.append(won[0].epoch)
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert epochs == sorted(set(epochs))


async def test_a_commit_and_a_take_over_at_once_leave_one_story(database_url: str) -> None:
    """Whatever the order: what the old leader wrote, it wrote before the new one began."""
    old, new = await SqlStore.open(database_url), await SqlStore.open(database_url)
    try:
        for round_ in range(10):
            now = NOW + round_ * dt.timedelta(minutes=1)
            lease = await old.acquire(f"old-{round_}", 30.0, now, force=True)
            assert lease is not None
            written, taken = await asyncio.gather(
                old.commit(Batch(journal=[entry(f"E{round_}")]), epoch=lease.epoch),
                new.acquire(f"new-{round_}", 30.0, now, force=True),
                return_exceptions=True,
            )
            assert not isinstance(taken, BaseException)
            ids = {each.id for each in await new.journal()}
            assert (f"E{round_}" in ids) == (not isinstance(written, LeadershipLostError))
            with pytest.raises(LeadershipLostError):
                await old.commit(Batch(journal=[entry(f"late{round_}")]), epoch=lease.epoch)
    finally:
        await old.close()
        await new.close()
