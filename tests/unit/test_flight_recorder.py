"""Flight records: real dumps of gloo, dumps of NCCL by torch's schema, and dumps that mean harm.

The dumps in tests/data/flight are of three ranks in torch 2.13: `absent` where rank 1 did not enter
the last all_reduce, `astray` where rank 2 called a broadcast in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from babysit import flight_record
from jobs.agent import flight_records
from jobs.clock import SystemClock
from monitors import flight_recorder
from monitors.flight_recorder import FlightRecordError, merge, read

DATA = Path(__file__).parents[1] / "data" / "flight"


def recorded(case: str) -> dict[int, Any]:
    return {rank: read((DATA / f"{case}-{rank}.pickle").read_bytes()) for rank in range(3)}


def test_the_rank_that_did_not_enter_is_named() -> None:
    found = merge(recorded("absent"))
    assert found is not None
    assert (found.waiting, found.absent, found.astray) == ((0, 2), (1,), ())
    assert found.sentence == (
        "flight recorder: ranks 0, 2 in gloo:all_reduce no. 5 of group 0 default_pg;"
        " rank 1 has not entered it; the last one there is gloo:barrier no. 4"
    )


def test_the_rank_that_called_another_collective_is_named() -> None:
    found = merge(recorded("astray"))
    assert found is not None
    assert (found.astray, found.absent) == ((2,), ())
    assert found.sentence.endswith("rank 2 called gloo:broadcast no. 5 under the same number")


def nccl(*calls: tuple[int, str, str], group: str = "0", ranks: str = "[0, 1, 2, 3]") -> bytes:
    """A dump by the schema of NCCL's recorder: number, operation and state."""
    frames = [{"name": "step", "filename": "/job/train.py", "line": 42}]
    entries = [
        {
            "record_id": number,
            "process_group": (group, "default_pg"),
            "collective_seq_id": number,
            "p2p_seq_id": 0,
            "profiling_name": f"nccl:{operation}",
            "input_sizes": ((1024,),),
            "state": state,
            "duration_ms": 0.25,
            "retired": state == "completed",
            "is_p2p": False,
            "frames": frames,
        }
        for number, operation, state in calls
    ]
    config = {group: {"name": group, "desc": "default_pg", "ranks": ranks}}
    return pickle.dumps({"version": "2.10", "pg_config": config, "entries": entries}, protocol=2)


def test_nccl_with_collectives_in_flight_ahead() -> None:
    """Rank 3 never enqueued no. 7; the others have enqueued on; rank 2 has no dump."""
    ahead = nccl(
        (6, "all_reduce", "completed"),
        (7, "all_reduce", "started"),
        *((number, "all_reduce", "scheduled") for number in range(8, 40)),
    )
    behind = nccl((5, "all_reduce", "completed"), (6, "all_reduce", "completed"))
    found = merge({0: read(ahead), 1: read(ahead), 3: read(behind)})
    assert found is not None
    assert (found.call.number, found.waiting, found.absent) == (7, (0, 1), (3,))


def test_a_member_that_never_used_the_group_is_absent_unless_its_dump_may_leave_it_out() -> None:
    first = read(nccl((1, "all_gather", "started"), group="4", ranks="[1, 3]"))
    others = read(nccl((9, "all_reduce", "completed")))
    found = merge({1: first, 3: others})
    assert found is not None
    assert (found.absent, found.last) == ((3,), "")
    found = merge({1: first, 3: others * flight_recorder.GROUPS})
    assert found is not None
    assert found.absent == ()


def test_a_rank_that_has_ended_it_waits_for_nobody() -> None:
    done = nccl((7, "broadcast", "completed"))
    found = merge({0: read(done), 1: read(nccl((7, "broadcast", "started")))})
    assert found is not None
    assert (found.waiting, found.absent) == ((1,), ())
    assert found.sentence.endswith("every rank has entered it")


def test_a_collective_that_raised_an_error_is_not_under_way_forever() -> None:
    """The script caught a time-out at no. 3; the recorder never saw it end."""
    calls = ((3, "all_reduce", "started"), (4, "all_reduce", "completed"))
    assert merge({rank: read(nccl(*calls)) for rank in range(4)}) is None


