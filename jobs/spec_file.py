"""Reads a run spec from YAML. Each problem is one line: `run.yaml:3:10: queue: expected …`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from jobs.schema_words import allows_boolean, expected, no_such_field, shown
from jobs.spec import RunSpec

MAX_BYTES = 1_000_000
"""A spec larger than this is a mistake (a checkpoint passed by accident, say)."""

FieldPath = tuple[str | int, ...]
"""Keys and indices from the root to a field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec. Line and column count from 1; 0: not known."""

    name: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        """`run.yaml:3:10: resources.nodes: expected …`."""
        position = f":{self.line}:{self.column}" if self.line else ""
        field = f"{self.field}: " if self.field else ""
        return f"{self.name}{position}: {field}{self.message}"


class SpecError(ValueError):
    """The spec is wrong. `str()` has one line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a spec came from, with the position of every field."""

    name: str
    tree: Any = None
    """What ruamel read, with positions; None: no text was read."""

    def problem(self, path: FieldPath, message: str, *, at_key: bool = False) -> Problem:
        """A problem with the field at `path`, at its value's position (or its key's)."""
        line, column = self._position(path, at_key=at_key)
        return Problem(self.name, line, column, dotted(path), message)

    def _position(self, path: FieldPath, *, at_key: bool) -> tuple[int, int]:
        """Line and column, from 1. What was not written stands where its parent does."""
        if not hasattr(self.tree, "lc"):
            return (0, 0) if self.tree is None else (1, 1)
        found, node = (self.tree.lc.line or 0, self.tree.lc.col or 0), self.tree
        for depth, key in enumerate(path):
            known = getattr(getattr(node, "lc", None), "data", None) or {}
            if key not in known:
                break
            start = 0 if at_key and depth == len(path) - 1 else -2
            found = tuple(known[key][start:][:2])
            node = node[key]
        return found[0] + 1, found[1] + 1


def dotted(path: FieldPath) -> str:
    """`resources.nodes`, `command[3]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def load(path: str | Path) -> RunSpec:
    """Read a spec from a file.

    Raises:
        SpecError: the file cannot be read or is no valid spec.
    """
    return read(path)[0]


def loads(text: str, name: str = "run.yaml") -> RunSpec:
    """Read a spec from text; `name` is what problems are reported under.

    Raises:
        SpecError: the text is no valid spec.
    """
    return parse(text, name)[0]


def read(path: str | Path) -> tuple[RunSpec, Source]:
    """Like :func:`load`, with the positions, for :func:`resolve`."""
    return parse(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: it cannot be read.
    """
    name = str(path)

    def refuse(message: str) -> SpecError:
        return SpecError([Problem(name, 0, 0, "", message)])

    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        return raw.decode()
    except FileNotFoundError as error:
        raise refuse("no such file; `babysit init` writes a starter") from error
    except IsADirectoryError as error:
        raise refuse("is a directory; name a YAML file in it") from error
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start})") from error


def parse(text: str, name: str = "run.yaml") -> tuple[RunSpec, Source]:
    """Read a spec from text, with the positions.

    Raises:
        SpecError: the text is no valid spec.
    """
    tree = _parse_yaml(text, name)
    source = Source(name, tree)
    if not isinstance(tree, CommentedMap):
        raise SpecError([source.problem((), f"expected a mapping of fields, got {shown(tree)}")])
    return validate(_plain(tree, {}), source), source


def validate(raw: Mapping[Any, Any], source: Source) -> RunSpec:
    """Check plain data against the spec.

    Raises:
        SpecError: with every problem found.
    """
    problems = [
        source.problem(path, f"expected {expected(path)}, got {shown(value)}")
        for path, value in _leaves(raw)
        if isinstance(value, bool) and not allows_boolean(path)
    ]
    try:
        spec = RunSpec.model_validate(raw)
    except ValidationError as error:
        problems += _explain(error, raw, source)
        spec = None
    if problems or spec is None:
        raise SpecError(sorted(set(problems), key=lambda p: (p.line, p.column, p.message)))
    return spec


def resolve(spec: RunSpec, base_directory: str | Path, source: Source | None = None) -> RunSpec:
    """The spec with absolute directories, checked against the file system. Leaves nothing behind.

    Args:
        spec: A valid spec.
        base_directory: What a relative `workdir` is relative to: the directory of the spec file.
        source: Positions for the problems.

    Raises:
        SpecError: workdir, the script or the checkpoint directory will not do.
    """
    source = source or Source("spec")
    workdir = Path(base_directory, spec.workdir).absolute()
    if not workdir.is_dir():
        what = "is not a directory" if workdir.exists() else "no such directory"
        raise SpecError([source.problem(("workdir",), f"{what}: {workdir}")])
    problems = []
    if not spec.image and (message := _missing_program(spec.command, workdir)):
        problems.append(source.problem(("command",), message))
    checkpoint = spec.checkpoint
    if checkpoint.directory is not None:
        directory = Path(workdir, checkpoint.directory).absolute()
        if message := _not_writable(checkpoint.directory, directory):
            problems.append(source.problem(("checkpoint", "directory"), message))
        # Without links: one place has one name, so that the core can tell who shares it.
        checkpoint = checkpoint.model_copy(update={"directory": str(directory.resolve())})
    if problems:
        raise SpecError(problems)
    return spec.model_copy(update={"workdir": str(workdir), "checkpoint": checkpoint})


def _parse_yaml(text: str, name: str) -> Any:
    def refuse(message: str, line: int = 0, column: int = 0) -> SpecError:
        return SpecError([Problem(name, line, column, "", message)])

    if len(text) > MAX_BYTES:
        raise refuse(f"is larger than {MAX_BYTES:,} bytes: this is no run spec")
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise refuse(_syntax_words(error), *position) from error
    except ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        message = f"character #x{error.character:04x} is not allowed in YAML"
        raise refuse(message, before.count("\n") + 1, column) from error
    except RecursionError as error:
        raise refuse("is nested too deeply") from error
    except (YAMLError, ValueError) as error:
        raise refuse(f"is not valid YAML: {str(error).splitlines()[0]}") from error
    if tree is None:
        raise refuse("is empty; `babysit init` writes a starter")
    return tree


def _syntax_words(error: MarkedYAMLError) -> str:
    problem = str(error.problem)
    if match := re.match(r'found duplicate key "(.*?)"', problem):
        return f"{match[1]}: is given twice"
    if r"'\t'" in problem:
        return "tab character; indent with spaces"
    if "another document" in problem:
        return "a second document begins here (---); one file holds one run"
    if "mapping values are not allowed" in problem:
        return "a `:` where no mapping can begin; check the indentation, or quote the text"
    context = f" ({error.context})" if error.context else ""
    return f"YAML: {problem}{context}"


def _plain(node: Any, seen: dict[int, Any]) -> Any:
    """Ruamel's nodes as plain Python values; aliases stay shared."""
    if id(node) in seen:
        return seen[id(node)]
    if isinstance(node, CommentedMap):
        mapping: dict[Any, Any] = {}
        seen[id(node)] = mapping
        mapping.update({key: _plain(value, seen) for key, value in node.items()})
        return mapping
    if isinstance(node, CommentedSeq):
        items: list[Any] = []
        seen[id(node)] = items
        items.extend(_plain(value, seen) for value in node)
        return items
    if isinstance(node, TaggedScalar):
        return node  # refused by every field: tags mean nothing here
    if isinstance(node, bool) or type(node).__name__ == "ScalarBoolean":
        return bool(node)
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _leaves(node: Any, path: FieldPath = ()) -> list[tuple[FieldPath, Any]]:
    """Scalars with their paths, no deeper than any field of the spec lies."""
    if len(path) > 4:
        return []
    if isinstance(node, Mapping):
        return [leaf for key, value in node.items() for leaf in _leaves(value, (*path, key))]
    if isinstance(node, list):
        return [leaf for i, value in enumerate(node) for leaf in _leaves(value, (*path, i))]
    return [(path, node)]


def _explain(error: ValidationError, raw: Mapping[Any, Any], source: Source) -> list[Problem]:
    """One problem for each field, however many branches of a union refused it."""
    by_path: dict[FieldPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        path = _written_path(item["loc"], raw, missing=item["type"] == "missing")
        by_path.setdefault(path, []).append(item)
    return [
        _problem(path, items, source)
        for path, items in by_path.items()
        if not any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
    ]


def _written_path(loc: Sequence[str | int], raw: Any, *, missing: bool) -> FieldPath:
    """Pydantic's location without the names of union branches, which nobody wrote."""
    path: list[str | int] = []
    for position, key in enumerate(loc):
        inside = (isinstance(raw, Mapping) and key in raw) or (
            isinstance(raw, list) and isinstance(key, int) and key < len(raw)
        )
        if inside:
            raw = raw[key]
        elif not (missing and position == len(loc) - 1):
            continue
        path.append(key)
    return tuple(path)


def _problem(path: FieldPath, items: Sequence[Mapping[str, Any]], source: Source) -> Problem:
    kinds = {item["type"] for item in items}
    if "missing" in kinds:
        return source.problem(path, f"is required: {expected(path)}")
    if kinds & {"extra_forbidden", "invalid_key"}:
        return source.problem(path, no_such_field(path), at_key=True)
    own = [item for item in items if item["type"] == "value_error"]
    if own and not any("expected" in item["msg"] for item in own):
        return source.problem(path, str(own[0]["ctx"]["error"]))
    value = items[-1]["input"]
    message = f"expected {expected(path)}, got {shown(value)}"
    if kinds == {"string_type"} and isinstance(value, (int, float, dt.date)):
        message += f'; put it in quotes: "{shown(value)}"'
    return source.problem(path, message)


def _missing_program(command: Sequence[str], workdir: Path) -> str | None:
    """What is wrong with the program or the script of a `python SCRIPT` command, if anything."""
    program, *arguments = command
    if "/" in program and shutil.which(str(Path(workdir, program))) is None:
        missing = not Path(workdir, program).exists()
        return f"{program}: no such file in {workdir}" if missing else f"{program}: not executable"
    if not re.fullmatch(r"python(\d+(\.\d+)?)?", Path(program).name):
        return None
    remaining = iter(arguments)
    for argument in remaining:
        if argument in {"-W", "-X"}:
            next(remaining, None)
        elif argument.startswith(("-m", "-c")) or argument == "-":
            return None
        elif not argument.startswith("-"):
            found = Path(workdir, argument).exists()
            return None if found else f"{argument}: no such file in {workdir}"
    return "expected a script after python, such as [python, train.py]"


def _not_writable(written: str, directory: Path) -> str | None:
    """Why a directory cannot be made or written to, found out without leaving anything behind."""
    if "://" in written:
        return f"expected a directory every node can reach, got the URL {written}"
    ancestor = next(path for path in (directory, *directory.parents) if path.exists())
    if not ancestor.is_dir():
        return f"cannot be created: {ancestor} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            return None
    except OSError as error:
        return f"{directory} cannot be written: {error.strerror} ({ancestor})"
