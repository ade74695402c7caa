"""Plain English in docstrings, comments and messages: the part that a machine can check."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("babysit", "monitors", "jobs", "orchestrator", "benchmarks")

OPENINGS = re.compile(
    r"(It|Its|What|Who|Whose|Whoever|Whether|Those|These are|Of those|Of these|One of|Some of|So"
    r"|They|Their|The same|As it|How so|Ours|Theirs|Nobody|Everybody|Somebody)\b(?! worker\b)"
)
"""First words of a summary that name no thing: a pronoun, or a relative clause without its noun."""

BANNED = re.compile(
    r"""\b(so\ (many|much|long|often|large|late)\b(?!,?\ (that|as)\b)  # dangling: "that many"
    |so\ long\ as\ it
    |belongs?\ into
    |(?<!there\ )\b(is|was|are|were)\ no\ (?!(longer|more)\b)\w+   # "is not a number"
    |(?<!there\ )\bis\ (?-i:none)\b(?!,)
    |(is|are|was|were)\ told\b
    |whoever
    |com(e|es|ing)\ up\b
    |(is|are|was|were)\ (asked\ to\ leave|given\ up|condemned))""",
    re.VERBOSE | re.IGNORECASE,
)
"""Phrases that are not English here, and household words for actions that have a name."""


def sources() -> Iterator[Path]:
    """The files whose English is checked."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Line and content of every docstring, those of attributes included."""
    for node in ast.walk(ast.parse(text)):
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, child.value.value


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Line and content of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def messages(text: str) -> Iterator[tuple[int, str]]:
    """Line and content of every other string with more than one word: what people may read."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def faults(text: str) -> list[tuple[int, str]]:
    """Line and words of everything that the rules forbid in a source text."""
    prose = list(docstrings(text))
    found = [(line, match[0]) for line, doc in prose if (match := OPENINGS.match(doc.lstrip()))]
    for line, words in dict.fromkeys((*prose, *messages(text), *comments(text))):
        flat = re.sub(r"\s+", " ", words)
        found += [(line, match[0]) for match in BANNED.finditer(flat)]
    return sorted(found)


def test_docstrings_comments_and_messages_are_plain_english() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}": words
        for file in sources()
        for line, words in faults(file.read_text())
    }
    assert found == {}


@pytest.mark.parametrize(
    "wrong",
    [
        '"""What a run has."""',
        '"""Who goes first."""',
        '"""It was told so."""',
        '"""Those of them that are not kept for others."""',
        '"""Whether there is a node."""',
        'x = 1\n"""Half after so long (Slurm\'s default)."""',
        '"""Wait.\n\nThe loss is no number.\n"""',
        "# the field does not belong into a spec",
        "# the nodes go to whoever comes next",
        'raise ValueError(f"{text} is no number: give one")',
    ],
)
def test_bad_english_is_found(wrong: str) -> None:
    assert faults(wrong)


@pytest.mark.parametrize(
    "right",
    [
        '"""The nodes that a run holds."""',
        '"""True if the run is no longer live."""',
        '"""Copy the state, so that training can continue."""',
        "# so often that the disk fills",
    ],
)
def test_plain_english_passes(right: str) -> None:
    assert faults(right) == []
