"""Drills: the catalogue of faults, the scoreboard, and which runs may be struck."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import drill as drill_benchmark
from monitors.failures import FailureClass
from monitors.types import FindingKind
from orchestrator.cli import drill_strikes
from orchestrator.cli.drill import TEMPLATE
from orchestrator.cli.drill_strikes import ALLOWED, Strikes
from orchestrator.cli.errors import CliError
from orchestrator.cli.main import app
from orchestrator.core.model.vocabulary import SaveTrouble
from orchestrator.judgement import scoreboard
from orchestrator.judgement.faults import FAULTS, NOT_PROVOKED, RECOVERY_SECONDS
from orchestrator.judgement.scoreboard import Outcome, Targets
from tests.unit.test_judgement import run, spec

USAGE, REFUSED = 2, 4
KILL, NAN, FULL, RAISE = (FAULTS[name] for name in ("kill", "nan", "full", "raise"))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=str)
def test_faults_name_words_that_exist(fault: Any) -> None:
    words = {*FailureClass, *FindingKind, *SaveTrouble}
    assert fault.found_as <= words
    assert fault.target > 0
    assert fault.what
    assert fault.action


def test_every_class_of_the_table_is_provoked_or_has_a_reason() -> None:
    """A class that is left out is never left out in silence."""
    said: set[int] = {fault.row for fault in FAULTS.values()}
    for words in NOT_PROVOKED:
        for part in words.split(" ")[0:4]:
            first, _, last = part.strip(",").partition("-")
            if first.isdigit():
                said |= set(range(int(first), int(last or first) + 1))
    assert said == set(range(1, 29))
    assert all(NOT_PROVOKED.values())


@pytest.mark.parametrize(
    ("outcome", "missed"),
    [
        (Outcome(fault=KILL, found_as="signal", found_after=0.4, recovered_after=6.0), []),
        (Outcome(fault=KILL), ["not found"]),
        (Outcome(fault=KILL, trouble="restart as user_code"), ["restart as user_code"]),
        (
            Outcome(fault=KILL, found_as="signal", found_after=11.0, recovered_after=16.0),
            ["found after 11.0 s, target 10 s"],
        ),
        (
            Outcome(fault=NAN, found_as="non_finite", found_after=3.0, recovered_after=16.0),
            ["found after 3.0 steps, target 2 steps"],
        ),
        (
            Outcome(fault=KILL, found_as="signal", found_after=1.0),
            ["it was found, and the run never recovered"],
        ),
        (
            Outcome(fault=FULL, found_as="disk_full", found_after=1.0),
            ["it was found, and the run never went on"],
        ),
        (
            Outcome(fault=RAISE, found_as="user_code", found_after=1.0),
            ["it was found, and the run never stopped"],
        ),
        (
            Outcome(fault=KILL, found_as="signal", found_after=1.0, recovered_after=200.0),
            ["over after 200.0 s, target 192 s"],
        ),
    ],
)
def test_targets_are_met_or_missed_in_words(outcome: Outcome, missed: list[str]) -> None:
    assert scoreboard.misses(outcome, Targets()) == missed
    (row,) = scoreboard.rows([outcome], Targets())
    assert row["ok"] == (not missed)


def test_other_targets_count() -> None:
    outcome = Outcome(fault=KILL, found_as="signal", found_after=0.4, recovered_after=6.0)
    assert scoreboard.misses(outcome, Targets({"kill": 0.1}))
    assert scoreboard.misses(outcome, Targets(recovered=1.0))
    assert Targets({"hang": 1.0}).of(KILL) == KILL.target
    assert RECOVERY_SECONDS == 192


def test_a_run_that_does_not_ask_for_faults_is_not_struck(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="does not ask for faults"):
        Strikes(None, run(), tmp_path)  # type: ignore[arg-type]
    for value in ("0", ""):
        with pytest.raises(CliError, match="does not ask for faults"):
            Strikes(None, run(spec=spec(env={ALLOWED: value})), tmp_path)  # type: ignore[arg-type]


def _drill(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["monitors", "drill", *map(str, arguments)])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text("name: mine\ncommand: ['true']\n")
    return file


def test_a_run_of_ones_own_is_struck_only_after_a_yes(tmp_path: Path, script: Path) -> None:
    refused = _drill(script, "--directory", tmp_path / "out")
    assert (refused.exit_code, "give --yes" in refused.stderr) == (REFUSED, True)
    assert "Go on?" in refused.stderr
    assert not (tmp_path / "out").exists(), "nothing was started"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--faults", "kil"], "expected some of kill, hang"),
        (["--faults", "kill", "--target", "kill"], "expected FAULT=SECONDS"),
        (["--faults", "kill", "--target", "kill=nan"], "expected FAULT=SECONDS"),
        (["--faults", "kill", "--target", "kill=-1"], "expected FAULT=SECONDS"),
        (["--faults", "kill", "--target", "kil=3"], "expected one of kill"),
        (["--faults", "kill,nan"], "the script must take orders"),
    ],
)
def test_options_that_mean_nothing(
    tmp_path: Path, script: Path, options: list[str], said: str
) -> None:
    refused = _drill(script, "--yes", "--directory", tmp_path / "out", *options)
    assert (refused.exit_code, said in refused.stderr) == (USAGE, True)


def test_a_scripts_own_checkpoints_are_left_alone(tmp_path: Path, script: Path) -> None:
    script.write_text(
        f"{script.read_text()}resume: {{checkpoints: 'out/step-{{step}}', keep: 1}}\n"
    )
    refused = _drill(script, "--yes", "--directory", tmp_path / "out", "--faults", "kill")
    assert (refused.exit_code, "without `resume`" in refused.stderr) == (USAGE, True)


def test_a_directory_that_is_not_a_drills_is_left_alone(tmp_path: Path, script: Path) -> None:
    refused = _drill(script, "--yes", "--directory", tmp_path)
    assert (refused.exit_code, "not of a drill" in refused.stderr) == (REFUSED, True)
    assert script.exists()


def test_the_table_in_the_docs_has_every_fault_and_every_class_that_is_left_out() -> None:
    """Its figures are those of a run of the benchmark; all else is the catalogue's."""
    page = (Path(__file__).parents[2] / "docs" / "monitors.md").read_text()
    table = page.partition(drill_benchmark.BEGIN)[2].partition(drill_benchmark.END)[0]
    lines = re.findall(
        r"^\| (\d+) \| `(\w+)`: ([^|]+) \| ([^|]+) \| ([^|]+) \| .*$", table, re.MULTILINE
    )
    assert [(int(row), name, what, reference) for row, name, what, _, reference in lines] == [
        (fault.row, fault.name, fault.what, fault.reference) for fault in FAULTS.values()
    ]
    for name, why in NOT_PROVOKED.items():
        assert f"* {name}: {why}." in table


def test_a_table_replaces_the_one_before() -> None:
    page = f"before\n\n{drill_benchmark.BEGIN}\n\nold\n\n{drill_benchmark.END}\n\nafter\n"
    again = drill_benchmark.written(drill_benchmark.written(page, "one"), "two")
    assert again == page.replace("old", "two")


def test_orders_are_what_the_built_in_script_takes() -> None:
    source = (TEMPLATE / "faults.py").read_text()
    for fault in FAULTS.values():
        if fault.means == "inside":
            order = drill_strikes.ORDERS.get(fault.name, fault.name)
            assert f"def _{order}(" in source


def test_faults_are_values() -> None:
    """They go into rows for programs: nothing of them changes."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        KILL.target = 1.0  # type: ignore[misc]
