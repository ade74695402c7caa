"""Any entity the core can make comes back from the database as it was."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import itertools
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from jobs.spec import RunSpec
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.messages.events import EVENT, FindingRaised
from orchestrator.core.model.entities import Run
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.database.engine import to_text
from orchestrator.database.mapping import MAPPED, Mapped
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from tests.database_data import NOW, RUN, entry, lead, run

text = st.text(max_size=12)
# A process can be given no NUL, and a spec with one is refused.
argument = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
variable = argument.filter(lambda name: name and "=" not in name)
times = st.datetimes(
    min_value=dt.datetime(1971, 1, 1),  # noqa: DTZ001 (hypothesis adds the zone)
    max_value=dt.datetime(2999, 1, 1),  # noqa: DTZ001
    timezones=st.just(dt.UTC),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | text
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
st.register_type_strategy(dt.datetime, times)
st.register_type_strategy(
    RunSpec,
    st.builds(
        RunSpec,
        name=st.from_regex(r"\A[a-z0-9]{1,20}\Z"),
        command=st.lists(argument, min_size=1, max_size=3).map(tuple),
        env=st.dictionaries(variable, argument, max_size=2),
        preload=st.just(("torch",)),
        max_runtime=st.none() | st.floats(1, 1e6),
    ),
)


def dictionaries(kind: Any) -> st.SearchStrategy[Any]:
    """Mappings are dictionaries here, not ChainMaps and the like."""
    keys, values = typing.get_args(kind)
    return st.dictionaries(st.from_type(keys), st.from_type(values), max_size=3)


st.register_type_strategy(Mapping, dictionaries)  # type: ignore[type-abstract]


def same(one: Any, other: Any) -> bool:
    """Equality under which a NaN equals a NaN."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 (NaN)


def through_json(mapped: Mapped[Any], entity: Any) -> Any:
    """As the engine's JSON columns do it."""
    return mapped.entity_of(from_json(to_text(mapped.row(entity)["body"])))


@pytest.mark.parametrize("mapped", MAPPED, ids=lambda mapped: mapped.entity.__name__)
def test_every_entity_comes_back_as_it_was(mapped: Mapped[Any]) -> None:
    overrides = {"evidence": st.dictionaries(text, json_values, max_size=3)}
    names = {field.name for field in fields(mapped.entity)}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.builds(mapped.entity, **{k: v for k, v in overrides.items() if k in names}))
    def check(entity: Any) -> None:
        back = through_json(mapped, entity)
        assert same(back, entity)
        assert type(back) is type(entity)

    check()


def test_runs_come_back_from_the_database_as_they_were(database_url: str) -> None:
    numbers = itertools.count()
    plain = {"id": st.builds(lambda: f"01JRUN{next(numbers):020}"), "name": st.just("tiny")}
    with asyncio.Runner() as runner:
        store = runner.run(SqlStore.open(database_url))
        epoch = runner.run(lead(store))

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.builds(Run, **plain, attempt=st.integers(0, 2**40)))
        def check(run: Run) -> None:
            runner.run(store.commit(Batch(entities=[run]), epoch=epoch))
            back = runner.run(store.run(run.id))
            assert same(back, run)

        try:
            check()
        finally:
            runner.run(store.close())


async def test_numbers_that_json_lacks_come_back(database_url: str) -> None:
    """A loss may be NaN or infinite, and so may what is told of it."""
    nan, infinite = float("nan"), float("inf")
    finding = Finding(
        kind=FindingKind.NON_FINITE,
        severity=Severity.CRITICAL,
        attempt=1,
        onset_step=3,
        detected_step=3,
        onset_time=nan,
        detected_time=infinite,
        reason="the loss is not a number",
        evidence={"loss": nan},
    )
    event = FindingRaised(id="E1", at=NOW, run=RUN, attempt=1, finding=finding)
    ledger = Ledger(since=NOW, seconds={Bucket.LOST: nan, Bucket.STALLED: infinite})
    store = await SqlStore.open(database_url)
    try:
        batch = Batch(
            entities=[run(ledger=ledger)],
            journal=[entry("E1", payload=event.model_dump())],
        )
        await store.commit(batch, epoch=await lead(store))
        assert same((await store.run(RUN)).ledger, ledger)
        payload = (await store.journal())[0].payload
        back = EVENT.validate_python(payload)
        assert isinstance(back, FindingRaised)
        assert repr(back.finding.onset_time) == "nan"
        assert back.finding.detected_time == infinite
        assert back.finding.evidence == {"loss": "NaN"}  # free-form: the word stays
    finally:
        await store.close()
