"""The database's pure parts: URLs, errors, packing, names."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from sqlalchemy.dialects import sqlite

from orchestrator.database import samples as arrays
from orchestrator.database.columns import UtcDateTime
from orchestrator.database.driver_errors import describe
from orchestrator.database.engine import database_url, in_memory
from orchestrator.database.references import pick_run
from orchestrator.errors import InvalidError, NotFoundError


@pytest.mark.parametrize(
    ("given_url", "driver", "text"),
    [
        ("sqlite:////var/b.db", "sqlite+aiosqlite", "SQLite database /var/b.db"),
        ("sqlite+aiosqlite:///b.db", "sqlite+aiosqlite", "SQLite database b.db"),
        ("sqlite://", "sqlite+aiosqlite", "SQLite database in memory"),
        ("postgres://u:pw@h/d", "postgresql+psycopg", "PostgreSQL database d at h"),
        ("postgresql://h:5/d?password=pw", "postgresql+psycopg", "PostgreSQL database d at h:5"),
        ("postgresql:///d", "postgresql+psycopg", "PostgreSQL database d at the local socket"),
    ],
)
def test_urls(given_url: str, driver: str, text: str) -> None:
    url = database_url(given_url)
    assert url.drivername == driver
    assert describe(url) == text


def test_only_databases_in_memory_end_with_their_connection() -> None:
    assert in_memory(database_url("sqlite://"))
    assert in_memory(database_url("sqlite:///:memory:"))
    assert not in_memory(database_url("sqlite:///memory"))
    assert not in_memory(database_url("postgresql:///"))


@pytest.mark.parametrize(
    "url", ["mysql://u:hunter2@h/d", "hunter2", "", "postgresql://u:hunter2@h:x/d"]
)
def test_urls_that_are_none_are_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(InvalidError, match="expected sqlite:///path or postgresql://") as caught:
        database_url(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_times_are_kept_in_utc_to_the_microsecond() -> None:
    column = UtcDateTime()
    east = dt.timezone(dt.timedelta(hours=5, minutes=30))
    local = dt.datetime(2026, 3, 29, 2, 30, 0, 1, tzinfo=east)
    stored = column.process_bind_param(local, sqlite.dialect())
    assert stored == dt.datetime(2026, 3, 28, 21, 0, 0, 1, tzinfo=dt.UTC)
    back = column.process_result_value(stored.replace(tzinfo=None), sqlite.dialect())
    assert back == local
    assert back.utcoffset() == dt.timedelta(0)
    with pytest.raises(ValueError, match="no time zone"):
        column.process_bind_param(dt.datetime(2026, 1, 1), sqlite.dialect())  # noqa: DTZ001


@given(
    any_array(
        np.float64,
        st.integers(1, 40).map(lambda n: (len(arrays.COLUMNS), n)),
        elements=st.floats(allow_nan=True, allow_infinity=True),
    )
)
def test_packing_keeps_every_bit(block: arrays.Block) -> None:
    back = arrays.unpack(arrays.pack(block))
    assert back.shape == block.shape
    assert back.tobytes() == block.tobytes()


def test_data_of_a_newer_format_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="newer version"):
        arrays.unpack(b"\x02abc")


@given(st.integers(0, 1200), st.integers(1, 1200))
def test_splitting_fills_the_tail_first(before: int, new: int) -> None:
    tail = before % arrays.CHUNK
    whole = np.arange((tail + new) * len(arrays.COLUMNS), dtype=np.float64)
    whole = whole.reshape(len(arrays.COLUMNS), -1)
    blocks = arrays.split(whole[:, :tail] if tail else None, whole[:, tail:])
    assert np.concatenate(blocks, axis=1).tobytes() == whole.tobytes()
    assert all(block.shape[1] == arrays.CHUNK for block in blocks[:-1])
    assert 1 <= blocks[-1].shape[1] <= arrays.CHUNK


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 5), st.floats(-1e6, 1e6)),
        max_size=120,
        unique_by=lambda each: each[:2],
    ),
    st.integers(1, 50),
)
def test_thinning_loses_no_step_and_no_extreme(
    reported: list[tuple[int, int, float]], limit: int
) -> None:
    parts = []
    for step, attempt, loss in reported:
        block = np.zeros((len(arrays.COLUMNS), 1))
        block[arrays.STEP], block[arrays.LOSS], block[arrays.SECONDS] = step, loss, 0.5
        parts.append(arrays.points_of(attempt, block))
    series = arrays.thin(arrays.join(parts), limit)

    newest = {step: (attempt, loss) for step, attempt, loss in sorted(reported)}
    assert len(series.step) <= limit
    assert series.step == sorted(set(series.step))
    assert list(zip(series.attempt, series.loss, strict=True)) == [newest[s] for s in series.step]
    if newest:
        assert series.step[-1] == max(newest)
        assert max(series.loss_max) == max(loss for _, loss in newest.values())
        assert series.seconds == [0.5] * len(series.step)
    if len(newest) <= limit:
        assert series.step == sorted(newest)


def test_an_exact_id_or_name_wins_over_a_prefix() -> None:
    candidates = [("ABCD1", "x"), ("ABCD", "y"), ("ABCD2", "z")]
    assert pick_run("ABCD", candidates, []) == "ABCD"
    named = [("ABCD1", "x"), ("ZZZZ", "ABCD"), ("ABCD2", "z")]
    assert pick_run("ABCD", named, []) == "ZZZZ"
    with pytest.raises(NotFoundError, match="did you mean tiny-gpt"):
        pick_run("tinygpt", [], ["tiny-gpt", "huge"])
