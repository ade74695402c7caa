"""Decides which files of a workdir stay behind, by the ignore files in it.

The order: `.babysitignore` files, then babysit's own defaults, then `.gitignore` files. The first
that says something about a path decides, and of files of one kind the deepest one is asked first,
as in git. So a line `!secret.pem` of a `.babysitignore` packs what anything else leaves out.
Patterns are git's own: `*.log`, `/data/`, `!keep.log`. As in git, nothing below a directory that is
left out can be packed.

Limits: git's global excludes and `.git/info/exclude` are not read, and a file that git tracks
although a pattern excludes it stays behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from pathspec import GitIgnoreSpec

OWN_FILE, GIT_FILE = ".babysitignore", ".gitignore"
NEVER = (".git", ".hg", ".svn", "__pycache__/", "*.pyc", ".ipynb_checkpoints/")
"""Patterns of what no node needs: histories, and files that programs write beside the code."""
SECRETS = (
    ".env",
    ".env.*",
    "!.env.example",
    "!.env.sample",
    "!.env.template",
    ".netrc",
    ".pypirc",
    ".git-credentials",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    ".ssh/",
    ".aws/",
    ".kube/",
    ".gnupg/",
)
"""Patterns of files that hold credentials as a rule."""
_VENV_MARK = "pyvenv.cfg"


class Why(StrEnum):
    """Why a path stays behind."""

    IGNORED = "ignored"  # a .babysitignore, or something that no node needs
    UNTRACKED = "untracked"  # a .gitignore
    CREDENTIAL = "credential"  # it looks like one
    VENV = "venv"  # a virtual environment, whose paths hold on this machine alone


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    """One ignore file: its patterns count below the directory that it lies in."""

    directory: Path
    spec: GitIgnoreSpec


class Ignore:
    """The ignore files that count in one directory of a tree.

    Args:
        directory: Absolute.
        own: The `.babysitignore` files that count here, the deepest last.
        git: The `.gitignore` files that count here, the deepest last.
    """

    def __init__(
        self, directory: Path, own: tuple[_File, ...] = (), git: tuple[_File, ...] = ()
    ) -> None:
        self._own = (*own, *_read(directory, OWN_FILE))
        self._git = (*git, *_read(directory, GIT_FILE))

    @classmethod
    def at(cls, root: Path) -> Ignore:
        """The ignore files at the root of a workdir, with those of the repository around it."""
        above: list[Path] = []
        if not (root / ".git").exists():
            for parent in root.parents:
                above.append(parent)
                if (parent / ".git").exists():
                    break
            else:
                above = []  # no repository: what lies around the workdir has no part in it
        git = tuple(file for each in reversed(above) for file in _read(each))
        # Somebody submits an ignored directory: that it is ignored says nothing about its files.
        is_ignored = _verdict(git, root, is_directory=True)
        return cls(root, git=() if is_ignored else git)

    def below(self, directory: Path) -> Ignore:
        """The ignore files that count in a directory below this one."""
        # A submodule is a repository of its own: git files around it say nothing about its files.
        is_repository = (directory / ".git").exists()
        return Ignore(directory, self._own, () if is_repository else self._git)

    def why(self, path: Path, *, is_directory: bool) -> Why | None:
        """Why a path stays behind; None: it goes with the run.

        Args:
            path: Absolute, in the directory of these files.
            is_directory: True for a directory itself, False for a link to one.
        """
        own = _verdict(self._own, path, is_directory=is_directory)
        if own is not None:
            return Why.IGNORED if own else None
        name = f"{path.name}/" if is_directory else path.name
        if is_directory and (path / _VENV_MARK).exists():
            return Why.VENV
        if _SECRETS.check_file(name).include:
            return Why.CREDENTIAL
        if _NEVER.check_file(name).include:
            return Why.IGNORED
        return Why.UNTRACKED if _verdict(self._git, path, is_directory=is_directory) else None


def _verdict(files: Iterable[_File], path: Path, *, is_directory: bool) -> bool | None:
    """True: ignored; False: a pattern with `!` includes it; None: no pattern fits."""
    for file in reversed([*files]):
        relative = path.relative_to(file.directory).as_posix()
        found = file.spec.check_file(f"{relative}/" if is_directory else relative).include
        if found is not None:
            return found
    return None


def _read(directory: Path, name: str = GIT_FILE) -> tuple[_File, ...]:
    try:
        # Editors of Windows write a mark of the byte order, which git passes over, too.
        text = (directory / name).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ()
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return (_File(directory, GitIgnoreSpec.from_lines(filter(_is_pattern, lines))),)


def _is_pattern(line: str) -> bool:
    """False for a line that git passes over, too, such as a lone `!`."""
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


_NEVER = GitIgnoreSpec.from_lines(NEVER)
_SECRETS = GitIgnoreSpec.from_lines(SECRETS)
