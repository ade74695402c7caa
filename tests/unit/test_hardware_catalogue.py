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


def test_an_amd_gpu_may_have_as_many_bad_pages_as_its_driver_allows() -> None:
    row = builtin_catalogue().rows["retired-pages"]
    assert readings(row, [(0, 59), (60, 64)]) == [NodeAction.PAGE]
    said = "amdgpu 0000:83:00.0: amdgpu: RAS records:257 exceed threshold:256, replace this GPU"
    assert found((said,)) == ["amd-bad-pages"]


FORGED = ("kernel BUG at x", "EDAC a: 1 UE", "Oops: 0001 [#1")


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("{}[812]: segfault at 0 ip 00007f2b sp 00007ffe error 4 in libc.so.6[7f2b+1b5000]", []),
        ("traps: {}[812] general protection fault ip:7f sp:7f error:0 in libc.so.6", []),
        ("{} (812): drop_caches: 3", []),
        ("{}: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL)", []),
        ("{}/812: potentially unexpected fatal signal 11.", []),
        ("{} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0", []),
        ("[    812]  1000   812     2280     1024    57344        0             0 {}", []),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/user.slice,task={},pid=812,uid=1", []),
        ("Memory cgroup stats for /user.slice/{}:", []),
        ("Memory cgroup out of memory: Killed process 812 ({}) total-vm:9kB", ["oom-kill"]),
        ("CPU: 3 PID: 812 Comm: {} Not tainted 6.8.0-31-generic #31-Ubuntu", []),
        ("process 'tmp/a/{}' started with executable stack", []),
        ("x86/split lock detection: #AC: {}/812 took a split_lock trap at address: 0x7f", []),
        ("warning: `{}' uses 32-bit capabilities (legacy support in use)", []),
        ('audit: type=1701 audit(1.2:3): auid=1 pid=812 comm="{}" sig=11', []),
        ("INFO: task {}:812 blocked for more than 122 seconds.", ["hung-task"]),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [{}:812]", ["lockup"]),
    ],
)
def test_the_name_of_a_program_takes_no_node_away(name: str, line: str, rules: list[str]) -> None:
    assert found((name,)), "this word alone must count as the kernel's"
    assert found((line.format(name),)) == rules


def test_a_file_that_is_named_like_an_xid_is_none() -> None:
    name = "NVRM: Xid (PCI:0000:1b:00): 79, pid=1, GPU has fallen off the bus."
    assert found((f"process 'tmp/{name}' started with executable stack",)) == []


def test_a_site_may_rule_out_words_of_an_xid_too() -> None:
    file = RowFile.model_validate({"change": {"xid-79": {"unless": "name=burn-in"}}})
    catalogue = builtin_catalogue().changed(file)
    said = "NVRM: Xid (PCI:0000:1b:00): 79, pid=4711, name={}, GPU has fallen off the bus."
    assert found((said.format("burn-in"),), catalogue) == []
    assert found((said.format("python"),), catalogue) == ["xid-79"]
