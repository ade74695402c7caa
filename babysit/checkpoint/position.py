"""The position of a rank as a file: its place in the data, random generators, and counters.

JSON, see :mod:`babysit.plain`; small tensors and arrays (states of generators) are in it.
Standard library only.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from babysit import plain
from babysit.data import Position
from babysit.errors import StateMismatchError
from babysit.plain_values import NotPlainError, decode_tensor, encode_tensor

POSITION_FILE = "position.json"
"""Step, position in the data, and random generators of the rank."""
_OLD_FILE = "position.pickle"
_KEY = "position"


def dumps(saved: dict[str, Any]) -> bytes:
    """The content of `POSITION_FILE`.

    Raises:
        StateMismatchError: A loader's own state has a value that cannot be saved.
    """
    place: Position = saved[_KEY]
    fields = {field.name: getattr(place, field.name) for field in dataclasses.fields(place)}
    try:
        return plain.dumps({**saved, _KEY: fields}, encode_tensor)
    except NotPlainError as error:
        keys = "/".join(map(str, error.path[1:]))
        raise StateMismatchError(
            f"the position in the data cannot be saved: {keys} is {error}, which is restored only"
            " by running code that the checkpoint would name. Let the loader's state_dict() return"
            " plain values: numbers, texts, containers, arrays and tensors"
        ) from error


def load(directory: Path) -> dict[str, Any]:
    """Read the position in a rank's shard.

    Raises:
        StateMismatchError: It is of another version of babysit, or names a class that is absent.
        OSError: The file cannot be read.
    """
    file = directory / POSITION_FILE
    if not file.exists() and (directory / _OLD_FILE).exists():
        raise StateMismatchError(
            f"{directory}: saved by a development version of babysit before 0.1.0, with a pickled"
            " position, which is not loaded: its load could run any code. Use another checkpoint"
            " directory, or load it with the version that saved it"
        )
    try:
        return loads(file.read_bytes())
    except (LookupError, TypeError, ValueError) as error:
        raise StateMismatchError(
            f"{file}: {error}. Import what the loader's state_dict() returns before"
            " run.restore(state), or use another checkpoint directory"
        ) from error


def loads(content: bytes) -> dict[str, Any]:
    """Parse what :func:`dumps` returned.

    Raises:
        LookupError: A class in it is absent; also TypeError and ValueError: it is not of this kind.
    """
    saved: dict[str, Any] = plain.loads(content, decode_tensor)
    saved[_KEY] = Position(**saved[_KEY])
    return saved
