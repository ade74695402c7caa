"""`babysit simulate`, and the benchmark that replays published traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "traces.py"
TRACE = """job_id,vc,submit_time_s,duration_s,num_gpus,status
a,v,0,10,2,
b,v,1,2,1,
c,v,1,4,1,
"""


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "three.csv"
    file.write_text(TRACE)
    return str(file)


def simulate(*arguments):
    return CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)


def bench(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_table_has_every_policy(trace):
    done = simulate("--trace", trace, "--nodes", "1x2")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "POLICY",
        "fifo",
        "sjf",
        "srtf",
        "srsf",
        "priority",
        "babysit",
    ]


def test_json_has_the_policies_asked_for(trace):
    arguments = ("--policy", "srtf", "--policy", "fifo", "--preemption-seconds", "0", "-o", "json")
    rows = json.loads(simulate("--trace", trace, "--nodes", "1x2", *arguments).stdout)
    assert [row["policy"] for row in rows] == ["srtf", "fifo"]
    assert rows[0]["avg_jct_seconds"] == pytest.approx(20 / 3)
    assert rows[1]["avg_queue_seconds"] == 6
    assert rows[1]["makespan_seconds"] == 14


def test_rows_that_are_left_out_are_said_and_refused_on_request(tmp_path):
    trace = tmp_path / "odd.csv"
    trace.write_text("job_id,submit_time_s,duration_s,num_gpus\na,0,9,1\nb,0,9,0\nc,0,9,0.5\n")
    words = ("--trace", str(trace), "--nodes", "1x2", "--policy", "fifo", "-o", "json")
    done = simulate(*words)
    assert json.loads(done.stdout)[0]["jobs"] == 1
    assert done.stderr == (
        f"Left out of 3 rows of {trace}: 1 without GPUs (the first in line 3), 1 with a share of a"
        " GPU (the first in line 4). --strict refuses them.\n"
    )
    strict = simulate(*words, "--strict")
    assert (strict.exit_code, strict.stdout) == (2, "")
    assert f"{trace}:3: num_gpus: expected a whole number, 1 to" in strict.stderr
    assert simulate("crash_loop", "--strict").exit_code == 2


def test_jobs_larger_than_the_nodes_are_named(trace):
    done = simulate("--trace", trace, "--nodes", "1x1", "--policy", "fifo", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)[0]["refused"] == 1
    assert (
        f"1 need more GPUs than their nodes have; the first is a with 2 GPUs ({trace}:2)"
        in done.stderr
    )


def test_jobs_that_only_some_policies_can_run_are_named_with_them(tmp_path):
    trace = tmp_path / "odd.csv"
    trace.write_text("job_id,submit_time_s,duration_s,num_gpus\na,0,9,11\nb,0,9,1\n")
    both = ("--policy", "fifo", "--policy", "babysit", "-o", "json")
    done = simulate("--trace", str(trace), "--nodes", "4x8", *both)
    assert [row["refused"] for row in json.loads(done.stdout)] == [0, 1]
    said = "Left out 1 of the jobs under babysit: 1 do not divide evenly over their nodes"
    assert f"{said}; the first is a with 11 GPUs ({trace}:2)." in done.stderr


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1"])
def test_a_preemption_costs_a_finite_time(trace, seconds):
    done = simulate("--trace", trace, "--nodes", "1x2", "--preemption-seconds", seconds)
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_trace_that_outlasts_the_calendar(tmp_path):
    trace = tmp_path / "long.csv"
    jobs = "".join(f"j{i},99999999999,1e9,1\n" for i in range(150))
    trace.write_text(f"job_id,submit_time_s,duration_s,num_gpus\n{jobs}")
    done = simulate("--trace", str(trace), "--nodes", "1x1", "--policy", "babysit")
    assert done.exit_code == 2
    assert done.stderr.startswith("the trace takes more than 7,605 years on these nodes")


def test_bad_input_is_said_on_stderr(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(TRACE.replace("10", "ten"))
    done = simulate("--trace", str(bad), "--nodes", "1x2", "--strict")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"{bad}:2: duration_s: expected seconds, 0 to 1,000,000,000, got 'ten'\n"
    assert simulate("--trace", str(tmp_path / "none"), "--nodes", "1x2").exit_code == 2
    assert simulate("--nodes", "1x2").exit_code == 2


def test_without_data_the_benchmark_says_what_is_missing(tmp_path):
    code, lines, _ = bench("--data", str(tmp_path))
    assert (code, lines[-1]) == (0, "{}")
    assert str(tmp_path / "traces" / "expected_muri.csv") in lines[0]


def test_the_benchmark_takes_other_traces(trace, tmp_path):
    nodes = tmp_path / "nodes.csv"
    nodes.write_text("vc,nodes,gpus_per_node\nv,1,2\n")
    code, lines, _ = bench("--trace", trace, "--nodes", str(nodes))
    figures = json.loads(lines[-1])["three"]
    assert code == 0
    assert set(figures) == {"fifo", "sjf", "srtf", "srsf", "priority", "babysit"} | {
        "helios:fifo",
        "helios:sjf",
        "helios:srtf",
    }
    assert figures["helios:fifo"]["avg_jct_seconds"] == pytest.approx(34 / 3, abs=1e-3)
    # Its SRTF runs a second longer; a preemption of 2 GPUs costs 30 s.
    assert figures["helios:srtf"]["avg_jct_seconds"] == pytest.approx((46 + 3 + 5) / 3, abs=1e-3)
    assert set(figures["fifo"]) == {
        "avg_jct_seconds",
        "avg_queue_seconds",
        "p99_jct_seconds",
        "wall_seconds",
    }


def test_the_benchmark_ends_with_1_when_a_digit_differs(tmp_path):
    data = tmp_path / "traces"
    data.mkdir()
    header = "job_id,vc,submit_time_s,duration_s,num_gpus,status,service_s,event_overhead_s\n"
    for number in ("1", "3"):
        (data / f"muri_philly_trace{number}.csv").write_text(f"{header}a,v,0,10,1,,12.5,5\n")
    expected = "trace,policy,avg_jct_s,makespan_s,p99_jct_s\n1,SRTF,12.50,12.5,12.500\n"
    (data / "expected_muri.csv").write_text(expected)
    code, lines, _ = bench("--data", str(tmp_path))
    assert code == 0, lines
    (data / "expected_muri.csv").write_text(expected + "3,SRSF,12.50,12.4,12.500\n")
    code, lines, _ = bench("--data", str(tmp_path))
    assert code == 1
    assert [line.split() for line in lines if line.endswith("NO")] == [
        ["muri_philly_trace3", "muri:srsf", "makespan_s", "12.4", "12.5", "NO"]
    ]


def test_the_benchmark_says_what_is_wrong_with_a_trace(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(TRACE.replace("10", "ten"))
    code, _, said = bench("--trace", str(bad), "--nodes", "1x2")
    assert code == 2
    assert said == f"{bad}:2: duration_s: expected seconds, 0 to 1,000,000,000, got 'ten'\n"
    assert bench("--trace", str(bad))[0] == 2
