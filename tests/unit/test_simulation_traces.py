"""Traces and node lists: what is read, and what is said of what cannot be."""

from __future__ import annotations

import contextlib
import gzip
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import Priority
from orchestrator.simulation.traces.trace_file import (
    SHARED,
    TraceError,
    by_pool,
    left_out_in_words,
    read_nodes,
    read_trace,
    within,
)

HEADER = "job_id,vc,submit_time_s,duration_s,num_gpus,status"
SUBMIT = "submit_time_s: expected seconds, 0 to 100,000,000,000, got"
DURATION = "duration_s: expected seconds, 0 to 1,000,000,000, got"
WHOLE = "expected a whole number, 1"
COLUMNS = "job_id, submit_time_s, duration_s, num_gpus"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def written(text, name="t.csv"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return written


def test_jobs_come_in_order_of_submission_with_their_lines(write):
    trace = read_trace(write(f"{HEADER},model\nb,v,7.5,3,8,,gpt\n\na,v,0,2.0,1.0,Pass,bert\n"))
    assert [(job.id, job.line) for job in trace.jobs] == [("a", 4), ("b", 2)]
    second = trace.jobs[1]
    assert (second.submit_seconds, second.duration_seconds, second.gpus) == (7.5, 3.0, 8)
    assert second.vc == "v"
    assert second.priority is Priority.NORMAL
    assert second.extra == {"status": "", "model": "gpt"}


def test_a_priority_is_read(write):
    header = "job_id,submit_time_s,duration_s,num_gpus,priority"
    trace = read_trace(write(f"{header}\na,0,1,1,high\nb,0,1,1,\n"))
    assert [job.priority for job in trace.jobs] == [Priority.HIGH, Priority.NORMAL]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv:1: expected a header, got nothing"),
        (HEADER, "t.csv:1: expected jobs below the header, got none"),
        (
            "job_id,num_gpus\na,1\n",
            f"t.csv:1: expected the columns {COLUMNS}; there is no submit_time_s, duration_s",
        ),
        (f"{HEADER},vc\n", "t.csv:1: vc: expected each column once, got it twice"),
        (f"{HEADER}\na,v,0,1,1,\nb,v,0,1\n", "t.csv:3: expected 6 columns, got 4"),
        (f"{HEADER}\n,v,0,1,1,\n", "t.csv:2: job_id: expected an id that no other job has, got ''"),
        (
            f"{HEADER}\na,v,0,1,1,\n\na,v,0,1,1,\n",
            "t.csv:4: job_id: expected an id that no other job has (line 2 has it), got 'a'",
        ),
        (
            f"{HEADER}\na,v,soon,1,1,\n",
            f"t.csv:2: {SUBMIT} 'soon'",
        ),
        (
            f'{HEADER}\n"a\nb",v,0,1,1,\nc,v,0,-1,1,\n',
            f"t.csv:4: {DURATION} '-1'",
        ),
        (f"{HEADER}\na,v,0,nan,1,", f"t.csv:2: {DURATION} 'nan'"),
        (
            f"{HEADER}\na,v,inf,1,1,",
            f"t.csv:2: {SUBMIT} 'inf'",
        ),
        (f"{HEADER}\na,v,0,1,0,", f"t.csv:2: num_gpus: {WHOLE} to 1,000,000,000, got '0'"),
        (f"{HEADER}\na,v,0,1,1.5,", f"t.csv:2: num_gpus: {WHOLE} to 1,000,000,000, got '1.5'"),
        (f'{HEADER}\na,v,0,1,1,"x', "t.csv:2: expected CSV: unexpected end of data"),
        (b"\xff\xfe\x00", "t.csv: expected UTF-8 text"),
        (b"\x1f\x8bno", "t.csv: cannot be read: Compressed file ended before"),
        (
            f"{HEADER}\na,v,1_0,1,1,",
            f"t.csv:2: {SUBMIT} '1_0'",
        ),
        (
            f"{HEADER}\na,v,0,\u0663,1,",
            f"t.csv:2: {DURATION} '\u0663'",
        ),
        (f"{HEADER}\na,v,0,1e300,1,", f"t.csv:2: {DURATION} '1e300'"),
        (f"{HEADER}\na,v,0,1,1e300,", f"t.csv:2: num_gpus: {WHOLE} to 1,000,000,000, got '1e300'"),
        (
            "job_id,submit_time_s,duration_s,num_gpus,priority\na,0,1,1,urgent\n",
            "t.csv:2: priority: expected one of low, normal, high, critical, got 'urgent'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, text, message):
    with pytest.raises(TraceError) as caught:
        read_trace(write(text), strict=True)
    assert str(caught.value).startswith(message)


ODD = """job_id,vc,submit_time_s,duration_s,num_gpus,status
a,v,0,600,1,
b,v,1,60,0,
c,v,2,60,0,
d,v,3,60,0.5,
e,v,4,,8,
f,v,5,nan,8,
g,v,6,-1,8,
h,v,7,500,8,Running
i,v,8,500
a,v,9,60,2,
,v,10,60,2,
j,v,soon,60,2,
k,v,12,60,many,
l,w,13,60,2,
m,v,14,0,2,Pass
"""


def test_rows_that_are_no_job_are_left_out_and_counted_by_reason(write):
    trace = within(read_trace(write(ODD)), {"v": (8,)})
    assert [job.id for job in trace.jobs] == ["a", "m"]
    assert [(one.count, one.reason, one.first_line) for one in trace.left_out] == [
        (4, "unfinished", 6),
        (2, "without GPUs", 3),
        (1, "with a share of a GPU", 5),
        (1, "of another width", 10),
        (1, "with the id of another row", 11),
        (1, "without an id", 12),
        (1, "with an odd submit_time_s", 13),
        (1, "with an odd num_gpus", 14),
        (1, "of a virtual cluster without nodes", 15),
    ]
    words = left_out_in_words(trace.left_out[:2])
    assert words == "4 unfinished (the first in line 6), 2 without GPUs (the first in line 3)"


def test_a_trace_of_such_rows_alone_is_refused_with_the_reasons(write):
    with pytest.raises(TraceError) as caught:
        read_trace(write(f"{HEADER}\na,v,0,1,0,\nb,v,0,,1,\n"))
    assert str(caught.value) == (
        "t.csv:1: expected jobs below the header, got none (1 without GPUs (the first in line 2),"
        " 1 unfinished (the first in line 3))"
    )
    trace = read_trace(write(f"{HEADER}\na,v,0,1,1,\nb,w,0,1,1,\n"))
    assert within(trace, {"v": (8,)}, strict=True) is trace


@given(st.text(max_size=300), st.sampled_from(["", HEADER + "\n", HEADER + "\na,v,0,1,1,\n"]))
def test_any_text_is_a_trace_or_refused(text, before):
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as file:
        file.write(before + text)
        file.flush()
        with contextlib.suppress(TraceError):
            trace = read_trace(file.name)
            left_out = sum(one.count for one in trace.left_out)
            assert 1 <= len(trace.jobs) + left_out <= len((before + text).splitlines())


PUBLISHED = {
    "helios": """\
job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue
7,u1,vcA,4,16,1,FAILED,2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09 18:45:36,249,0
8,u1,vcA,0,16,1,COMPLETED,2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09 18:45:36,249,0
""",
    "acme": """\
job_id,user,node_num,gpu_num,cpu_num,type,state,submit_time,start_time,end_time,duration
dlc1,u1,8,64,960,Other,CANCELLED,2023-05-17 19:28:42+08:00,,2023-05-17 11:30:04+00:00,82
dlc2,u1,8,64,960,Other,RUNNING,2023-05-17 19:28:42+08:00,,,
""",
    "alibaba pods of 2023": """\
name,cpu_milli,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time
pod-1,88000,8,1000,,Burstable,Running,9437497,10769854,9437500.0
pod-2,4000,1,220,,BE,Running,9679175,9973826,9679175.0
pod-3,4000,1,1000,,BE,Pending,9679175,9973826,
pod-4,4000,0,0,,BE,Succeeded,9679175,9973826,9679175.0
""",
    "alibaba spot of 2026": """\
job_name,organization,gpu_model,cpu_request,gpu_request,worker_num,submit_time,duration,job_type
437260,57,A100-SXM4-80GB,15,2,16,9589663,41060,Spot
437261,57,A10,15,0.5,1,9589663,41060,HP
""",
}
FIRST = {
    "helios": ("7", 1591728087.0, 249.0, 4, "vcA"),
    "acme": ("dlc1", 1684322922.0, 82.0, 64, ""),
    "alibaba pods of 2023": ("pod-1", 9437497.0, 1332354.0, 8, ""),
    "alibaba spot of 2026": ("437260", 9589663.0, 41060.0, 32, ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_columns_of_published_traces_are_understood(write, name):
    text = PUBLISHED[name]
    trace = read_trace(write(text))
    (job,) = trace.jobs
    found = (job.id, job.submit_seconds, job.duration_seconds, job.gpus, job.vc)
    assert found == FIRST[name]
    assert sum(one.count for one in trace.left_out) == text.count("\n") - 2
    assert not any("odd" in one.reason for one in trace.left_out)


def test_hosts_without_gpus_of_an_inventory_are_passed_over(write):
    assert read_nodes(write("sn,gpu\na,0\nb,8\n")) == {SHARED: (8,)}


def test_a_trace_may_be_compressed(write):
    text = f"{HEADER}\r\na,v,7,1,1,\r\n".encode("utf-8-sig")
    assert [job.submit_seconds for job in read_trace(write(gzip.compress(text))).jobs] == [7.0]


@pytest.mark.parametrize("text", ["", "8", "no/such.csv", "8x8x8"])
def test_nodes_that_are_neither_are_told_what_there_is(text):
    with pytest.raises(TraceError, match="expected a file, or COUNTxGPUS such as 8x4"):
        read_nodes(text)


def test_a_missing_file_and_a_directory_are_said(tmp_path):
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(TraceError, match=message):
            read_trace(path)


def test_nodes_by_count_and_by_list(write):
    assert read_nodes("3x8") == {SHARED: (8, 8, 8)}
    listed = write("vc,nodes,gpus_per_node\na,2,8\nb,1,4\na,1,2\n")
    assert read_nodes(listed) == {"a": (8, 8, 2), "b": (4,)}
    assert read_nodes(write("gpu_model,gpu_capacity_num\nA10,1\nH800,8\n")) == {SHARED: (1, 8)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vc,nodes\na,1\n", "n.csv:1: expected the column gpus_per_node"),
        ("gpus_per_node\n", "n.csv:1: expected nodes below the header, got none"),
        ("gpus_per_node\n8\n0\n", f"n.csv:3: gpus_per_node: {WHOLE} to 1,024, got '0'"),
        ("vc,gpus_per_node\n,8\n", "n.csv:2: vc: expected the name of a virtual cluster, got ''"),
        ("nodes,gpus_per_node\n2000000,8", f"n.csv:2: nodes: {WHOLE} to 1,000,000, got '2000000'"),
    ],
)
def test_a_wrong_node_list_is_said_with_its_line(write, text, message):
    with pytest.raises(TraceError) as caught:
        read_nodes(write(text, "n.csv"))
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["0x8", "8x0", "8x2000", "999999999x1"])
def test_counts_have_limits(text):
    with pytest.raises(TraceError, match=r"expected 1 to 1,000,000 nodes of 1 to 1,024 GPUs"):
        read_nodes(text)


def test_a_full_node_list_takes_no_more(write):
    listed = write("nodes,gpus_per_node\n1000000,1\n1,1\n")
    with pytest.raises(TraceError, match=r"t\.csv:3: nodes: expected no more than 1,000,000 nodes"):
        read_nodes(listed)


def test_jobs_go_to_the_pool_of_their_virtual_cluster(write):
    trace = read_trace(write(f"{HEADER}\n1,a,0,1,1,\n2,b,0,1,1,\n3,a,0,1,1,\n"))
    pools = by_pool(trace, {"a": (8,), "b": (8,), "c": (8,)})
    assert {vc: [job.id for job in jobs] for vc, jobs in pools.items()} == {
        "a": ["1", "3"],
        "b": ["2"],
        "c": [],
    }
    with pytest.raises(TraceError) as caught:
        by_pool(trace, {"a": (8,)})
    assert str(caught.value) == (
        "t.csv:3: vc: expected a virtual cluster of the node list (a), got 'b'"
    )
