"""Reads YAML files that a pydantic model describes, and says what is wrong with them, and where.

Each problem is one line: `run.yaml:3:10: queue: expected …`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from jobs.schema_words import FAR, Words, dotted, shown

M = TypeVar("M", bound=BaseModel)
MAX_BYTES = 1_000_000
"""A file larger than this is a mistake (a checkpoint passed by accident, say)."""
MAX_VALUES = 1_000_000
"""More than a file of that size can hold, unless its aliases stand for each other."""

FieldPath = tuple[str | int, ...]
"""Keys and indices from the root to a field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file. Line and column count from 1; 0: not known."""

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
    """A file is wrong. `str()` has one line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where data came from, with the position of every field."""

    name: str
    tree: Any = None
    """The tree that ruamel read, with positions; None: no text was read."""

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


@dataclasses.dataclass(frozen=True)
class FileKind(Generic[M]):
    """One kind of file."""

    model: type[M]
    words: Words
    what: str
    """As in `not a valid run spec`."""
    holds: str
    """The thing that one file describes."""
    hint: str = ""
    """Appended to the message when there is nothing to read."""
    depth: int = 4
    """Depth of the deepest field."""
    texts: frozenset[str] = frozenset()
    """Mappings at the top whose numbers mean what was written: `1.10` is not `1.1` there."""
    extensions: bool = False
    """Keys at the top that begin with `x-` are ignored: a place for anchors."""

    def parse(self, text: str, name: str) -> tuple[M, Source]:
        """Read one from text, with the positions.

        Raises:
            SpecError: The text is not a valid file of this kind.
        """
        raw, source = self.data(text, name)
        return self.validate(raw, source), source

    def data(self, text: str, name: str) -> tuple[dict[Any, Any], Source]:
        """The plain data of a text that is a mapping, unchecked, with the positions.

        Raises:
            SpecError: The text is not a mapping.
        """
        tree = self._parse_yaml(text, name)
        source = Source(name, tree)
        if not isinstance(tree, CommentedMap):
            raise SpecError(
                [source.problem((), f"expected a mapping of fields, got {shown(tree)}")]
            )
        if _unfolded(tree, {}) > MAX_VALUES:
            message = f"its aliases (*) stand for more than {MAX_VALUES:,} values; write them out"
            raise SpecError([source.problem((), message)])
        plain: dict[Any, Any] = _plain(tree, {})
        for field in self.texts.intersection(tree):
            if isinstance(tree[field], CommentedMap):
                plain[field] = {**plain[field], **_as_written(tree[field], text)}
        return plain, source

    def validate(self, raw: Mapping[Any, Any], source: Source) -> M:
        """Check plain data.

        Raises:
            SpecError: Has every problem found.
        """
        if self.extensions:
            raw = {key: value for key, value in raw.items() if not str(key).startswith("x-")}
        problems = [
            self._wrong_type(path, value, source)
            for path, value in _leaves(raw, self.depth)
            if (isinstance(value, bool) and not self.words.allows(path, "boolean"))
            or (isinstance(value, str) and _reads_as_number(value) and self._wants_number(path))
        ]
        try:
            made = self.model.model_validate(raw)
        except ValidationError as error:
            problems += self._explain(error, raw, source)
            made = None
        if problems or made is None:
            raise SpecError(sorted(set(problems), key=lambda p: (p.line, p.column, p.message)))
        return made

    def _wants_number(self, path: FieldPath) -> bool:
        """True if the field takes numbers and no text: pydantic would convert the text."""
        words = self.words
        number = words.allows(path, "integer") or words.allows(path, "number")
        return number and not words.allows(path, "string")

    def _wrong_type(self, path: FieldPath, value: object, source: Source) -> Problem:
        message = f"expected {self.words.expected(path)}, got {shown(value)}"
        hint = "; write it without quotes" if isinstance(value, str) else ""
        return source.problem(path, message + hint)

    def _parse_yaml(self, text: str, name: str) -> Any:
        def refuse(message: str, line: int = 0, column: int = 0) -> SpecError:
            return SpecError([Problem(name, line, column, "", message)])

        if len(text) > MAX_BYTES:
            raise refuse(f"is larger than {MAX_BYTES:,} bytes, too large for a {self.what}")
        try:
            tree = YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            if missing := _missing_colon(error, text):
                raise refuse(*missing) from error
            mark = error.problem_mark or error.context_mark
            position = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            raise refuse(_syntax_words(error, self.holds), *position) from error
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
            raise refuse(f"is empty{self.hint}")
        return tree

    def _explain(
        self, error: ValidationError, raw: Mapping[Any, Any], source: Source
    ) -> list[Problem]:
        """One problem for each field, however many branches of a union refused it."""
        by_path: dict[FieldPath, list[Any]] = {}
        for item in error.errors(include_url=False):
            path = _written_path(item["loc"], raw, missing=item["type"] == "missing")
            by_path.setdefault(path, []).append(item)
        return [
            self._problem(path, items, source)
            for path, items in by_path.items()
            if not any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
        ]

    def _problem(
        self, path: FieldPath, items: Sequence[Mapping[str, Any]], source: Source
    ) -> Problem:
        kinds = {item["type"] for item in items}
        if "missing" in kinds:
            return source.problem(path, f"is required: {self.words.expected(path)}")
        if kinds & {"extra_forbidden", "invalid_key"}:
            return source.problem(path, self.words.no_such_field(path), at_key=True)
        large = [
            item for item in items if item["type"] == "less_than_equal" and item["ctx"]["le"] >= FAR
        ]
        if large:
            most, found = large[0]["ctx"]["le"], shown(large[0]["input"])
            return source.problem(path, f"{found} is too large: at most {most:,.0f}")
        own = [item for item in items if item["type"] == "value_error"]
        if own and not any("expected a " in item["msg"] for item in own):
            return source.problem(path, str(own[0]["ctx"]["error"]))
        value = items[-1]["input"]
        message = f"expected {self.words.expected(path)}, got {shown(value)}"
        if kinds == {"string_type"} and isinstance(value, (int, float, dt.date)):
            message += f'; put it in quotes: "{shown(value)}"'
        return source.problem(path, message)


def read_text(path: str | Path, hint: str = "") -> str:
    """The text of a file; `hint` is appended to the message when it does not exist.

    Raises:
        SpecError: The file cannot be read.
    """
    name = str(path)

    def refuse(message: str) -> SpecError:
        return SpecError([Problem(name, 0, 0, "", message)])

    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        return raw.decode()
    except FileNotFoundError as error:
        raise refuse(f"no such file{hint}") from error
    except IsADirectoryError as error:
        raise refuse("is a directory; name a YAML file in it") from error
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start})") from error


def _missing_colon(error: MarkedYAMLError, text: str) -> tuple[str, int, int] | None:
    """Message, line and column if a `:` after a key is what the parser misses.

    The parser finds that out a line later. Either it could not find the `:` that it expected, or it
    has read both lines as one text, and meets the `:` of the second.
    """
    mark, lines = error.context_mark, text.splitlines()
    if "could not find expected ':'" in str(error.problem) and mark is not None:
        line, column = mark.line, mark.column
    elif "mapping values are not allowed" in str(error.problem) and error.problem_mark is not None:
        at = error.problem_mark.line
        above = [n for n in range(at) if lines[n].strip() and not lines[n].lstrip().startswith("#")]
        if not above or ":" in lines[above[-1]] or _indent(lines[above[-1]]) != _indent(lines[at]):
            return None
        line, column = above[-1], _indent(lines[above[-1]])
    else:
        return None
    written = lines[line][column:] if line < len(lines) else ""
    key = re.match(r"[\w.-]+", written)
    return None if key is None else (f"a `:` is missing after {key[0]}", line + 1, column + 1)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _reads_as_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*", text) is not None


_TWICE = re.compile(
    r'found duplicate key "(.*?)" with value "(.*?)" \(original value: "(.*)"\)', re.DOTALL
)


def _syntax_words(error: MarkedYAMLError, holds: str) -> str:
    problem = str(error.problem)
    if match := _TWICE.match(problem):
        key, now, first = match.groups()
        return f"{key}: is given twice, first as {first:.40}, then as {now:.40}"
    if r"'\t'" in problem:
        return "tab character; indent with spaces"
    if "another document" in problem:
        return f"a second document begins here (---); one file holds one {holds}"
    if "mapping values are not allowed" in problem:
        return "a `:` where no mapping can begin; check the indentation, or quote the text"
    context = f" ({error.context})" if error.context else ""
    return f"YAML: {problem}{context}"


def _unfolded(node: Any, known: dict[int, float]) -> float:
    """How many values there are when each alias is counted as often as it is used."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while inside: what holds itself has no end
        values = node.values() if isinstance(node, CommentedMap) else node
        known[id(node)] = 1 + sum(_unfolded(value, known) for value in values)
    return known[id(node)]


_WRITER = YAML(typ="rt")


def _as_written(node: CommentedMap, text: str) -> dict[Any, str]:
    """The numbers and truth values of a mapping, as its file has them."""
    lines = text.splitlines()
    found: dict[Any, str] = {}
    for key, value in node.items():
        if isinstance(value, bool):
            line, column = (node.lc.data or {}).get(key, (0, 0, -1, -1))[2:]
            word = re.match(r"\w+", lines[line][column:]) if 0 <= line < len(lines) else None
            if word and word[0].lower() == str(value).lower():
                found[key] = word[0]
        elif isinstance(value, int | float):
            found[key] = _WRITER.representer.represent_data(value).value
    return found


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


def _leaves(node: Any, depth: int, path: FieldPath = ()) -> list[tuple[FieldPath, Any]]:
    """Scalars with their paths, no deeper than any field lies."""
    if len(path) > depth:
        return []
    if isinstance(node, Mapping):
        return [leaf for key, value in node.items() for leaf in _leaves(value, depth, (*path, key))]
    if isinstance(node, list):
        return [leaf for i, value in enumerate(node) for leaf in _leaves(value, depth, (*path, i))]
    return [(path, node)]


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
