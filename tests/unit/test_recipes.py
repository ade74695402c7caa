"""The recipes of CONTRIBUTING.md: their files exist, are few, and are all that is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import Field, TypeAdapter

from jobs.schema_words import Words
from jobs.spec import RunSpec
from jobs.spec_file import SpecError
from jobs.yaml_file import FileKind

ROOT = Path(__file__).parents[2]
TARGETS = {
    "a monitor with a remedy": 6,
    "a cluster": 3,
    "an alert channel": 3,
    "a spec field": 2,
    "a command": 6,
}
"""Most source files that each kind of change may touch."""
TO_COME: set[str] = set()
PLACEHOLDER = re.compile(r"\b(NAME|NOUN|MODULE)\b")


def recipe(name: str) -> list[str]:
    """The files of a recipe's table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition(f"\n### Adding {name}\n")[2].partition("\n##")[0]
    return re.findall(r"^\| `([\w./]+\.py)` \|", section, re.MULTILINE)


def matches(file: str, recipe_file: str) -> bool:
    """Whether a file is the one, or one of those, that a line of a recipe means."""
    pattern = PLACEHOLDER.sub(r"[\\w/]+", re.escape(recipe_file))
    return re.fullmatch(pattern, file) is not None


@pytest.mark.parametrize("name", TARGETS)
def test_a_recipe_names_files_that_exist(name: str) -> None:
    files = recipe(name)
    assert files
    missing = [
        file
        for file in files
        if not (ROOT / (Path(file).parent if PLACEHOLDER.search(file) else file)).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_recipe_is_short(name: str) -> None:
    files = recipe(name)
    assert len(set(files)) == len(files) <= TARGETS[name]


def test_there_is_a_target_for_every_recipe() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^### Adding (.+)$", text, re.MULTILINE) == list(TARGETS)


@pytest.mark.parametrize(
    ("name", "word", "besides"),
    [
        # Precedents: the source files that mention one must all be in the recipe for its kind.
        ("a command", "QueueChanged", set()),
        ("a command", "MaintenancePlanned", set()),
        # A button in Slack is another way to give a command.
        ("a command", "RunHeld", {"orchestrator/alerts/slack_buttons.py"}),
        # The controller's default, for those who make a controller without a channel.
        ("an alert channel", "LogNotifier", {"orchestrator/controller/controller.py"}),
        ("a cluster", "LocalCluster", set()),
    ],
)
def test_what_exists_was_made_as_the_recipe_says(name: str, word: str, besides: set[str]) -> None:
    mentions = {
        str(file.relative_to(ROOT))
        for package in ("babysit", "monitors", "jobs", "orchestrator")
        for file in (ROOT / package).rglob("*.py")
        if re.search(rf"\b{word}\b", file.read_text())
    }
    # The fuzzer and the simulator play every command; nothing there is needed for one to work.
    product = {f for f in mentions if not f.startswith(("orchestrator/fuzz", "orchestrator/sim"))}
    files = recipe(name)
    unnamed = {f for f in product - besides if not any(matches(f, named) for named in files)}
    assert product
    assert unnamed == set()


class LongerSpec(RunSpec):
    """A spec with one field more, as a contributor would write it."""

    shm_size: int = Field(default=64, ge=1, description="MiB of shared memory of each rank.")


def test_a_spec_field_needs_no_more_than_its_declaration() -> None:
    schema = TypeAdapter(LongerSpec).json_schema()
    kind = FileKind(LongerSpec, Words(schema, "the spec"), "run spec", "run")
    text = "name: a\ncommand: [python, t.py]\n"
    assert kind.parse(text, "run.yaml")[0].shm_size == 64
    assert kind.parse(f"{text}shm_size: 128\n", "run.yaml")[0].shm_size == 128
    for wrong, message in [
        ("shm_size: 0\n", "run.yaml:3:11: shm_size: expected an integer of at least 1, got 0"),
        ("shm_sise: 1\n", "run.yaml:3:1: shm_sise: no such field; did you mean shm_size?"),
    ]:
        with pytest.raises(SpecError) as caught:
            kind.parse(text + wrong, "run.yaml")
        assert str(caught.value) == message
