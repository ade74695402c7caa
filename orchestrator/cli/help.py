"""Help that reads well on 80 columns: docstrings are reflowed once, before rich renders them.

A docstring is wrapped where its source line ends. Rich keeps those line ends and wraps again at
the width of the terminal, which leaves single words on lines of their own. So the root command
rewrites the help of every command below it: the lines of a paragraph are joined, and examples
(indented paragraphs) become one block with a line each. Rich still wraps an example that is too
long for the terminal: keep examples within :data:`EXAMPLE_COLUMNS`.
"""

from __future__ import annotations

import inspect
from typing import Any

EXAMPLE_COLUMNS = 74
"""Longest example, in characters: it stays whole on 80 columns, indented, beside the padding."""
INDENT = "    "
"""Before each example."""


def reflow(command: Any) -> None:
    """Rewrite the help of a command, and of every command below it, in place."""
    command.help = reflowed(command.help or "")
    for below in getattr(command, "commands", {}).values():
        reflow(below)


def reflowed(text: str) -> str:
    """Help text with the lines of each paragraph joined, and its examples in one block."""
    paragraphs: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        example = paragraph.startswith(INDENT)
        lines = [line.strip() for line in paragraph.splitlines()]
        if not example:
            paragraphs.append(" ".join(lines))
        elif paragraphs and paragraphs[-1].startswith(INDENT):
            paragraphs[-1] += "".join(f"\n{INDENT}{line}" for line in lines)
        else:
            paragraphs.append("\n".join(INDENT + line for line in lines))
    # Typer dedents all paragraphs but the first by the indent of their later lines, which would be
    # that of the examples. An empty line before them makes their first line count as well.
    return "\n\n\n".join(filter(None, [paragraphs[0], "\n\n".join(paragraphs[1:])]))
