"""`babysit simulate SCENARIO`: what is printed, compared, varied, drawn and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import scenarios
from orchestrator.cli.main import app
from orchestrator.cli.output import Format

TINY = """\
name: tiny
days: 0.1
cluster: {nodes: 2, spares: 1, repair: 10m}
runs:
  - spec:
      name: one
      command: [python, train.py]
      resources: {nodes: 2, gpus_per_node: 8}
      checkpoint: {directory: /c, every_steps: 50}
failures:
  - {name: faulty GPU, does: gpu_fault, expected: 6}
  - {name: slow, does: straggler, expected: 1}
"""


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


def data(*arguments: str) -> Any:
    result = simulate(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_file_and_a_shipped_scenario_by_name(tiny: str) -> None:
    assert data(tiny)["scenario"] == "tiny"
    told = data("crash_loop")
    assert told["runs"] == {"failed": 1, "succeeded": 2}


def test_the_same_seed_prints_the_same_bytes(tiny: str) -> None:
    first, again, other = (
        simulate(tiny, "--seed", seed, "-o", "json").stdout for seed in ("5", "5", "6")
    )
    assert first == again
    assert first != other


def test_progress_is_shown_on_a_terminal(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    scenarios.one(tiny, 5, Format.NAME, None)
    assert "100% of 0.1 days" in capsys.readouterr().err


def test_tables_on_stdout_and_progress_on_stderr(tiny: str) -> None:
    result = simulate(tiny)
    assert result.exit_code == 0
    for title in ("SCENARIO", "LOST TO", "FAILURE", "RESTARTED FOR", "RECOVERY", "RUN"):
        assert title in result.stdout
    assert "100% of 0.1 days" not in result.stderr + result.stdout, "no terminal"
    assert "REASON" in simulate(tiny, "-o", "wide").stdout
    assert simulate(tiny, "-o", "name").stdout == "tiny\n"
    assert "scenario: tiny" in simulate(tiny, "-o", "yaml").stdout


def test_what_if_puts_variants_beside_it(tiny: str) -> None:
    rows = data(tiny, "--what-if", "failure_rate=0", "--what-if", "spares=0,checkpoint=10s")
    assert [row["variant"] for row in rows] == [
        "as it is",
        "failure_rate=0",
        "spares=0,checkpoint=10s",
    ]
    assert rows[1]["interruptions"] == 0 < rows[0]["interruptions"]
    assert rows[2]["nodes"] == 2
    assert rows[1]["ettr"] > rows[0]["ettr"]
    saves = [row["gpu_days"]["checkpointing"] for row in rows]
    assert saves[2] > 3 * saves[0]


def test_compare_two_scenarios(tiny: str, tmp_path: Path) -> None:
    other = tmp_path / "worse.yaml"
    other.write_text(TINY.replace("expected: 6", "expected: 60"))
    rows = data("--compare", tiny, str(other))
    assert [row["variant"] for row in rows] == [tiny, str(other)]
    assert rows[0]["ettr"] > rows[1]["ettr"]
    assert simulate("--compare", tiny, str(other), "-o", "name").stdout.split() == [
        tiny,
        str(other),
    ]


def test_a_picture(tiny: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "tiny.png"
    result = simulate(tiny, "--picture", str(picture))
    assert result.exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Wrote {picture}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of SCENARIO, --compare and --trace"),
        (["crash_loop", "--trace", "x.csv"], "expected one of SCENARIO, --compare and --trace"),
        (["nothing.yaml"], "nothing.yaml: no such file; shipped scenarios are crash_loop,"),
        (["crash_loop", "--what-if", "spares"], "--what-if: expected KEY=VALUE"),
        (["crash_loop", "--what-if", "spare=1"], "spare: no such field"),
        (["--trace", "x.csv"], "--trace needs --nodes"),
        (["--trace", "x.csv", "--seed", "1"], "--seed has no effect with --trace"),
        (["crash_loop", "--nodes", "8x8"], "--nodes has no effect with a scenario"),
        (
            ["--compare", "crash_loop", "crash_loop", "--what-if", "spares=1"],
            "--what-if has no effect with --compare",
        ),
        (["crash_loop", "--what-if", "spares=1", "--picture", "x.png"], "--picture has no effect"),
        (
            ["crash_loop", "--picture", "x.doc"],
            "--picture x.doc: expected a name that ends in avif",
        ),
        (
            ["crash_loop", "--picture", "/proc/x.png"],
            "--picture /proc/x.png: cannot be written: No",
        ),
        (["crash_loop", "--what-if", ".=3"], "--what-if: expected a field, got"),
        (
            ["crash_loop", "--what-if", "nodes=1"],
            "--what-if nodes=1: runs[2].spec.resources.nodes: expected at most 2 (cluster.nodes",
        ),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code != 0
    said = str(result.exception) + result.stderr
    assert message in said


def test_what_the_core_refused_and_who_never_ran_are_said(tmp_path: Path) -> None:
    file = tmp_path / "stuck.yaml"
    spec = "command: [x], resources: {nodes: 2, gpus_per_node: 8}, checkpoint: {directory: /d}"
    events = "[{at: 1h, kind: node_changed, node: n9, state: ready, reason: typo}]"
    second = f"  - spec: {{name: two, {spec}}}\n    submit: 2.35h\n"
    file.write_text(TINY.replace("failures:", f"{second}events: {events}\nfailures:"))
    said = simulate(str(file)).stderr
    assert f"{file}: refused: node_changed: no such node: n9; the cluster has n1, n2, n3" in said
    assert f"{file}: two never got its nodes: waits for 2 nodes: not enough free nodes fit" in said


def test_a_wrong_scenario_is_told_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(TINY.replace("days: 0.1", "days: never").replace("does: gpu_fault", "do: x"))
    result = CliRunner().invoke(app, ["simulate", str(file)])
    said = str(result.exception) + result.stderr
    assert f"{file}:2:7: days: expected a number above 0" in said
    assert f"{file}:11:24: failures[0].do: no such field; did you mean does?" in said


def test_the_benchmark_ends_with_its_figures() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "simulation.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick"], capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {
        "event_microseconds_median",
        "llama3_16k_seconds",
        "llama3_16k_ettr",
        "llama3_16k_interruptions",
        "growth_exponent",
    } <= set(figures)
    assert 0.9 < figures["llama3_16k_ettr"] < 1
