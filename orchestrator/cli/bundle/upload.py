"""Takes the code of a run to the server, which gets it unless it has it already."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from jobs.spec import RunSpec
from orchestrator.cli.bundle import archive
from orchestrator.cli.bundle.ignore import OWN_FILE
from orchestrator.cli.bundle.selection import Selection, check_size, select
from orchestrator.cli.client import Api
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import human_bytes, say
from orchestrator.cli.paths import path

_BIG = 16 * 2**20
"""Bytes from which on packing and uploading show their progress."""


class Code(NamedTuple):
    """The code of a run: what goes, and what is said about it."""

    selection: Selection

    def __str__(self) -> str:
        """For a dry run."""
        chosen = self.selection
        return f"Its code: {chosen.files:,} files of {chosen.root}, {human_bytes(chosen.size)}."

    def send(self, api: Api) -> str:
        """Pack the code, and upload it unless the server has it; its id.

        Raises:
            CliError: A file changed meanwhile, or the server refused the bundle.
        """
        selection = self.selection
        with tempfile.TemporaryFile() as file:
            with _shown(f"packing {selection.files:,} files", selection.size) as progress:
                bundle = archive.write(selection, file, progress)
            size = file.tell()
            where = path("bundles", bundle)
            if not api.has(where):
                with _shown(f"uploading the code, {human_bytes(size)}", size) as progress:
                    api.upload(where, lambda: _chunks(file, progress), size)
        return bundle


def choose(spec: RunSpec, workdir: Path, limit: int) -> Code:
    """Choose the files of a workdir, and tell which of them stay behind and may be missed.

    Args:
        spec: The run.
        workdir: Absolute.
        limit: Most bytes that the server takes.

    Raises:
        CliError: They cannot go: too much, a link that leads out, or a script that stays behind.
    """
    selection = select(workdir)
    check_size(selection, limit)
    _check_command(spec, selection)
    if selection.secrets:
        say(
            f"Not uploaded, since they look like secrets: {_few(selection.secrets)}. env_from"
            f" passes values to a run; a line !/{selection.secrets[0]} in {OWN_FILE} uploads it"
        )
    if selection.code:
        say(
            f"Not uploaded, since .gitignore excludes it: {_few(selection.code)}. If the run"
            f" imports it, a line !/{selection.code[0]} in {OWN_FILE} uploads it"
        )
    return Code(selection)


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _script(arguments: Sequence[str]) -> str | None:
    """The script that Python runs with these arguments; None: a module, or code of a string."""
    remaining = iter(arguments)
    for argument in remaining:
        if argument in {"-W", "-X"}:
            next(remaining, None)
        elif argument.startswith(("-m", "-c")) or argument == "-":
            return None
        elif not argument.startswith("-"):
            return argument
    return None


def _check_command(spec: RunSpec, selection: Selection) -> None:
    """Refuse a command that names a file of the workdir which does not go with the run."""
    program = spec.command[0]
    named = [program] if "/" in program and not program.startswith("/") else []
    if Path(program).name.startswith("python") and (script := _script(spec.command[1:])):
        named.append(script)
    for name in named:
        if name.startswith("/"):
            _note_own_path(name, selection.root)
        if name.startswith(("/", "~", "$")) or name in selection:
            continue
        if os.path.normpath(name).startswith("../"):
            raise CliError(
                f"command: {name} is outside of the workdir {selection.root}, which alone goes with"
                " the run: set `workdir` to a directory that has both",
                ExitCode.USAGE,
            )
        if any(name.startswith(f"{venv}/") for venv in selection.venvs):
            raise CliError(
                f"command: {name} is in a virtual environment, which holds on this machine alone:"
                " write `python`, which is that of the image",
                ExitCode.USAGE,
            )
        there = (selection.root / name).exists()
        why = (
            f"is left out by an ignore file; write !/{name} in {OWN_FILE}"
            if there
            else ("is not there")
        )
        raise CliError(f"command: {name} {why} ({selection.root})", ExitCode.USAGE)


def _note_own_path(name: str, root: Path) -> None:
    """Tell of a script that is named by its place on this machine; nodes may mount it there."""
    real = Path(os.path.realpath(name))
    if real.is_relative_to(root) and real.is_file():
        say(
            f"command: {name} is a path of this machine. On the nodes the code lies in another"
            f" directory: write {real.relative_to(root)}, unless they mount it there"
        )


def _chunks(file: IO[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    file.seek(0)
    sent = 0
    while data := file.read(2**18):
        yield data
        sent += len(data)
        progress(sent)


@contextlib.contextmanager
def _shown(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of something big on stderr."""
    if size < _BIG:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"{what} …")
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=size)
        yield lambda done: bar.update(task, completed=done)
