"""Rules for the files of the web page: small, of our own, and without a way in for markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.server import page
from orchestrator.server.page import is_page, page_file

FOLDER = Path(page.__file__).parent
FILES = sorted(file for file in FOLDER.iterdir() if file.suffix in {".html", ".css", ".js", ".svg"})
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
PAGES = [file for file in FILES if file.suffix == ".html"]
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_small_and_name_no_other_site(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 400
    links = [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in url]
    assert links == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_never_read_text_as_markup(file: Path) -> None:
    assert re.findall(MARKUP, file.read_text()) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_modules_import_what_exists(file: Path) -> None:
    """A misspelt name is an error only in the browser, and then of the whole page."""
    for names, source in re.findall(r"import \{([^}]+)\} from \"\./(\w+\.js)\"", file.read_text()):
        exported = re.findall(
            r"^export (?:async )?(?:function|const|class) (\w+)",
            (FOLDER / source).read_text(),
            re.MULTILINE,
        )
        wanted = {name.strip() for name in names.split(",") if name.strip()}
        assert wanted <= set(exported), (file.name, source)
        used = re.sub(r"import \{[^}]+\}", "", file.read_text())
        assert [name for name in sorted(wanted) if not re.search(rf"\b{name}\b", used)] == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_pages_hold_no_script_and_no_style(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\bsrc=)", text) == []
    for name in re.findall(r"(?:src|href)=\"(/page/[^\"]+)\"", text):
        assert page_file(name) is not None, name
    ids = re.findall(r"\bid=\"([^\"]+)\"", text)
    assert len(ids) == len(set(ids))


def test_paths_of_the_page() -> None:
    assert all(map(is_page, ("/", "/runs/tiny", "/incidents/01J", "/docs", "/page/run.js")))
    assert not any(map(is_page, ("/api/v1/runs", "/page/../app.py", "/runs/a/b", "/metrics")))
    assert page_file("/page/none.js") is None
