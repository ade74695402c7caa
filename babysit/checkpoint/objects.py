"""The structures of a state as files: JSON, beside special tensors, which are not dense numbers.

Sparse, quantised and other special tensors, and objects of classes that the script has registered
with `torch.serialization.add_safe_globals`, are in a file of `torch.save`, which is loaded with
`weights_only=True`. So no file of a checkpoint runs code at its load.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import torch

from babysit import plain
from babysit.checkpoint.values import Opaque, Path, Ref, text_of
from babysit.errors import StateMismatchError
from babysit.plain_values import NotPlainError

OBJECTS_FILE = "objects.json"
EXTRAS_FILE = "extras.pt"
_OLD_FILE = "objects.pt"
_WHAT_TO_DO = (
    "Leave it out of the dict, keep what it is made from instead, give it a state_dict() and"
    " load_state_dict() of plain values, or register its class with"
    " torch.serialization.add_safe_globals([...]) before run.restore(state)"
)


class Extras:
    """Values that go into the file of `torch.save`, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        """A reference, or a value's number among the extras.

        Raises:
            NotPlainError: The value could not be loaded.
        """
        if type(value) is Ref:
            return ["ref", value.name, value.on_cpu, value.sharded]
        if id(value) not in self._numbers:
            _require_loads(value)
            self._numbers[id(value)] = len(self.values)
            self.values.append(value)
        return ["extra", self._numbers[id(value)]]


def _require_loads(value: Any) -> None:
    """Save and load it, but for the content of plain tensors, which always load."""
    if type(value) in {torch.Tensor, torch.nn.Parameter}:
        return
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise NotPlainError(value) from error


Structures = Mapping[Path, tuple[str, Any]]
"""Of each part of a state by path: its kind, and its structure."""


def require_saves(structures: Structures) -> None:
    """Refuse what :func:`encode` would refuse, without copying tensors.

    Raises:
        StateMismatchError: Names the value that cannot be saved, and says what to do.
    """
    _dumps(structures, Extras())


def encode(structures: Structures) -> dict[str, bytes]:
    """The files by name.

    Raises:
        StateMismatchError: Names the value that cannot be saved, and says what to do.
    """
    extras = Extras()
    files = {OBJECTS_FILE: _dumps(structures, extras)}
    if extras.values:
        file = io.BytesIO()
        torch.save(extras.values, file)
        files[EXTRAS_FILE] = file.getvalue()
    return files


def _dumps(structures: Structures, extras: Extras) -> bytes:
    parts = [_as_list(path, *part) for path, part in structures.items()]
    try:
        return plain.dumps(parts, extras.encode, first={Ref})
    except NotPlainError as error:
        number, place, *inside = error.path
        path = (*parts[number][0], *inside) if place == _VALUE else parts[number][0]
        cause = error.__cause__  # torch's own words on what it does not load are long
        why = f" ({cause})" if cause and not isinstance(cause, pickle.UnpicklingError) else ""
        raise StateMismatchError(
            f"{text_of(path)!r} in the state cannot be saved: {error} is restored only by running"
            f" code that the checkpoint would name{why}. {_WHAT_TO_DO}"
        ) from error


_VALUE = 3
"""Index of the structure in the list of a part."""


def _as_list(path: Path, kind: str, structure: Any) -> list[Any]:
    opaque = isinstance(structure, Opaque)
    return [path, str(kind), opaque, structure.value if opaque else structure]


def load(directory: File) -> Structures:
    """Read the structures of a rank's shard; special tensors are on this process's GPU, or the CPU.

    Raises:
        StateMismatchError: They are of another version of babysit, or hold an object of a class
            that the script lacks.
        OSError: The files cannot be read.
    """
    file = directory / OBJECTS_FILE
    if not file.exists() and (directory / _OLD_FILE).exists():
        raise StateMismatchError(
            f"{directory}: saved by a development version of babysit before 0.1.0, as a pickle,"
            " which is not loaded: its load could run any code. Use another checkpoint directory,"
            " or load it with the version that saved it"
        )
    try:
        extras = _extras(directory / EXTRAS_FILE)
        parts = plain.loads(file.read_bytes(), lambda data: _decoded(data, extras))
    except (LookupError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise StateMismatchError(
            f"{file}: {error}. The state holds an object of a class that this script does not have:"
            " import or define the class, or register it (torch.serialization.add_safe_globals),"
            " before run.restore(state), or use another checkpoint directory"
        ) from error
    return {path: (kind, Opaque(value) if opaque else value) for path, kind, opaque, value in parts}


def _extras(file: File) -> list[Any]:
    if not file.exists():
        return []
    found: list[Any] = torch.load(file, map_location=_here, weights_only=True)
    return found


def _here(storage: Any, location: str) -> Any:
    """Storages of a GPU go to this process's GPU, whatever its number was."""
    if location.startswith("cuda") and torch.cuda.is_available():
        return storage.cuda(torch.cuda.current_device())
    return storage


def _decoded(data: Any, extras: list[Any]) -> Any:
    kind, *rest = data
    return Ref(*rest) if kind == "ref" else extras[rest[0]]
