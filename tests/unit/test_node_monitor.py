"""The monitor of a machine: what it says of what its sources report, and how often."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.failures import FailureClass
from monitors.hardware.node_monitor import NodeMonitor
from monitors.hardware.types import (
    REBOOT,
    LogLine,
    NodeAction,
    NodeFinding,
    NodeReport,
    Reading,
)

OFF_THE_BUS = "NVRM: Xid (PCI:0000:3B:00): 79, pid=4711, GPU has fallen off the bus."


def report(*signs: LogLine | Reading, time: float = 0.0, boot: str = "a") -> NodeReport:
    return NodeReport(
        node="node-1",
        time=max([time, *(each.time for each in signs)]),
        boot=boot,
        lines=tuple(each for each in signs if isinstance(each, LogLine)),
        readings=tuple(each for each in signs if isinstance(each, Reading)),
    )


def line(text: str, time: float) -> LogLine:
    return LogLine(text=text, time=time)


def reading(name: str, value: float, time: float, device: str = "GPU-1") -> Reading:
    return Reading(source="nvml", device=device, name=name, value=value, time=time)


def said(findings: list[NodeFinding]) -> list[tuple[str, str, NodeAction]]:
    return [(each.rule, each.device, each.action) for each in findings]


def test_a_line_becomes_a_finding_with_the_machines_own_words() -> None:
    found = NodeMonitor().feed(report(line(OFF_THE_BUS, 5.0)))
    assert said(found) == [("xid-79", "0000:3b:00", NodeAction.REBOOT)]
    assert found[0].pid == 4711
    assert found[0].failure_class is FailureClass.GPU_HARDWARE
    assert found[0].evidence == (OFF_THE_BUS,)
    assert OFF_THE_BUS in found[0].reason
    assert found[0].boot == "a"


def test_a_driver_that_repeats_itself_is_heard_once_for_each_device() -> None:
    monitor = NodeMonitor()
    first = monitor.feed(report(*(line(OFF_THE_BUS, 5.0 + i / 10) for i in range(100))))
    other = monitor.feed(report(line(OFF_THE_BUS.replace("3B", "44"), 6.0)))
    later = monitor.feed(report(line(OFF_THE_BUS, 1000.0)))
    assert [len(first), len(other), len(later)] == [1, 1, 1]


def test_a_counter_is_judged_by_what_it_rises_and_begins_anew_with_a_boot() -> None:
    monitor = NodeMonitor()
    name = "ecc_uncorrected_total"
    assert monitor.feed(report(reading(name, 7, 0))) == []  # history
    assert monitor.feed(report(reading(name, 7, 60))) == []
    assert said(monitor.feed(report(reading(name, 8, 120)))) == [
        ("ecc-uncorrected", "GPU-1", NodeAction.DRAIN_NOW)
    ]
    assert monitor.feed(report(reading(name, 0, 1000))) == []  # the driver was loaded again
    again = monitor.feed(report(reading(name, 9, 2000), boot="b"))
    assert said(again) == [(REBOOT, "", NodeAction.RECORD)]  # a first look at another start


def test_what_a_row_wants_several_times_is_recorded_until_then() -> None:
    monitor = NodeMonitor()
    text = "NVRM: Xid (PCI:0000:1b:00): 74, pid='<unknown>', NVLink: fatal error detected"
    times = [0.0, 2.0, 3600.0]  # a burst is one sign
    found = [each for time in times for each in monitor.feed(report(line(text, time)))]
    assert [each.action for each in found] == [NodeAction.RECORD, NodeAction.DRAIN_NOW]
    assert "1 of 2 times within 24 h before anything is done" in found[0].reason
    far = [each for time in (1e6, 2e6) for each in monitor.feed(report(line(text, time)))]
    assert [each.action for each in far] == [NodeAction.RECORD, NodeAction.RECORD]


def test_a_condition_that_ends_is_over_and_one_that_flutters_is_not_said_twice() -> None:
    monitor = NodeMonitor()
    values = [0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    found = [
        each
        for i, value in enumerate(values)
        for each in monitor.feed(report(reading("row_remap_pending", value, 30.0 * i)))
    ]
    assert [(each.over, each.action) for each in found] == [
        (False, NodeAction.DRAIN_AFTER_JOB),
        (True, NodeAction.RECORD),
    ]
    assert found[1].reason.startswith("over: ")


def test_an_xid_that_the_log_and_a_library_tell_of_is_one() -> None:
    monitor = NodeMonitor()
    assert monitor.feed(report(reading("xid_code", 0, 0))) == []
    both = report(line(OFF_THE_BUS, 10.0), reading("xid_code", 79, 12))
    assert [each.rule for each in monitor.feed(both)] == ["xid-79"]
    blind = NodeMonitor()  # without the kernel's log, the library's word is enough
    blind.feed(report(reading("xid_code", 0, 0)))
    assert said(blind.feed(report(reading("xid_code", 48, 12)))) == [
        ("xid-48", "GPU-1", NodeAction.RESET)
    ]


def test_memory_does_not_grow_with_time() -> None:
    monitor = NodeMonitor()
    for i in range(3000):
        text = OFF_THE_BUS.replace("3B", f"{i % 256:02x}").replace("0000:", f"{i % 9999:04d}:")
        monitor.feed(report(line(text, 1000.0 * i), reading("free_bytes", 1e9 + i, 60.0 * i)))
    kept = {name: len(value) for name, value in vars(monitor).items() if hasattr(value, "__len__")}
    assert max(kept.values()) <= 8192
    judges = vars(monitor)["_judges"].values()
    assert max(len(judge.points) for judge in judges) <= 256


texts = st.sampled_from(
    [
        OFF_THE_BUS,
        "NVRM: Xid (PCI:0000:1b:00): 13, pid=1, Graphics Exception",
        "mlx5_core 0000:1a:00.0 ib0: Link down",
        "systemd[1]: Started Session 1 of user root.",
        "NVRM: Xid (PCI:0000:1b:00): not a number",
        "\x00\ufffd(((",
    ]
)
names = st.sampled_from(["ecc_uncorrected_total", "port_active", "gpus_count", "unheard_of"])
values = st.floats(-5, 1e12) | st.integers(0, 9)
signs = st.builds(line, texts, st.floats(0, 1e5)) | st.builds(
    reading, names, values, st.floats(0, 1e5)
)
reports = st.builds(
    lambda many, boot: report(*many, boot=boot), st.lists(signs, max_size=6), st.sampled_from("ab")
)


@settings(max_examples=60, deadline=None)
@given(st.lists(reports, max_size=6))
def test_a_report_that_comes_twice_says_nothing_new(many: list[NodeReport]) -> None:
    once, twice = NodeMonitor(), NodeMonitor()
    for each in many:
        assert once.feed(each) == twice.feed(each)
        assert twice.feed(each) == []