def test_a_group_that_was_made_again_counts_from_1() -> None:
    old = ((6, "all_reduce", "completed"), (7, "all_reduce", "completed"))
    waits = nccl(*old, (1, "barrier", "completed"), (2, "barrier", "started"))
    found = merge({0: read(waits), 1: read(nccl(*old, (1, "barrier", "completed")))})
    assert found is not None
    assert (found.call.number, found.absent) == (2, (1,))


def test_members_of_a_large_world_are_short() -> None:
    listed = str([*range(3, 8192, 8)])
    (record,) = read(nccl((1, "all_reduce", "completed"), ranks=listed))
    assert record.members == (3, 8187, 8)
    (record,) = read(nccl((1, "all_reduce", "completed"), ranks="[0, 1, 5]"))
    assert record.members is None


def test_no_rank_waits() -> None:
    assert merge({rank: read(nccl((7, "all_reduce", "completed"))) for rank in range(4)}) is None
    assert merge({}) is None


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harm",)


def test_what_is_no_plain_data_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for bad in (Harm(), {"entries": [Harm()]}, {"entries": Path("x")}, print, {1j}):
        with pytest.raises(FlightRecordError, match=r"plain data|no flight record"):
            read(pickle.dumps(bad))
    assert not (tmp_path / "harm").exists()
    whole = (DATA / "absent-0.pickle").read_bytes()
    for cut in (b"", b"{", whole[:200], whole[:-1], b"garbage", json.dumps([1]).encode()):
        with pytest.raises(FlightRecordError):
            read(cut)
    with pytest.raises(FlightRecordError, match="memo"):  # 32 GiB, were it carried out
        read(b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".")
    monkeypatch.setattr(flight_recorder, "MOST_BYTES", 100)
    with pytest.raises(FlightRecordError, match="at most"):
        read(whole)


def test_a_small_dump_that_is_endless_as_text_is_refused_or_short() -> None:
    nested: list[Any] = []
    for _ in range(64):
        nested = [nested, nested]
    dump = pickle.loads(nccl((1, "all_reduce", "started")))
    dump["entries"][0]["input_sizes"] = nested
    (record,) = read(pickle.dumps(dump, protocol=2))
    assert len(record.model_dump_json()) < 300
    for key in ("profiling_name", "process_group", "collective_seq_id"):
        bad = {**dump, "entries": [{**dump["entries"][0], key: nested}]}
        with pytest.raises(FlightRecordError, match="no flight record"):
            read(pickle.dumps(bad, protocol=2))


async def test_a_rank_answers_its_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the pipe and the files; the dump itself is recorded."""
    dump = (DATA / "absent-0.pickle").read_bytes()

    def fails(**_: bool) -> bytes:
        raise RuntimeError("no NCCL in this process")

    recorders = {"nccl": fails, "generic": lambda **_: dump}
    monkeypatch.setattr(flight_record, "_recorders", lambda: recorders)
    monkeypatch.setattr(flight_records, "PATIENCE_SECONDS", 90.0)
    flight_record.listen(tmp_path)
    flight_record.listen(tmp_path)
    for _ in range(2):
        found = ()
        while not found:  # the thread may not have opened the pipe yet
            found = await flight_records.take(tmp_path, SystemClock())
        assert found == read(dump)
    names = []
    for file in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # that thread has ended
            names.append(file.read_text().strip())
    assert flight_record.THREAD in names, "else it passes for one that the run waits for"


async def test_a_process_that_takes_the_place_of_a_rank_answers_in_its_stead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = (DATA / "absent-0.pickle").read_bytes()
    monkeypatch.setattr(flight_record, "_recorders", lambda: {"generic": lambda **_: dump})
    monkeypatch.setattr(flight_records, "PATIENCE_SECONDS", 90.0)
    os.mkfifo(tmp_path / flight_record.ASK_FILE)
    flight_record.listen(tmp_path)
    found = ()
    while not found:
        found = await flight_records.take(tmp_path, SystemClock())


async def test_a_rank_without_torch_has_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_record, "_recorders", dict)
    flight_record.listen(tmp_path)
    assert await flight_records.take(tmp_path, SystemClock()) == ()


async def test_nobody_answers(tmp_path: Path) -> None:
    assert await flight_records.take(tmp_path, SystemClock()) == ()
    os.mkfifo(tmp_path / flight_record.ASK_FILE)
    assert await flight_records.take(tmp_path, SystemClock()) == ()
