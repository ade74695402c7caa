"""Reads a site's changes to the catalogue of hardware faults from a YAML file.

Each problem is one line: `hardware.yaml:3:10: rows[0].action: …`. The rows themselves are described
in :mod:`monitors.hardware.catalogue`.
"""

from __future__ import annotations

from pathlib import Path

from jobs.schema_words import Words
from jobs.yaml_file import FileKind, Problem, SpecError, read_text
from monitors.hardware.catalogue import Catalogue, RowFile
from monitors.hardware.catalogue_files import builtin_catalogue

_HINT = "; give `rows` or `change` (docs/monitors.md, Hardware)"
_ROWS = FileKind(
    RowFile,
    Words(RowFile.model_json_schema(), "a file of hardware rows"),
    "file of hardware rows",
    "set of hardware rows",
    _HINT,
)


def read(path: Path | None) -> Catalogue:
    """The catalogue with a site's changes; None: the rows that come with babysit.

    Raises:
        SpecError: The file cannot be read, or a row or a change of it is wrong; an unknown id has
            the nearest ones beside it.
    """
    if path is None:
        return builtin_catalogue()
    return parse(read_text(path, _HINT), str(path))


def parse(text: str, name: str = "hardware.yaml") -> Catalogue:
    """The catalogue with a site's changes, from text; `name` is what problems are reported under.

    Raises:
        SpecError: A row or a change is wrong.
    """
    file = _ROWS.parse(text, name)[0]
    try:
        return builtin_catalogue().changed(file)
    except ValueError as error:
        raise SpecError([Problem(name, 0, 0, "", str(error))]) from error
