"""`babysit report` against a control plane: files, formats, and every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import babysit, connect
from tests.plane import RUN_ID, Plane, finished

OK, USAGE, NOT_FOUND, REFUSED = 0, 2, 3, 4


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


@pytest.fixture(autouse=True)
def here(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_report_is_named_after_its_run_and_replaces_an_earlier_one(here: Path) -> None:
    for _ in range(2):
        result = babysit("report", "tiny")
        assert (result.exit_code, result.stdout) == (OK, "")
        assert result.stderr == "The report of tiny: tiny.html\n"
    text = (here / "tiny.html").read_text()
    assert text.startswith("<!doctype html>")
    for words in ("killed by SIGKILL", "rank 1 on node-2", RUN_ID, "96%", "1 good"):
        assert words in text
    assert "ranks not known" not in text
    assert names(here) == ["tiny.html"]


@pytest.mark.parametrize(
    ("output", "file", "begin"),
    [
        ("reports/", "reports/tiny.html", b"<!doctype"),
        ("reports", "reports/tiny.html", b"<!doctype"),
        ("a.PNG", "a.PNG", b"\x89PNG"),
        ("a.md", "a.md", b"# tiny: succeeded"),
    ],
)
def test_the_suffix_chooses_the_format(here: Path, output: str, file: str, begin: bytes) -> None:
    (here / "reports").mkdir()
    assert babysit("report", RUN_ID, "--output", output).exit_code == OK
    assert (here / file).read_bytes().startswith(begin)


def test_a_report_goes_to_stdout(here: Path) -> None:
    result = babysit("report", "tiny", "--output", "-", "--format", "md")
    assert result.stdout.startswith("# tiny: succeeded\n")
    assert names(here) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tinny"], NOT_FOUND, "did you mean tiny?"),
        (["tiny", "--output", "no/where.html"], USAGE, "there is no directory no; create it first"),
        (["tiny", "--output", "no/"], USAGE, "there is no directory no; create it first"),
        (["tiny", "--output", "tiny.pdf"], USAGE, "a report ends in .html, .png or .md"),
        (["tiny", "--output", "diary.md"], REFUSED, "does not look like a report"),
        (["tiny", "--output", "/proc/tiny.html"], USAGE, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_and_says_what_to_do(
    here: Path, arguments: list[str], code: int, said: str
) -> None:
    diary = here / "diary.md"
    diary.write_text("Dear diary,\n")
    result = babysit("report", *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert diary.read_text() == "Dear diary,\n"
    assert names(here) == ["diary.md"]


def test_a_file_of_somebody_is_replaced_on_request(here: Path) -> None:
    (here / "diary.md").write_text("Dear diary,\n")
    assert babysit("report", "tiny", "--output", "diary.md", "--force").exit_code == OK
    assert (here / "diary.md").read_text().startswith("# tiny")


@pytest.mark.parametrize("what", ["tiny", RUN_ID, "01JNB0000000000000INCIDENT", "CIDENT"])
def test_a_post_mortem_is_of_an_incident_or_of_a_run(what: str) -> None:
    result = babysit("incidents", "export", what, "--md")
    assert result.exit_code == OK
    assert result.stdout.startswith("# Post-mortem: signal of tiny, 2026-03-01\n")


def test_a_post_mortem_that_may_have_been_filled_in_is_kept(here: Path) -> None:
    assert babysit("incidents", "export", "tiny", "--output", "review.md").exit_code == OK
    again = babysit("incidents", "export", "tiny", "--output", "review.md")
    assert again.exit_code == REFUSED
    assert "may have been filled in" in again.stderr
    assert (
        babysit("incidents", "export", "tiny", "--output", "review.md", "--force").exit_code == OK
    )
    missing = babysit("incidents", "export", "tinny")
    assert missing.exit_code == NOT_FOUND
    assert "no run and no incident tinny" in missing.stderr
    assert names(here) == ["review.md"]


def test_a_logbook_is_printed_as_markdown() -> None:
    result = babysit("logbook", "tiny", "--md")
    assert result.stdout.startswith("# Logbook of tiny: succeeded\n\n- 2026-03-01 03:12:00 mia")
