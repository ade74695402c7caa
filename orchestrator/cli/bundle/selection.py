"""Chooses the files of a workdir that go with a run. Nothing is read but names and sizes."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.cli.bundle.ignore import OWN_FILE, Ignore, Why
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import human_bytes

_NAMED = 5
"""Largest files and directories that an error names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or symbolic link of a bundle."""

    path: str
    """Relative to the workdir, with slashes."""
    mode: int
    """Type and permissions, as `stat` gives them."""
    size: int = 0
    """Bytes of a file."""
    changed: int = 0
    """Time of the file's last change, in nanoseconds."""
    target: str = ""
    """Target of a link, relative to its directory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The files that go with a run, in the order in which they are packed."""

    root: Path
    """The workdir, without links."""
    entries: tuple[Entry, ...]
    secrets: tuple[str, ...]
    """Paths that stay behind since they look like credentials."""
    venvs: tuple[str, ...]
    """Virtual environments, which stay behind."""
    code: tuple[str, ...]
    """Python files, and directories with some, that stay behind since a .gitignore says so."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(stat.S_ISREG(entry.mode) for entry in self.entries)

    def __contains__(self, path: str) -> bool:
        """True if a path goes with the run, or is a link to something."""
        wanted = os.path.normpath(path)
        return wanted == "." or any(entry.path == wanted for entry in self.entries)


def select(workdir: Path) -> Selection:
    """The files of a workdir that go with a run.

    Sockets, pipes and devices stay behind. A link within the workdir stays a link.

    Raises:
        CliError: A link leads out of the workdir, or a directory cannot be read.
    """
    root = Path(os.path.realpath(workdir))
    walk = _Walk(root)
    try:
        walk.into(root, Ignore.at(root))
    except OSError as error:
        raise CliError(
            f"{error.filename}: {error.strerror}: it cannot be packed. Make it readable, or list it"
            f" in {root / OWN_FILE}",
            ExitCode.USAGE,
        ) from error
    entries = sorted(walk.entries, key=lambda entry: os.fsencode(entry.path))
    left = walk.left
    return Selection(
        root,
        tuple(entries),
        secrets=tuple(sorted(path for path, why in left.items() if why is Why.CREDENTIAL)),
        venvs=tuple(sorted(path for path, why in left.items() if why is Why.VENV)),
        code=tuple(
            sorted(
                path for path, why in left.items() if why is Why.UNTRACKED and _is_code(root / path)
            )
        ),
    )


def _is_code(path: Path) -> bool:
    """True for a module of Python, and for a directory that has one itself."""
    try:
        files = path.iterdir() if path.is_dir() and not path.is_symlink() else iter([path])
        return any(file.suffix in {".py", ".so"} for file in files)
    except OSError:
        return False


class _Walk:
    """Collects the entries of a tree; links are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.entries: list[Entry] = []
        self.left: dict[str, Why] = {}

    def into(self, directory: Path, ignore: Ignore) -> None:
        """Walk through a directory and all below it, without recursion: trees may be deep."""
        waiting = [(directory, ignore)]
        while waiting:
            place, rules = waiting.pop()
            with os.scandir(place) as found:
                for item in found:
                    path = Path(item.path)
                    inside = item.is_dir(follow_symlinks=False)
                    relative = path.relative_to(self._root).as_posix()
                    if why := rules.why(path, is_directory=inside):
                        self.left[relative] = why
                    elif self._take(path, relative) and inside:
                        waiting.append((path, rules.below(path)))

    def _take(self, path: Path, relative: str) -> bool:
        try:
            status = path.lstat()
        except FileNotFoundError:  # a temporary file, as editors make them
            return False
        mode = status.st_mode
        if stat.S_ISREG(mode):
            self.entries.append(Entry(relative, mode, status.st_size, status.st_mtime_ns))
        elif stat.S_ISLNK(mode):
            self.entries.append(Entry(relative, mode, target=self._target(path, relative)))
        elif stat.S_ISDIR(mode):
            self.entries.append(Entry(relative, mode))
        return True

    def _target(self, link: Path, relative: str) -> str:
        """The target of a link, relative to the directory of the link.

        Raises:
            CliError: It is outside of the workdir, where no node finds it.
        """
        written, real = str(link.readlink()), os.path.realpath(link)
        if not self._is_inside(real):
            raise CliError(
                f"{link} leads out of the workdir, to {real}: no other machine has it at that"
                f" place. List /{relative} in {self._root / OWN_FILE} (have the nodes mount what"
                " it stands for), or put a copy there",
                ExitCode.USAGE,
            )
        # A way that leaves the workdir and comes back, as `../project/x`, leads elsewhere there.
        joined = os.path.normpath(Path(relative).parent / written)
        is_portable = not written.startswith("/") and joined.split("/")[0] != ".."
        return written if is_portable else os.path.relpath(real, link.parent)

    def _is_inside(self, real: str) -> bool:
        return real == str(self._root) or real.startswith(f"{str(self._root).rstrip('/')}/")


def check_size(selection: Selection, limit: int) -> None:
    """Refuse a workdir that is larger than the server takes.

    Raises:
        CliError: It is; the message names the largest files and directories.
    """
    if selection.size <= limit:
        return
    largest = sorted(selection.entries, key=lambda entry: -entry.size)
    files = _listed([(entry.path, entry.size) for entry in largest if entry.size])
    directories = _listed(_by_directory(selection.entries))
    where = f", and the largest directories: {', '.join(directories)}" if directories else ""
    raise CliError(
        f"{selection.root} has {human_bytes(selection.size)} in {selection.files:,} files, and the"
        f" server takes {human_bytes(limit)} (BABYSIT_BUNDLE_BYTES). Its largest files:"
        f" {', '.join(files)}{where}. List in {selection.root / OWN_FILE} what the run"
        " does not need (data sets and checkpoints belong on a mount of the nodes), or set"
        " `upload: false` if the code is in the image",
        ExitCode.USAGE,
    )


def _by_directory(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    sizes: Counter[str] = Counter()
    for entry in entries:
        first, slash, _ = entry.path.partition("/")
        if slash:
            sizes[f"{first}/"] += entry.size
    return sizes.most_common()


def _listed(sizes: Sequence[tuple[str, int]]) -> list[str]:
    return [f"{path} ({human_bytes(size)})" for path, size in sizes[:_NAMED] if size]


def steps(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """The entries, each with the bytes of files before it, for a bar of progress."""
    before = 0
    for entry in entries:
        yield before, entry
        before += entry.size
