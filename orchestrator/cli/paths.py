"""Paths of the API, made of what a person typed."""

from __future__ import annotations

from urllib.parse import quote

from orchestrator.cli.errors import CliError, ExitCode


def path(*parts: object) -> str:
    """A path under the API, each part quoted.

    Raises:
        CliError: A part is empty, `.` or `..`, or has a slash: it would name something else.
    """
    return "".join(f"/{_quoted(str(part))}" for part in parts)


def checkpoint_path(run: str, checkpoint: str, *verb: str) -> str:
    """The path of a checkpoint: an id has slashes, such as `2/directory/40`.

    Raises:
        CliError: See :func:`path`.
    """
    return path("runs", run, "checkpoints", *checkpoint.split("/"), *verb)


def _quoted(part: str) -> str:
    if part in {"", ".", ".."} or "/" in part:
        raise CliError(f"expected a name or an id, got {part!r}", ExitCode.USAGE)
    return quote(part, safe="")
