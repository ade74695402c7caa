"""What the documentation says exists, and is as it says."""

from __future__ import annotations

import datetime as dt
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic_core import PydanticUndefined

from monitors.failures import CAUSE_OF, Cause, FailureClass
from monitors.types import FindingKind
from orchestrator.alert_settings import AlertSettings
from orchestrator.cli.main import app
from orchestrator.core.model.vocabulary import NodeTrouble, SaveTrouble
from orchestrator.settings import Settings
from tests.trainer_pages import DIRECTORY, MARK, Script, scripts

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECOVERY = (ROOT / "docs" / "recovery.md").read_text()
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "%": 0.01}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def settings_rows() -> list[str]:
    """The table of settings in docs/settings.md."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name in sorted(Settings.model_fields, key=AlertSettings.model_fields.__contains__):
        field = Settings.model_fields[name]
        assert field.default is not PydanticUndefined
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `BABYSIT_{name.upper()}` | {default} | {field.description} |")
    return rows


def test_every_setting_is_documented() -> None:
    table = "\n".join(settings_rows())
    page = (ROOT / "docs" / "settings.md").read_text()
    assert table in page, f"the table in docs/settings.md should be:\n{table}"


def thresholds() -> list[tuple[str, str, str, str]]:
    """Value, unit, file and name of each row of the table in docs/recovery.md."""
    row = r"^\| [^|]+ \| ([\d.]+) ?([^|]*?) \| `(\S+)\.py ([A-Z_]+)` \|"
    return re.findall(row, RECOVERY, re.MULTILINE)


@pytest.mark.parametrize(("value", "unit", "module", "name"), thresholds())
def test_thresholds_are_as_documented(value: str, unit: str, module: str, name: str) -> None:
    actual = getattr(importlib.import_module(f"orchestrator.{module.replace('/', '.')}"), name)
    if isinstance(actual, dt.timedelta):
        actual = actual.total_seconds()
    assert float(value) * UNITS.get(unit, 1.0) == pytest.approx(actual)


def test_incidents_have_the_names_of_their_kinds() -> None:
    kinds = {*FindingKind, *FailureClass, *SaveTrouble, *NodeTrouble}
    named = {
        (name_of(page), kind)
        for page in PAGES
        for kind in re.findall(r"\bincident\s+`([a-z_]+)`", page.read_text())
    }
    assert named, "the pages name incidents"
    assert [each for each in sorted(named) if each[1] not in kinds] == []


def test_the_table_of_thresholds_is_read() -> None:
    table = RECOVERY.partition("## Thresholds")[2].partition("\n## ")[0]
    assert len(thresholds()) == table.count("\n|") - 2 > 10


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.OPERATOR])
def test_classes_are_charged_as_documented(cause: Cause) -> None:
    (row,) = re.findall(rf"^\| {cause} \| ([^|]+) \|", RECOVERY, re.MULTILINE)
    charged = {c for c in FailureClass if CAUSE_OF.get(c, Cause.INFRASTRUCTURE) is cause}
    assert set(re.findall(r"`(\w+)`", row)) == {c.value for c in charged}


def headings(page: Path) -> set[str]:
    """Anchors of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in found}


def is_dead(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return not target.exists() or bool(anchor and anchor not in headings(target))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    assert [link for link in links if is_dead(page, link)] == []


def test_a_dead_link_is_found() -> None:
    page = ROOT / "docs" / "getting-started.md"
    assert not is_dead(page, "trainers/index.md#go-on")
    assert is_dead(page, "trainers/index.md#go-off")
    assert is_dead(page, "#nowhere")
    assert is_dead(page, "nowhere.md")


# What native readers stumble over; CONTRIBUTING.md, which forbids these phrases, quotes them.
DIALECT = (
    r"\bso (?:many|long)(?! (?:as|that))\b",
    r"\bbelongs? into\b",
    r"\b(?:is|are) no (?:number|node|run)\b",
    r"\b(?:is|are|was|were) told\b",
    r"(?:^|\. )(?:Who|Whoever|What) (?:is|are|was|has|runs) [^?|]*?\. ",
    r"\b(?:is|are) given up\b",
    r"\bcondemn",
    r"\bcomes? up\b",
)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CONTRIBUTING.md"], ids=name_of)
def test_no_dialect(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [m[0] for phrase in DIALECT for m in re.finditer(phrase, text, re.MULTILINE)]
    assert found == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CONTRIBUTING.md"], ids=name_of)
def test_files_exist(page: Path) -> None:
    """Source files are named by their path from the top. Those of recipes: test_recipes.py."""
    top = r"`((?:babysit|benchmarks|jobs|migrations|monitors|orchestrator|scripts|tests)/[\w./]+)`"
    named = set(re.findall(top, page.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_folder_of_the_core_is_described() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    described = re.findall(r"^\| `(\w+)/` \| ", page, re.MULTILINE)
    core = (ROOT / "orchestrator" / "core").iterdir()
    assert sorted(described) == sorted(d.name for d in core if (d / "__init__.py").exists())


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each `babysit …` in backticks, and of each line of a code block that is one."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in fenced if language in {"", "sh", "bash"}]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        # What a shell runs, without prompts, variables, redirections and comments.
        for part in re.split(r"&&|\||\$\(| \d?>", line.partition(" #")[0].removeprefix("$ ")):
            said = re.match(r"\s*(?:\w+=\S* )*babysit( [^)]+)?", part)
            if said is not None:
                yield shlex.split(said[1] or "")


def unknown(words: list[str]) -> str:
    """The first command or option that does not exist; empty when all do."""
    command = typer.main.get_command(app)
    rest = iter(words[: words.index("--")] if "--" in words else words)
    for word in rest:
        below = getattr(command, "commands", {})  # of a group
        name, _, value = word.partition("=")
        option = next((p for p in command.params if name in p.opts), None)
        if option is not None:
            if not (value or getattr(option, "is_flag", False)):
                next(rest, None)
        elif (word.startswith("-") or below) and word not in {*below, "--help"}:
            return f"{word} of {command.name}"
        command = below.get(word, command)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    assert [words for words in commands(page) if unknown(words)] == []


def test_what_does_not_exist_is_found() -> None:
    assert unknown(["nodes", "fix", "node-1"]) == "fix of nodes"
    assert unknown(["ls", "--colour"]) == "--colour of ls"
    assert unknown(["nodes", "drain", "node-1", "--reason", "disk"]) == ""
    assert len(list(commands(ROOT / "README.md"))) > 3


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.name)
def test_scripts_of_pages_do_without_babysit(script: Script) -> None:
    """Only marked lines are there for babysit. tests/acceptance/test_trainer_pages.py runs them."""
    compile(script.text, script.page, "exec")
    compile(script.without, script.page, "exec")
    assert "babysit" not in script.without
    assert "babysit" in script.text


def test_the_pages_of_trainers_say_how_many_lines_are_for_babysit() -> None:
    table = dict(re.findall(r"\((\w+)\.md\) \| ([\d, ]+) \|", (DIRECTORY / "index.md").read_text()))
    lines: dict[str, set[str]] = {page: set() for page in table}
    for script in scripts():
        lines[script.page].add(str(script.text.count(f"{MARK}\n")))
    assert lines == {page: set(said.split(", ")) for page, said in table.items()}
