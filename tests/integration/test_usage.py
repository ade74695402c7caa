"""`babysit usage`: what the stores give, and the API and the command make of it."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.spec import RunSpec
from orchestrator.core.model.states import AttemptState, RunState, WorkerState
from orchestrator.core.views.usage import By, summed, usage_of
from orchestrator.database import retention
from orchestrator.database.port import Batch, Store
from orchestrator.database.sql_store import SqlStore
from tests.cli import babysit, connect, data
from tests.database_data import DAY, NOW, attempt, begin, entry, lead, run, worker
from tests.plane import RUN_ID, SECRET, Plane, at, attempts, finished, spec


def run_id(number: int) -> str:
    return f"01JRUN00000000000000000{number:03}"


async def filled(store: Store) -> None:
    """Five runs, one a day, each of one worker for two hours; the last is not over."""
    await begin(store)
    epoch = await lead(store)
    for number in range(5):
        id_, starts = run_id(number), NOW + number * DAY
        ends = starts + dt.timedelta(hours=2)
        over = {"state": RunState.SUCCEEDED, "ended_at": ends} if number < 4 else {}
        gone = {"state": WorkerState.ENDED, "ended_at": ends} if number < 4 else {}
        past = {"state": AttemptState.ENDED, "ended_at": ends} if number < 4 else {}
        owned = run(id_, f"run-{number}", submitted_at=starts, attempt=1)
        entities: list[Any] = [
            dataclasses.replace(owned, **over),
            attempt(run=id_, started_at=starts, first_step_at=starts, **past),
            worker(f"w{number}", id_, launched_at=starts, **gone),
        ]
        told = [entry(f"E{number}", id_, at=starts)]
        await store.commit(Batch(entities=entities, journal=told), epoch=epoch)


async def test_a_store_gives_the_runs_of_a_period_in_pages(store: Store) -> None:
    await filled(store)
    end = NOW + 10 * DAY
    first = await store.usage_records(NOW + DAY, end, limit=2)
    assert [each.run.id for each in first] == [run_id(1), run_id(2)]
    rest = await store.usage_records(NOW + DAY, end, after=run_id(2), limit=2)
    assert [each.run.id for each in rest] == [run_id(3), run_id(4)]
    assert [worker.id for worker in rest[0].workers] == ["w3"]
    assert [attempt.number for attempt in rest[0].attempts] == [1]
    assert await store.usage_records(NOW - DAY, NOW) == []
    past = await store.usage_records(NOW + dt.timedelta(hours=2), NOW + DAY)
    assert run_id(0) not in {each.run.id for each in past}


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(database_url)
    yield opened
    await opened.close()


async def test_usage_of_the_past_does_not_change_with_retention(sql: SqlStore) -> None:
    await filled(sql)
    now = NOW + 40 * DAY

    async def total() -> int:
        records = await sql.usage_records(NOW, now)
        found = summed((usage_of(each, NOW, now, now) for each in records[:4]), By.RUN)
        return sum(each.node_time.total() for each in found.values())

    before = await total()
    assert before == 4 * 2 * 3_600_000_000
    removed = await retention.prune(sql._database, until=now - 30 * DAY, now=now)
    assert (removed.runs, removed.journal) == (4, 4)
    assert await total() == before


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        need = {"resources": {"nodes": 2, "gpus_per_node": 4}, "project": "vision"}
        large = RunSpec.model_validate({**spec().model_dump(), **need})
        for number, (key, owner) in enumerate((("A", "ann"), ("B", "mia"))):
            id_ = f"01JNB0000000000000000000{key}A"
            _, second = attempts()
            one = dataclasses.replace(
                second,
                run=id_,
                number=1,
                restart=None,
                first_step_at=at(3600),
                started_at=at(0),
                ended_at=None,
                state=AttemptState.RUNNING,
            )
            alive = dataclasses.replace(
                running.do(running.store.run(RUN_ID)),
                id=id_,
                name=f"big-{key.lower()}",
                spec=large,
                owner=owner,
                attempt=1,
                state=RunState.RUNNING,
                ended_at=None,
            )
            held = [worker(f"{key}{i}", id_, node=f"n{i}", launched_at=at(0)) for i in range(2)]
            gone = [
                dataclasses.replace(each, state=WorkerState.ENDED, ended_at=at(7200 * (number + 1)))
                for each in held
            ]
            running.write(entities=[alive, one, *held])
            running.write(
                entities=[
                    dataclasses.replace(
                        one, state=AttemptState.ENDED, ended_at=at(7200 * (number + 1))
                    ),
                    *gone,
                    dataclasses.replace(
                        alive, state=RunState.SUCCEEDED, ended_at=at(7200 * (number + 1))
                    ),
                ]
            )
        yield running


PERIOD = ("--since", "2026-03-01", "--until", "2026-03-02")


def test_the_command_sums_by_any_key(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(plane, monkeypatch, tmp_path)
    by_user = data("usage", "--by", "user", *PERIOD)
    assert {row["key"]: row["gpu_hours"] for row in by_user["rows"]} == {"mia": 32.0, "ann": 16.0}
    assert by_user["total"]["gpu_hours"] == 48.0
    assert by_user["rows"][1]["causes"] == {"productive": 8.0, "starting": 8.0}
    for key in ("project", "queue", "user", "cause", "run"):
        found = data("usage", "--by", key, *PERIOD)
        assert sum(row["gpu_hours"] for row in found["rows"]) == 48.0
        assert sum(sum(row["causes"].values()) for row in found["rows"]) == 48.0
    clipped = data("usage", "--since", "2026-03-01T04:12", "--until", "2026-03-01T05:12")
    assert clipped["total"]["gpu_hours"] == 16.0, "03:12 is the start; both ran from 1 h to 2 h"
    shown = babysit("usage", "--by", "project", *PERIOD).stdout
    assert "vision" in shown
    assert "48.0" in shown
    text = babysit("usage", "--by", "run", "-o", "csv", *PERIOD).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["big-b", "big-a"]
    uses = ("productive", "checkpointing", "unknown", "starting", "waiting", "stopping", "lost")
    for row in rows:
        assert sum(float(row[use]) for use in uses) == float(row["gpu_hours"])
    assert data("usage", "--since", "2020-01-01", "--until", "2020-02-01")["rows"] == []
    assert babysit("usage", "--since", "2026-03-02", "--until", "2026-03-01").exit_code == 2


def test_a_caller_sees_the_usage_of_its_projects(plane: Plane) -> None:
    with httpx.Client(base_url=f"{plane.url}/api/v1", trust_env=False) as client:
        made = client.post(
            "/tokens",
            headers={"Authorization": f"Bearer {SECRET}"},
            json={"name": "u", "role": "viewer", "projects": ["llm"]},
        ).json()
        found = client.get(
            "/usage",
            headers={"Authorization": f"Bearer {made['secret']}"},
            params={"since": "2026-03-01T00:00:00Z", "until": "2026-03-02T00:00:00Z"},
        ).json()
    assert found["total"]["gpu_hours"] == 0.0


def test_a_name_is_no_formula_for_a_spreadsheet() -> None:
    from orchestrator.cli import usage

    row = {"key": "=cmd()", "name": "+1", "runs": 1, "gpu_hours": 0.0, "node_hours": 0.0}
    text = usage._csv({"by": "user", "rows": [{**row, "causes": {}}]})
    assert "'=cmd(),'+1,1" in text
