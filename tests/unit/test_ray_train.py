"""Reports on their way from Ray Train's processes to the driver: nothing is lost without a word."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

# Without the extra `ray-train`, this part of ray is there and refuses to be imported.
pytest.importorskip("ray.train", exc_type=ImportError)
pytest.importorskip("pyarrow")

from babysit.integrations import ray as watched
from babysit.integrations.relayed_steps import Part


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_warned", set())


def test_a_report_that_fails_does_not_take_the_others_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The storage of a checkpoint does not answer; a step and a failure came with it."""
    taken: list[object] = []
    relay: Any = SimpleNamespace(
        saved={},
        tick=lambda _: None,
        step=lambda part, _now, *, by_process: taken.append((part, by_process)),
        failed=lambda failures, _now: taken.append(failures),
    )

    def refuse(_: object) -> None:
        raise OSError("the bucket does not answer")

    files = SimpleNamespace(get_file_info=refuse)
    part = Part(rank=0, world_size=1, step=11, time=1.0)
    driver = watched._Driver(relay)
    for _ in range(2):
        checkpoint = SimpleNamespace(filesystem=files, path="store/a")
        driver._take([("checkpoint", (10, checkpoint)), ("step", part), ("failed", ["rank 1"])])
    assert taken == [(part, True), ["rank 1"]] * 2
    (record,) = caplog.records
    assert "(checkpoint) is left out: the bucket does not answer" in record.getMessage()


def test_reports_that_cannot_be_delivered_leave_a_trace_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The mailbox cannot take them; the driver that has not opened it yet is no trouble."""

    def refuse(_: object) -> None:
        raise RuntimeError("the network is away")

    mailbox = SimpleNamespace(put=SimpleNamespace(remote=refuse))
    found = iter([ValueError("no such actor"), mailbox, mailbox, SystemExit()])

    def find(_: str) -> object:
        if isinstance(one := next(found), BaseException):
            raise one
        sender._items.append(("step", 1))
        return one

    monkeypatch.setattr(watched.ray, "get_actor", find)
    context = SimpleNamespace(get_job_id=lambda: "01")
    monkeypatch.setattr(watched.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(watched, "_PAUSE_SECONDS", 0.0)
    sender = watched._Sender()
    sender._arrived.set()
    with pytest.raises(SystemExit):
        sender._serve()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["reports were not delivered to the driver: the network is away"]


def test_metrics_that_are_no_numbers_leave_a_trace_once_and_texts_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(watched, "_sender", SimpleNamespace(send=sent.append))
    callback = watched._Watch("step", "loss")
    given = {"step": 3, "loss": [0.5], "accuracy": 0.9, "phase": "warm-up"}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            callback.after_report(None, [given], None)
    (kind, (part,)), _ = sent
    assert (kind, part.step, part.loss, dict(part.metrics)) == (
        "metrics",
        3,
        None,
        {"accuracy": 0.9},
    )
    (record,) = caplog.records
    assert record.getMessage().startswith("loss of a list is left out: ")
