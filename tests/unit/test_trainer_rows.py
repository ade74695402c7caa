"""The scripts of `benchmarks/trainers.py`, and what it makes of their lines."""

from __future__ import annotations

import pytest

from benchmarks.support.trainer_rows import ROWS, SCRIPTS, Row
from benchmarks.support.trainer_run import Verdict, is_seen

EACH = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


@EACH
def test_a_script_does_with_few_lines(row: Row) -> None:
    assert 0 < row.lines <= row.most_lines


@EACH
def test_an_unmodified_script_is_whole_and_knows_no_babysit(row: Row) -> None:
    compile(row.unmodified, row.script, "exec")
    code = row.unmodified.partition('"""\n\n')[2]
    assert "babysit" not in code
    assert "run." not in code
    assert "tiny.resumed()" in code or "tiny.load(" in code, "it resumes by itself"


def test_every_script_has_a_row() -> None:
    scripts = {file.name for file in SCRIPTS.glob("*.py")} - {"tiny.py", "turns.py"}
    assert scripts == {row.script for row in ROWS.values()}


@pytest.mark.parametrize(("loss", "seen"), [(2.0, True), (3.0, True), (2.5, True), (2.2, False)])
def test_a_loss_is_that_of_a_rank_or_the_mean(loss: float, seen: bool) -> None:
    assert is_seen(loss, (2.0, 3.0), 1e-4) is seen
    assert not is_seen(loss, (loss,), 1e-4), "the other rank has not computed the step"


def test_a_column_that_is_not_reached_is_false_and_says_why() -> None:
    verdict = Verdict({"start": False, "hang found": False, "loss seen": None})
    verdict.say("start", [])
    verdict.stop(TimeoutError("waited for recovery 1"))
    assert verdict.columns == {"start": True, "hang found": False, "loss seen": None}
    assert verdict.notes["hang found"] == "waited for recovery 1"
    assert "start" not in verdict.notes
