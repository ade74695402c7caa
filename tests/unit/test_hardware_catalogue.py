"""Every row of the hardware catalogue finds what it should, and nothing else."""

from __future__ import annotations

import pytest

from monitors.hardware.catalogue import Catalogue, Row, RowFile, When, kind_of
from monitors.hardware.catalogue_files import builtin_catalogue
from monitors.hardware.node_monitor import HardwareSettings, NodeMonitor
from monitors.hardware.types import LogLine, NodeAction, NodeReport, Reading

ROWS = [*builtin_catalogue().rows.values()]
LINES = [row for row in ROWS if kind_of(row) == "line"]
READINGS = [row for row in ROWS if kind_of(row) == "reading"]
XIDS = [row for row in ROWS if kind_of(row) == "xid"]
TAILS = {
    "xid-154-reboot": "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
    "xid-154-reset": "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
    "xid-154-drain-p2p": "GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)",
    "fatal": "NVLink: RLW_SRC_TRACK Fatal XC1 i0 Link 08 (0x00000004 0x00000000)",
    "": "pid=4711, name=python, Ch 00000008",
}


def found(lines: tuple[str, ...], catalogue: Catalogue | None = None) -> list[str]:
    monitor = NodeMonitor(HardwareSettings(catalogue or builtin_catalogue()))
    stamped = tuple(LogLine(text=text, time=100.0 + i) for i, text in enumerate(lines))
    return [each.rule for each in monitor.feed(NodeReport(node="n", time=200.0, lines=stamped))]


def tail(row: Row) -> str:
    if row.id.endswith("-fatal"):
        return TAILS["fatal"]
    return TAILS.get(row.id, TAILS[""])


@pytest.mark.parametrize("row", XIDS, ids=lambda row: row.id)
def test_an_xid_is_found_by_its_number_and_no_other_row(row: Row) -> None:
    code = row.xid or 999
    assert found((f"NVRM: Xid (PCI:0000:1b:00): {code}, {tail(row)}",)) == [row.id]
    assert found((f"NVRM: Xid (0001:1b:00): {code}, {tail(row)}",)) == [row.id]
    assert row.id not in found((f"NVRM: Xid (PCI:0000:1b:00): {code + 1000}, x",)) or not row.xid
    # a process that quotes an Xid is no machine's word
    assert found((f"rank 3 printed: Xid {code} was seen",)) == []


@pytest.mark.parametrize("row", LINES, ids=lambda row: row.id)
def test_a_row_finds_its_lines_and_not_its_counterexamples(row: Row) -> None:
    assert row.examples
    assert row.counterexamples
    for line in row.examples:
        assert isinstance(line, str)
        assert found((line,)) == [row.id], line
    for line in row.counterexamples:
        assert isinstance(line, str)
        assert row.id not in found((line,)), line


def readings(row: Row, points: object) -> list[NodeAction]:
    """The actions that a row's series leads to."""
    monitor = NodeMonitor(HardwareSettings(Catalogue([row])))
    actions = []
    when, source = row.when, [*row.sources, "nvml"][0]
    assert when is not None
    for time, value, *other in points:  # type: ignore[attr-defined]
        read = {row.reading or "": value}
        if other:
            read[when.below_reading or ""] = other[0]
        seen = tuple(
            Reading(source=source, device="d", name=name, value=each, time=time)
            for name, each in read.items()
        )
        report = NodeReport(node="n", time=time, readings=seen)
        actions += [each.action for each in monitor.feed(report) if not each.over]
    return actions


@pytest.mark.parametrize("row", READINGS, ids=lambda row: row.id)
def test_a_row_finds_its_series_and_not_its_counterexamples(row: Row) -> None:
    assert row.examples
    assert row.counterexamples
    for series in row.examples:
        assert readings(row, series)[-1:] == [row.action], series
    for series in row.counterexamples:
        assert row.action not in readings(row, series) or row.action is NodeAction.RECORD, series
        if row.times == 1:
            assert readings(row, series) == [], series


def test_every_row_has_a_source_and_ids_are_words() -> None:
    assert len(XIDS) > 172
    assert all(len(row.source) > 5 and len(row.says) > 5 for row in ROWS)


def test_a_site_changes_a_row_and_adds_its_own() -> None:
    file = RowFile.model_validate(
        {
            "change": {
                "xid-79": {"action": "page"},
                "port-drop": {"when": {"for_seconds": 30}},
                "*": {"shadow": True},
            },
            "rows": [
                {"id": "ours", "says": "x y", "source": "our own", "action": "page", "line": "zap"}
            ],
        }
    )
    changed = builtin_catalogue().changed(file)
    assert changed.rows["xid-79"].action is NodeAction.PAGE
    assert changed.rows["port-drop"].when == When(fell=True, for_seconds=30)
    assert all(row.shadow for row in changed.rows.values())
    assert found(("zap",), changed) == ["ours"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xid-790": {"action": "page"}}, "did you mean .*xid-79"),
        ({"xid-79": {"when": {"above": 1}}}, "has no readings"),
        ({"port-drop": {"when": {"abvoe": 1}}}, "port-drop.when.abvoe"),
        ({"port-drop": {"times": 0}}, "port-drop.times"),
    ],
)
def test_a_wrong_change_is_said_with_its_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builtin_catalogue().changed(RowFile.model_validate({"change": change}))
