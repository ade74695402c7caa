"""The spool and the outbox: nothing acknowledged is kept, nothing else is lost."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babysit.ring import Record
from jobs import frames
from jobs.agent.errors import SpoolError
from jobs.agent.outbox import Outbox
from jobs.agent.rank_reader import columns
from jobs.agent.spool import Spool
from jobs.clock import ManualClock
from jobs.events import RankReady, Report


def content(spool: Spool) -> list[tuple[int, bytes]]:
    return list(spool.after(spool.first_sequence - 1))


def test_frames_come_back_in_order_until_they_are_acknowledged(tmp_path: Path):
    spool = Spool(tmp_path / "spool" / "reports")
    assert [spool.append(frame) for frame in (b"a", b"", b"ccc")] == [1, 2, 3]
    assert content(spool) == [(1, b"a"), (2, b""), (3, b"ccc")]
    assert list(spool.after(2)) == [(3, b"ccc")]
    spool.acknowledge(2)
    assert (spool.first_sequence, content(spool)) == (3, [(3, b"ccc")])
    spool.acknowledge(3)
    assert (spool.first_sequence, spool.next_sequence, content(spool)) == (4, 4, [])


def test_frames_appended_while_sending_are_sent_too(tmp_path: Path):
    spool = Spool(tmp_path / "reports")
    spool.append(b"a")
    sending = spool.after(0)
    assert next(sending) == (1, b"a")
    spool.acknowledge(1)
    spool.append(b"b")
    assert list(sending) == [(2, b"b")]


def test_file_shrinks_when_everything_is_acknowledged(tmp_path: Path):
    path = tmp_path / "reports"
    spool = Spool(path)
    spool.append(bytes(100_000))
    spool.acknowledge(1)
    assert path.stat().st_size < 100


def test_file_shrinks_when_it_is_never_quite_empty(tmp_path: Path):
    path = tmp_path / "reports"
    spool = Spool(path)
    for number in range(1, 60):
        spool.append(number.to_bytes(1, "little") * 2**20)
        spool.acknowledge(number - 2)
    assert path.stat().st_size < 25 * 2**20
    assert [(n, frame[0]) for n, frame in content(spool)] == [(58, 58), (59, 59)]
    assert content(Spool(path)) == content(spool)


def test_torn_frame_at_the_end_is_dropped_on_reopening(tmp_path: Path):
    path = tmp_path / "reports"
    spool = Spool(path)
    spool.append(b"whole")
    spool.append(b"torn in the middle")
    spool.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    again = Spool(path)
    assert content(again) == [(1, b"whole")]
    assert again.append(b"next") == 2
    assert content(Spool(path)) == [(1, b"whole"), (2, b"next")]


def test_damaged_file_is_refused(tmp_path: Path):
    path = tmp_path / "reports"
    spool = Spool(path)
    spool.append(b"one")
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x09")
    with pytest.raises(SpoolError, match="expected frame 1, found 9"):
        Spool(path)


def test_server_that_knows_more_moves_the_numbers_on(tmp_path: Path):
    spool = Spool(tmp_path / "reports")
    spool.acknowledge(41)
    assert spool.append(b"x") == 42


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 30), st.none()), max_size=60))
def test_spool_agrees_with_a_list(tmp_path_factory: pytest.TempPathFactory, script):
    """Bytes: append. A number: acknowledge up to it (if it exists). None: reopen."""
    path = tmp_path_factory.mktemp("spool") / "reports"
    spool = Spool(path)
    model: dict[int, bytes] = {}
    count = 0
    for step in script:
        if isinstance(step, bytes):
            count += 1
            model[count] = step
            assert spool.append(step) == count
        elif step is None:
            spool.close()
            spool = Spool(path)
        elif step <= count:
            spool.acknowledge(step)
            model = {n: frame for n, frame in model.items() if n > step}
        assert content(spool) == list(model.items())
        assert spool.next_sequence == count + 1
    spool.close()


# --- outbox -------------------------------------------------------------------------------------


class Bench:
    """An outbox on a clock that stands still."""

    def __init__(self, path: Path, limit: int = 2**20) -> None:
        self.clock = ManualClock()
        self.spool = Spool(path / "reports", limit)
        self.wakes = 0
        self.outbox = Outbox(self.spool, self.clock, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    def samples(self, *steps: int, rank: int = 0):
        records = [Record(s, s, 1.5, math.nan, -1.0, 8.0, 0.1, 0.0, -1.0) for s in steps]
        return columns(rank, records)

    def event(self, attempt: int = 1) -> RankReady:
        who = {"id": f"e{self.spool.next_sequence}", "run": "r", "worker": "w"}
        return RankReady(at=self.clock.now(), attempt=attempt, rank=0, **who)

    def reports(self) -> list[Report]:
        found = [frames.decode(frame) for _, frame in content(self.spool)]
        assert {kind for kind, _ in found} <= {"report"}
        return [Report.model_validate(body) for _, body in found]


def test_samples_wait_for_company_and_events_do_not(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.outbox.take(1, [bench.samples(1, 2)], [])
    bench.clock.advance(0.2)
    bench.outbox.take(1, [bench.samples(3), bench.samples(3, rank=1)], [])
    assert bench.reports() == []
    bench.clock.advance(0.05)
    bench.outbox.tick()
    [report] = bench.reports()
    assert [(s.rank, s.step) for s in report.samples] == [(0, [1, 2, 3]), (1, [3])]
    assert all(math.isnan(loss) for loss in report.samples[0].loss)
    bench.outbox.take(1, [bench.samples(4)], [bench.event()])
    report = bench.reports()[-1]
    assert (report.sequence, report.samples[0].step, report.events[0].kind) == (
        2,
        [4],
        "rank_ready",
    )
    assert bench.wakes == 2


def test_samples_of_two_attempts_never_share_a_report(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.outbox.take(1, [bench.samples(9)], [])
    bench.outbox.take(2, [bench.samples(1)], [bench.event(attempt=2)])
    assert [(r.attempt, r.samples[0].step) for r in bench.reports()] == [(1, [9]), (2, [1])]


def test_nothing_to_say_makes_no_report(tmp_path: Path):
    bench = Bench(tmp_path)
    bench.clock.advance(10)
    bench.outbox.take(1, [], [])
    assert bench.spool.next_sequence == 1


def test_full_spool_drops_samples_keeps_events_and_says_how_many(tmp_path: Path):
    bench = Bench(tmp_path, limit=200)
    for _ in range(5):
        bench.outbox.take(1, [bench.samples(1, 2, 3)], [bench.event()])
    reports = bench.reports()
    assert [len(r.events) for r in reports] == [1] * 5
    dropped = sum(3 for r in reports if not r.samples)
    assert 0 < dropped < 15
    bench.spool.acknowledge(5)
    bench.outbox.take(1, [bench.samples(4)], [bench.event()])
    assert bench.reports()[0].samples[0].lost == dropped


def test_full_disk_holds_reports_in_memory_and_spares_the_samples(tmp_path: Path, monkeypatch):
    bench = Bench(tmp_path)
    bench.outbox.take(1, [bench.samples(1)], [bench.event()])

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Spool, "_write", staticmethod(no_room))
        for step in (2, 3):
            bench.outbox.take(1, [bench.samples(step)], [bench.event()])
    bench.outbox.take(1, [bench.samples(4)], [bench.event()])
    reports = bench.reports()
    assert [r.sequence for r in reports] == [1, 2, 3, 4]
    assert [len(r.events) for r in reports] == [1] * 4
    assert [s.step for r in reports for s in r.samples] == [[1], [2]]
    assert [n for n, _ in content(Spool(tmp_path / "reports"))] == [1]  # no gap in the file

    bench.spool.acknowledge(4)
    bench.outbox.take(1, [bench.samples(5)], [bench.event()])
    [report] = bench.reports()
    assert (report.samples[0].step, report.samples[0].lost) == ([5], 2)
    assert [n for n, _ in content(Spool(tmp_path / "reports"))] == [5]
