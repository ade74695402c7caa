"""Help at 80 columns: paragraphs flow, and every example is whole and is a command that exists."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from orchestrator.cli.help import EXAMPLE_COLUMNS, reflowed
from orchestrator.cli.main import app

COLUMNS = 80
_INSIDE = COLUMNS - 2
"""What is left beside the padding that the help is printed with."""


def commands(prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The root, and every command there is."""
    yield prefix
    command: Any = typer.main.get_command(app)
    for name in prefix:
        command = command.commands[name]
    for name in getattr(command, "commands", {}):
        yield from commands((*prefix, name))


def rendered(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prose and the examples of the help, as printed: what stands before the first panel."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERMINAL_WIDTH", str(COLUMNS))
    result = CliRunner().invoke(app, [*command, "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    text = result.stdout.partition("╭")[0]
    return [line.rstrip().removeprefix(" ") for line in text.splitlines()][2:]  # after the usage


def parse(line: str) -> None:
    """Parse an example as the shell and typer would; whatever is wrong with it is raised."""
    invocations = 0
    for part in re.split(r"&&|\||\$\(| \d?>", line):
        said = re.match(r"\s*(?:export )?(?:\w+=\S* )*babysit( [^)]+)?", part)
        if said is None:
            continue
        invocations += 1
        command: Any = typer.main.get_command(app)
        words = shlex.split(said[1] or "")
        context = command.make_context("babysit", words)
        while getattr(command, "commands", None) and (
            rest := [*context._protected_args, *context.args]
        ):
            name, command, words = command.resolve_command(context, rest)
            context = command.make_context(name, words, parent=context)
    assert invocations, f"no command in {line!r}"


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_examples_are_whole_and_parse(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = rendered(command, monkeypatch)
    examples = [line for line in lines if line.startswith("    ")]
    assert all(re.match(r"    \S", line) for line in examples), "indented alike"
    assert all(len(line) <= EXAMPLE_COLUMNS + 4 for line in examples)
    node: Any = typer.main.get_command(app)
    for name in command:
        node = node.commands[name]
    assert examples == [x for x in node.help.splitlines() if x.startswith("    ")], "none broken"
    if command and not (getattr(node, "commands", None) and command != ("server",)):
        assert examples, "every command has an example"
    for line in examples:
        parse(line.strip())


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_no_sentence_is_broken_by_a_line_of_the_source(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a paragraph goes on, the next word would not have fitted on the line before."""
    lines = rendered(command, monkeypatch)
    for line, after in itertools.pairwise(lines):
        if line and after and not line.startswith("    ") and not after.startswith("    "):
            assert len(line) + 1 + len(after.split()[0]) > _INSIDE, (line, after)


def test_what_does_not_parse_is_found() -> None:
    parse("RUN=$(babysit submit run.yaml -o name)")
    parse("babysit init my-run && babysit run my-run/run.yaml")
    for wrong in (
        "babysit nodes fix node-1",
        "babysit ls --colour",
        "babysit nodes drain node-2",
        "babysit wait tiny-gpt --timeout",
        "cat run.yaml",
    ):
        with pytest.raises((Exception, SystemExit)):
            parse(wrong)


def test_paragraphs_flow_and_examples_stand_together() -> None:
    assert reflowed("One\n    two.\n\n    Three\n    four:\n\n        a b\n\n        c\n    ") == (
        "One two.\n\n\nThree four:\n\n    a b\n    c"
    )
