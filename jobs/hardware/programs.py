"""Programs that sources ask: smartctl, dcgmi, amd-smi; or the answers that they once gave."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Protocol

_SECONDS = 30.0
"""A healthy program answers in under two seconds; one that hangs is a finding of its own."""


class Program(Protocol):
    """A program with a name, and what it prints."""

    @property
    def there(self) -> bool:
        """True if it is installed."""

    def run(self, *arguments: str) -> str:
        """The standard output, with any exit code.

        Raises:
            OSError: It cannot be started, or does not answer in time.
        """


class LiveProgram:
    """A program of this machine."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def there(self) -> bool:
        """See the protocol."""
        return shutil.which(self._name) is not None

    def run(self, *arguments: str) -> str:
        """See the protocol."""
        program = shutil.which(self._name)
        if program is None:
            raise FileNotFoundError(self._name)
        try:
            return subprocess.run(  # noqa: S603 (the sources' own arguments)
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self._name} does not answer in {_SECONDS:g} s") from error


class RecordedProgram:
    """Answers in a directory: one file for each call, named after its arguments.

    `smartctl --json --all /dev/sda` is `smartctl --json --all _dev_sda`.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name

    @property
    def there(self) -> bool:
        """See the protocol."""
        return any(self._directory.glob(f"{self._name}*"))

    def run(self, *arguments: str) -> str:
        """See the protocol."""
        name = " ".join((self._name, *arguments)).replace("/", "_")
        return (self._directory / name).read_text()
