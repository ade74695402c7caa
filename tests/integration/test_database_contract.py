"""What every implementation of the run database does."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from babysit.wire import Tier
from jobs.commands import StopAttempt
from monitors.types import Severity
from orchestrator.core.messages.instructions import LaunchWorker, Notify, Record, SendCommand
from orchestrator.core.model.entities import Fleet, Node, Queue
from orchestrator.core.model.states import (
    AttemptState,
    IncidentState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.database.credentials import Scope, Session
from orchestrator.database.ended_runs import place_of
from orchestrator.database.port import Batch, FindingRecord, Store
from orchestrator.database.sessions import MOST_KEPT
from orchestrator.errors import InvalidError, InvariantError, NotFoundError
from tests.database_data import (
    DAY,
    NOW,
    RUN,
    attempt,
    begin,
    checkpoint,
    entry,
    incident,
    lead,
    run,
    shard,
    worker,
)
from tests.plane import restart

ENDED = {"state": RunState.SUCCEEDED, "ended_at": NOW}


def launch(key: str = "E1.1") -> LaunchWorker:
    return LaunchWorker(id=key, cause="E1", run=RUN, reason="a node is free", worker="w1", node="n")


async def test_an_empty_database_has_nothing_to_go_on_with(store: Store) -> None:
    snapshot = await store.load()
    assert snapshot.runs == snapshot.attempts == snapshot.workers == snapshot.outbox == []
    assert snapshot.fleet == Fleet()
    assert snapshot.sequences == {}


async def test_load_gives_back_what_was_committed(store: Store) -> None:
    epoch = await begin(store)
    node = Node(id="node-1", labels={"rack": "r1"}, by="ann", state=NodeState.CORDONED)
    queue = Queue(name="default", gpus=8)
    fleet = Fleet(hold="the storage is down", hold_by="ann")
    tell = SendCommand(
        id="E1.2",
        cause="E1",
        run=RUN,
        reason="",
        worker="w1",
        command=StopAttempt(id="E1.2", attempt=1, grace_seconds=3),
    )
    await store.commit(
        Batch(
            entities=[fleet, node, queue, checkpoint(), incident()],
            outbox=[launch(), tell],
            sequences={"w1": 7},
        ),
        epoch=epoch,
    )
    snapshot = await store.load()
    assert snapshot.runs == [run(attempt=1)]
    assert snapshot.attempts == [attempt()]
    assert snapshot.workers == [worker()]
    assert snapshot.nodes == [node]
    assert snapshot.queues == [queue]
    assert snapshot.fleet == fleet
    assert snapshot.checkpoints == [checkpoint()]
    assert snapshot.incidents == [incident()]
    assert snapshot.sequences == {"w1": 7}
    assert snapshot.outbox == [launch(), tell]


async def test_load_leaves_out_what_is_over(store: Store) -> None:
    epoch = await begin(store)
    over = run("01JOTHER00000000000000BBBB", "old", **ENDED)
    entities = [
        over,
        attempt(1, over.id, state=AttemptState.ENDED),
        worker("w9", over.id, state=WorkerState.ENDED),
        checkpoint(run=over.id),
        incident("01JOLD", over.id),
        attempt(1, state=AttemptState.ENDED),
        attempt(2),
        checkpoint(40, deleted_at=NOW, removed_at=NOW),
        incident("01JRESOLVED", state=IncidentState.RESOLVED),
        worker("w2", state=WorkerState.ENDED),
    ]
    await store.commit(Batch(entities=entities), epoch=epoch)
    snapshot = await store.load()
    assert [each.id for each in snapshot.runs] == [RUN]
    assert snapshot.attempts == [attempt(2)]
    assert [each.id for each in snapshot.workers] == ["w1"]
    assert snapshot.checkpoints == snapshot.incidents == []


async def test_an_ended_run_is_not_over_while_a_worker_is_left(store: Store) -> None:
    epoch = await begin(store)
    ended = run(attempt=1, **ENDED)
    await store.commit(Batch(entities=[ended, attempt(state=AttemptState.ENDED)]), epoch=epoch)
    assert (await store.load()).runs == [ended]
    await store.commit(Batch(entities=[worker(state=WorkerState.ENDED)]), epoch=epoch)
    assert (await store.load()).runs == []


async def test_outbox_entries_stay_until_carried_out_and_do_not_come_back(store: Store) -> None:
    epoch = await begin(store)
    notify = Notify(
        id="E2.1",
        cause="E2",
        run=None,
        reason="r",
        severity=Severity.INFO,
        text="hi",
        incident_kind="hang",
    )
    batch = Batch(outbox=[launch(), notify])
    await store.commit(batch, epoch=epoch)
    assert (await store.load()).outbox == [launch(), notify]
    await store.carried_out(["E1.1"], epoch=epoch)
    assert (await store.load()).outbox == [notify]
    await store.commit(batch, epoch=epoch)
    assert (await store.load()).outbox == [notify]


async def test_a_record_does_not_belong_into_the_outbox(store: Store) -> None:
    epoch = await begin(store)
    record = Record(id="E1.9", cause="E1", run=RUN, reason="budget earned back")
    with pytest.raises(InvariantError):
        await store.commit(Batch(outbox=[record]), epoch=epoch)


async def test_journal_keeps_order_and_takes_each_id_once(store: Store) -> None:
    epoch = await begin(store)
    first = [
        entry("E1", payload={"loss": 2.5, "nested": [1, None]}, reason="ümlaut"),
        entry("E1.1", kind="instruction", name="send_command", cause="E1", attempt=1),
        entry("E2", run=None, name="capacity_changed"),
    ]
    await store.commit(Batch(journal=first), epoch=epoch)
    await store.commit(Batch(journal=[entry("E1", reason="again"), entry("E3")]), epoch=epoch)

    written = await store.journal()
    assert [each.id for each in written] == ["E1", "E1.1", "E2", "E3"]
    assert [dataclasses.replace(each, position=0) for each in written[:3]] == first
    positions = [each.position for each in written]
    assert positions == sorted(set(positions))
    assert [each.id for each in await store.journal(RUN)] == ["E1", "E1.1", "E3"]
    assert [each.id for each in await store.journal(after=positions[1])] == ["E2", "E3"]
    assert [each.id for each in await store.journal(limit=2)] == ["E1", "E1.1"]
    assert [each.id for each in await store.journal(kind="instruction")] == ["E1.1"]
    assert await store.journal_of("E1") == written[:2]
    assert await store.journal_of("E") == []


async def test_text_that_a_log_may_hold_is_taken(store: Store) -> None:
    epoch = await begin(store)
    odd = entry("E1", reason="before\x00after", payload={"line": "a\x00b", "😀": "\u2028"})
    await store.commit(
        Batch(journal=[odd], entities=[incident(evidence={"line": "\x00"})]), epoch=epoch
    )
    assert (await store.journal())[0].payload == odd.payload
    assert (await store.incident(incident().id)).evidence == {"line": "\x00"}


async def test_findings_are_taken_once(store: Store) -> None:
    epoch = await begin(store)
    finding = FindingRecord(
        id="F1", run=RUN, attempt=1, at=NOW, kind="hang", severity="critical", body={"z": 11.0}
    )
    await store.commit(Batch(findings=[finding]), epoch=epoch)
    await store.commit(Batch(findings=[finding]), epoch=epoch)


async def test_runs_are_found_by_id_prefix_and_name(store: Store) -> None:
    epoch = await lead(store)
    old = run("01JAAA0000000000000000AAAA", "tiny", submitted_at=NOW)
    new = run("01JAAA0000000000000000BBBB", "tiny", submitted_at=NOW + DAY)
    other = run("01JCCC0000000000000000CCCC", "huge-run")
    await store.commit(Batch(entities=[new, old, other]), epoch=epoch)

    assert await store.run(old.id) == old
    assert await store.run("01JAAA0000000000000000a") == old
    assert await store.run("01JC") == other
    assert await store.run("tiny") == new
    with pytest.raises(NotFoundError, match="2 runs"):
        await store.run("01JAA")
    with pytest.raises(NotFoundError, match="huge-run"):
        await store.run("hugerun")
    for hopeless in ("01J", "%", "", "01J%", "_"):
        with pytest.raises(NotFoundError):
            await store.run(hopeless)


async def test_runs_are_listed_newest_first(store: Store) -> None:
    epoch = await lead(store)
    listed = [
        run("01JA", "a", submitted_at=NOW),
        run("01JB", "b", submitted_at=NOW + dt.timedelta(microseconds=1), **ENDED),
        run("01JC", "a", submitted_at=NOW + DAY, state=RunState.HELD),
    ]
    await store.commit(Batch(entities=listed), epoch=epoch)
    assert [each.id for each in await store.runs()] == ["01JC", "01JB", "01JA"]
    assert [each.id for each in await store.runs(name="a")] == ["01JC", "01JA"]
    assert [each.id for each in await store.runs(limit=1)] == ["01JC"]
    states = [RunState.QUEUED, RunState.HELD]
    assert [each.id for each in await store.runs(states=states)] == ["01JC", "01JA"]


async def test_ended_runs_are_read_in_the_order_of_their_ends(store: Store) -> None:
    epoch = await lead(store)
    ends = {"01JA": NOW + DAY, "01JB": NOW + 2 * DAY, "01JC": NOW + DAY, "01JD": None}
    runs = [
        run(id_, f"run-{id_.lower()}", **({**ENDED, "ended_at": at} if at else {}))
        for id_, at in ends.items()
    ]
    again = attempt(2, run="01JA", state=AttemptState.ENDED, restart=restart())
    first = attempt(1, run="01JA", state=AttemptState.ENDED)
    await store.commit(Batch(entities=[*runs, first, again]), epoch=epoch)
    first_page = await store.ended_runs(None, limit=2)
    assert [each.id for each in first_page] == ["01JA", "01JC"]
    rest = await store.ended_runs(place_of(first_page[-1]), limit=2)
    assert [each.id for each in rest] == ["01JB"]
    assert await store.ended_runs(place_of(rest[-1]), limit=2) == []
    from_then = await store.ended_runs((NOW + DAY, ""), limit=9)
    assert [each.id for each in from_then] == ["01JA", "01JC", "01JB"]
    assert await store.restarts(["01JA", "01JB"]) == {"01JA": [restart()]}
    assert await store.restarts([]) == {}


async def test_attempts_and_workers_of_a_run(store: Store) -> None:
    epoch = await begin(store)
    gone = worker("w2", state=WorkerState.ENDED, launched_at=NOW + DAY)
    await store.commit(
        Batch(entities=[attempt(2), attempt(1, state=AttemptState.FENCED), gone]), epoch=epoch
    )
    assert [each.number for each in await store.attempts(RUN)] == [1, 2]
    assert await store.workers(RUN) == [worker()]
    assert await store.workers(ended=True) == [worker(), gone]
    assert await store.workers("nobody") == []


async def test_checkpoints_and_their_shards(store: Store) -> None:
    epoch = await begin(store)
    done = checkpoint(40, trust=Trust.COMPLETE)
    memory = checkpoint(
        60, id=f"{RUN}/1/memory/60", tier=Tier.MEMORY, deleted_at=NOW, removed_at=NOW
    )
    shards = [shard(1, done), shard(0, done)]
    await store.commit(Batch(entities=[checkpoint(20), done, memory], shards=shards), epoch=epoch)
    assert [each.step for each in await store.checkpoints(RUN)] == [40, 20]
    assert [each.step for each in await store.checkpoints(RUN, deleted=True)] == [60, 40, 20]
    found, reports = await store.checkpoint(done.id)
    assert found == done
    assert reports == [shards[1].shard, shards[0].shard]
    with pytest.raises(NotFoundError, match="no checkpoint"):
        await store.checkpoint("nothing")


async def test_incidents(store: Store) -> None:
    epoch = await begin(store)
    later = incident("01JLATER00000000000000WXYZ", opened_at=NOW + DAY)
    over = incident("01JOVER000000000000000QRST", state=IncidentState.RESOLVED)
    await store.commit(Batch(entities=[incident(), later, over]), epoch=epoch)
    assert await store.incidents() == [later, over, incident()]
    assert await store.incidents(RUN, open_only=True) == [later, incident()]
    assert await store.incidents(limit=1) == [later]
    assert await store.incidents("nobody") == []
    assert await store.incident("wxyz") == later
    assert await store.incident("01JL") == later
    assert await store.incident(over.id) == over
    with pytest.raises(NotFoundError):
        await store.incident("XYZ")
    with pytest.raises(NotFoundError):
        await store.incident("nothing-like-it")


def session(key: str, name: str = "ann", ends: dt.datetime = NOW + DAY) -> Session:
    return Session(
        hash=key,
        kind="token",
        opener="t1",
        name=name,
        role="operator",
        expires_at=ends,
        memo={"until": None},
    )


async def test_a_session_is_found_until_it_is_over_or_ended(store: Store) -> None:
    one = session("h1")
    await store.keep_session(one, NOW)
    assert await store.session("h1", NOW) == one
    assert await store.session("h2", NOW) is None
    assert await store.session("h1", NOW + DAY) is None
    changed = dataclasses.replace(one, role="viewer", memo={"refresh": "x"})
    await store.change_session(changed)
    assert await store.end_session("h1", NOW) == changed
    await store.change_session(changed)
    assert await store.end_session("h1", NOW) is None, "what has ended stays so"
    await store.keep_session(one, NOW)
    assert await store.end_session("h1", NOW + DAY) is None, "it is over"


async def test_sessions_of_one_name_never_push_those_of_another_out(store: Store) -> None:
    await store.keep_session(session("other", "mia"), NOW)
    for number in range(MOST_KEPT + 1):
        ends = NOW + dt.timedelta(seconds=number + 1)
        await store.keep_session(session(f"h{number:02}", ends=ends), NOW)
    assert await store.session("h00", NOW) is None
    assert await store.session("h01", NOW) is not None
    assert await store.session("other", NOW) is not None


async def test_tokens(store: Store) -> None:
    token, secret = await store.create_token("ci", "operator", NOW)
    other, _ = await store.create_token("ann", "admin", NOW + DAY)
    assert (token.name, token.role, token.created_at) == ("ci", "operator", NOW)
    assert await store.find_token(secret) == token
    assert await store.find_token(secret + "x") is None
    assert await store.tokens() == [token, other]

    await store.find_token(secret, NOW)
    await store.find_token(secret, NOW + dt.timedelta(seconds=59))
    assert [each.last_used_at for each in await store.tokens()] == [NOW, None]
    await store.find_token(secret, NOW + DAY)
    assert (await store.tokens())[0].last_used_at == NOW + DAY

    await store.revoke_token(token.id, NOW, "its key")
    await store.revoke_token(token.id, NOW + DAY, "another")
    revoked = (await store.tokens())[0]
    assert (revoked.revoked_at, revoked.revoked_by) == (NOW, "its key")
    found = await store.find_token(secret, NOW + 2 * DAY)
    assert found is not None
    assert not found.is_valid(NOW)
    assert found.last_used_at == NOW + DAY, "a use that is refused is no use"
    with pytest.raises(NotFoundError):
        await store.revoke_token("nothing", NOW)
    with pytest.raises(InvalidError, match="viewer"):
        await store.create_token("x", "root", NOW)


async def test_a_token_may_end_and_be_for_some_runs_only(store: Store) -> None:
    scope = Scope(projects=("llm", "vision"), queues=("research",))
    made, secret = await store.create_token(
        "ci", "operator", NOW, expires_at=NOW + DAY, scope=scope
    )
    found = await store.find_token(secret)
    assert found == made
    assert (found.expires_at, found.scope) == (NOW + DAY, scope)
    assert found.is_valid(NOW + DAY - dt.timedelta(microseconds=1))
    assert not found.is_valid(NOW + DAY)
    assert scope.covers("llm", "research")
    assert not scope.covers("llm", "default")
    assert not scope.covers("speech", "research")


async def test_the_signing_key_is_made_once(store: Store) -> None:
    key = await store.signing_key()
    assert len(key) >= 32
    assert await store.signing_key() == key


OVER = run(attempt=1, **ENDED)
BROKEN = {  # what is there already, and what must then be refused
    "two live attempts": ([], [attempt(4), attempt(5)]),
    "a second live attempt": ([attempt(4)], [attempt(5)]),
    "an older attempt": ([attempt(5, state=AttemptState.ENDED)], [attempt(4)]),
    "life after the end of a run": ([OVER], [run(attempt=1, state=RunState.RUNNING)]),
    "another end of a run": ([OVER], [run(attempt=1, state=RunState.FAILED)]),
    "an attempt number that falls": ([OVER], [run(attempt=0, **ENDED)]),
    "life after the end of an attempt": ([], [attempt(3, state=AttemptState.RUNNING)]),
    "life after the end of a worker": ([], [worker("w2", state=WorkerState.READY)]),
    "an incident that opens again": ([], [incident(state=IncidentState.OPEN)]),
    "complete without shards": ([], [checkpoint(20, trust=Trust.COMPLETE)]),
    "good without all shards": ([], [checkpoint(40, trust=Trust.GOOD)]),
    "bad, then good": ([], [checkpoint(60, trust=Trust.GOOD)]),
    "an attempt of no run": ([], [attempt(run="nothing")]),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_breaks_an_invariant_is_refused_as_a_whole(store: Store, what: str) -> None:
    epoch = await begin(store)
    there, broken = BROKEN[what]
    before = [
        attempt(1, state=AttemptState.ENDED),
        attempt(2, state=AttemptState.ENDED),
        attempt(3, state=AttemptState.FENCED),
        worker("w2", state=WorkerState.ENDED),
        incident(state=IncidentState.RESOLVED),
        checkpoint(20),
        checkpoint(40),
        checkpoint(60, trust=Trust.BAD),
        *there,
    ]
    half, full = checkpoint(40), checkpoint(60)
    shards = [shard(0, half), shard(0, full), shard(1, full)]
    await store.commit(Batch(entities=before, shards=shards), epoch=epoch)

    snapshot = await store.load()
    with pytest.raises(InvariantError):
        await store.commit(
            Batch(entities=broken, journal=[entry("E1")], outbox=[launch()]), epoch=epoch
        )
    assert await store.load() == snapshot
    assert await store.journal() == []


async def test_what_is_over_may_still_be_written_again_as_it_is(store: Store) -> None:
    epoch = await begin(store)
    done = checkpoint(20, trust=Trust.COMPLETE)
    batch = Batch(
        entities=[
            run(attempt=1, **ENDED),
            attempt(1, state=AttemptState.ENDED),
            worker(state=WorkerState.ENDED),
            done,
        ],
        shards=[shard(0, done), shard(1, done)],
        journal=[entry("E1")],
    )
    await store.commit(batch, epoch=epoch)
    await store.commit(batch, epoch=epoch)
    assert await store.run(RUN) == run(attempt=1, **ENDED)
    better = dataclasses.replace(done, trust=Trust.GOOD)
    await store.commit(Batch(entities=[better]), epoch=epoch)
    assert (await store.checkpoint(done.id))[0] == better


async def test_an_attempt_may_end_and_the_next_begin_in_one_batch(store: Store) -> None:
    epoch = await begin(store)
    for first, second in ((1, 2), (2, 3)):
        batch = Batch(entities=[attempt(second), attempt(first, state=AttemptState.ENDED)])
        await store.commit(batch, epoch=epoch)
    assert [each.state for each in await store.attempts(RUN)] == ["ended", "ended", "starting"]
