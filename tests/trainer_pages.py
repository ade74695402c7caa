"""The scripts of docs/trainers/, and what the pages say that they print."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

DIRECTORY = Path(__file__).parents[1] / "docs" / "trainers"
MARK = "  # babysit"
BEFORE = "# before: "
CUT = "…"


@dataclasses.dataclass(frozen=True)
class Script:
    """A whole script of a page, and the session below it.

    Attributes:
        name: Name of its run.
        session: Command → the lines below it.
    """

    page: str
    name: str
    text: str
    session: dict[str, list[str]]

    @property
    def start(self) -> str:
        """The `babysit run` that starts it."""
        return next(line for line in self.session if line.startswith("babysit run"))

    @property
    def without(self) -> str:
        """The script without babysit."""
        lines = [line for line in self.text.splitlines() if not line.endswith(MARK)]
        return "\n".join(line.replace(BEFORE, "") for line in lines) + "\n"

    def printed(self, command: str) -> list[str]:
        """Lines of a command, without the marks of those that are left out."""
        return [line for line in self.session[command] if line and line != CUT]


def scripts() -> Iterator[Script]:
    """All scripts of all pages."""
    for page in sorted(DIRECTORY.glob("*.md")):
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        # Each script goes until the next one begins.
        starts = [place for place, (language, _) in enumerate(blocks) if language == "python"]
        for start, end in itertools.pairwise([*starts, len(blocks)]):
            session: dict[str, list[str]] = {}
            for language, block in blocks[start + 1 : end]:
                for part in (
                    re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if not language else ()
                ):
                    command, *lines = part.splitlines()
                    session[command.partition("  #")[0]] = lines
            run = next((line for line in session if line.startswith("babysit run")), "")
            if run:
                name = re.search(r"--name (\S+)", run)
                assert name is not None, f"{page.name}: a run without a name: {run}"
                yield Script(page.stem, name[1], blocks[start][1], session)
