"""`babysit report`: one file about a run, for people who were not there."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import say
from orchestrator.cli.session import RunArgument, session

if TYPE_CHECKING:
    from orchestrator.reports.report import Report


_STDOUT = Path("-")


class ReportFormat(StrEnum):
    """The format of a report."""

    HTML = "html"  # one file with everything
    PNG = "png"  # a picture: loss, time, restarts
    MD = "md"  # Markdown, for wikis and tickets


def report(
    ctx: typer.Context,
    run: RunArgument,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Default: RUN.html (or .png, .md) in the current directory; -: stdout.",
        ),
    ] = None,
    form: Annotated[
        ReportFormat | None,
        typer.Option("--format", help="Default: by the suffix of --output, else html."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file even if babysit did not write it.")
    ] = False,
) -> None:
    """Write a report of a run: one file that needs no server, no network and no script to read.

    It has the loss with incidents, restarts and rollbacks, the time by cause, the phases of each
    restart, the nodes, the checkpoints, and what other settings would have saved. An earlier report
    is replaced. Values of environment variables are left out.

    For example:

        babysit report tiny-gpt
        babysit report tiny-gpt --output reports/
        babysit report tiny-gpt --output tiny.png
    """
    from orchestrator.cli.run_record import read
    from orchestrator.reports.report import make
    from orchestrator.reports.what_if import what_if_of
    from orchestrator.version import package_version

    target = _target(output)
    chosen = _form(target, form)
    if target is not None and target != _STDOUT:
        _check(target, chosen, force=force)  # before the run is read: that may take seconds
    record = read(session(ctx), run)
    made = make(record, what_if_of(record), package_version())
    if target == _STDOUT:
        sys.stdout.buffer.write(_rendered(made, chosen))
        return
    file = _file(target, record.run.name, chosen)
    _check(file, chosen, force=force)
    write(file, _rendered(made, chosen))
    say(f"The report of {record.run.name}: {file}")


def _target(output: str | None) -> Path | None:
    """The file or directory of `--output`.

    Raises:
        CliError: It ends in a slash, and is not a directory.
    """
    if output and output.endswith(os.sep) and not Path(output).is_dir():
        raise _missing(output, Path(output))
    return Path(output) if output else None


def _missing(output: object, folder: Path) -> CliError:
    return CliError(
        f"--output {output}: there is no directory {folder}; create it first", ExitCode.USAGE
    )


def _form(output: Path | None, given: ReportFormat | None) -> ReportFormat:
    suffix = "" if output is None or output.is_dir() else output.suffix.lower().removeprefix(".")
    by_suffix = {"html": "html", "htm": "html", "png": "png", "md": "md", "markdown": "md"}
    if given is not None:
        return given
    if suffix and suffix not in by_suffix:
        raise CliError(
            f"--output {output}: a report ends in .html, .png or .md; with another suffix, give"
            " --format",
            ExitCode.USAGE,
        )
    return ReportFormat(by_suffix.get(suffix, "html"))


def _file(output: Path | None, name: str, form: ReportFormat) -> Path:
    """The file to write: `RUN.html` here, or in the directory that was given."""
    own = re.sub(r"[^\w.-]+", "_", name).strip(".") or "run"
    if output is None:
        return Path(f"{own}.{form}")
    return output / f"{own}.{form}" if output.is_dir() else output


_BEGINNINGS = {
    ReportFormat.HTML: b"<!doctype html>\n<html",
    ReportFormat.PNG: b"\x89PNG",
    ReportFormat.MD: b"# ",
}


def _check(file: Path, form: ReportFormat, *, force: bool) -> None:
    """Refuse what could not be written, or would lose a file of somebody.

    Raises:
        CliError: The directory is missing, or the file is something other than a report.
    """
    if not file.parent.is_dir():
        raise _missing(file, file.parent)
    if file.is_dir() or not file.exists() or force:
        return
    try:
        with file.open("rb") as old:
            begin = old.read(64)
    except OSError as error:
        raise _refused(file, error) from error
    if begin and not begin.startswith(_BEGINNINGS[form]):
        raise CliError(
            f"{file} exists, and does not look like a report: choose another --output, or replace"
            " it with --force",
            ExitCode.REFUSED,
        )


def _rendered(made: Report, form: ReportFormat) -> bytes:
    from orchestrator.reports import html, markdown

    if form is ReportFormat.PNG:
        from orchestrator.reports import picture

        return picture.draw(made)
    return (html.page(made) if form is ReportFormat.HTML else markdown.page(made)).encode()


def write(file: Path, content: bytes) -> None:
    """Write a file whole, or not at all: a reader never sees half of one.

    Raises:
        CliError: It cannot be written.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe or a device, such as /dev/stdout
            file.write_bytes(content)
            return
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            try:
                part.write(content)
                part.flush()
                Path(part.name).chmod(0o666 & ~_umask())
                Path(part.name).replace(file)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _refused(file, error) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refused(file: Path, error: OSError) -> CliError:
    return CliError(
        f"--output {file}: cannot be written: {error.strerror or error}", ExitCode.USAGE
    )
