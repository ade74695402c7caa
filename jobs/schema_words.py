"""Describes in words what a JSON Schema expects at a place, and which names exist there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_FORMATS = {
    "size": "a size such as 512Mi, 2Gi or 16G",
    "duration": "a duration such as 90s, 10m, 1h30m or 14d",
    "name": "lower-case letters, digits, dots and dashes (at most 63)",
    "reference": "file:PATH or env:NAME",
    "channel": 'a channel or a person such as "#training" or "@mia"',
}
_TYPES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


class Words:
    """The fields and expectations of one JSON Schema, in words.

    Args:
        schema: Of an object.
        what: What it describes, as in `the spec has name, queue …`.
        aliases: Names that people write instead, from other tools or from earlier versions, each
            with the full names of the fields that may be meant.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        what: str,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._schema, self._what, self._aliases = schema, what, aliases or {}

    def expected(self, path: Sequence[str | int]) -> str:
        """The value that the field at `path` wants: `an integer of at least 1, or {min, max}`."""
        words = [
            _describe(branch)
            for branch in self._branches(self._at(path))
            if branch.get("type") != "null"
        ]
        return ", or ".join(dict.fromkeys(words)) or "something else"

    def allows(self, path: Sequence[str | int], kind: str) -> bool:
        """True if the field at `path` takes values of a JSON type, or if there is no such field."""
        branches = list(self._branches(self._at(path)))
        return not branches or any(kind in _types(branch) for branch in branches)

    def no_such_field(self, path: Sequence[str | int]) -> str:
        """For an unknown name: the field that is probably meant, or the names there are.

        An alias counts before a similar name (`retries` is nearer to `resources` by its letters
        than to `recovery`), and a field at this place before one elsewhere.
        """
        name, level = str(path[-1]), self._names(path[:-1])
        fields = list(self._all_fields())
        meant = [full.split(".") for full in self._aliases.get(name.lower(), ())]
        known = [dotted(full) for full in meant if dotted(full) in fields]
        # The schema may hold the alias's own as a part: a scenario has a spec for each run.
        here = [full[-1] for full in meant if full[-1] in level and _ends(path[:-1], full[:-1])]
        here += [other for other in level if other.startswith(f"{name}_")]
        near = difflib.get_close_matches(name, level, n=1, cutoff=0.6)
        elsewhere = [full for full in fields if full.split(".")[-1] == name]
        if here or (near and not known):
            return f"no such field; did you mean {[*here, *near][0]}?"
        if known or elsewhere:
            return f"no such field here; did you mean {[*known, *elsewhere][0]}?"
        return f"no such field; {dotted(path[:-1]) or self._what} has {', '.join(level)}"

    def _resolved(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            node = self._schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return node

    def _branches(self, node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
        """The alternatives of a union; a plain node is its own only one."""
        if node is None:
            return
        node = self._resolved(node)
        if "anyOf" in node:
            outer = {"format": node["format"]} if "format" in node else {}
            for branch in node["anyOf"]:
                yield from self._branches({**outer, **branch})
        else:
            yield node

    def _at(self, path: Sequence[str | int]) -> Mapping[str, Any] | None:
        node: Mapping[str, Any] | None = self._schema
        for key in path:
            node = next((n for branch in self._branches(node) if (n := _child(branch, key))), None)
        return node

    def _names(self, path: Sequence[str | int]) -> list[str]:
        return [
            name
            for branch in self._branches(self._at(path))
            for name in branch.get("properties", {})
        ]

    def _all_fields(self, path: tuple[str, ...] = ()) -> Iterator[str]:
        for name in self._names(path):
            yield ".".join((*path, name))
            yield from self._all_fields((*path, name))


def _ends(path: Sequence[str | int], end: Sequence[str]) -> bool:
    return not end or [str(key) for key in path[-len(end) :]] == list(end)


def dotted(path: Sequence[str | int]) -> str:
    """`resources.nodes`, `command[3]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value as it was written, short enough for one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}…"'
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return "a list" if value else "an empty list"
    tag = getattr(value, "tag", None)
    return f"the tag {getattr(tag, 'value', tag)}" if tag is not None else str(value)


def _child(node: Mapping[str, Any], key: str | int) -> Mapping[str, Any] | None:
    if isinstance(key, int):
        child = node.get("items")
    else:
        child = node.get("properties", {}).get(key) or node.get("additionalProperties")
    return child if isinstance(child, Mapping) else None


def _types(node: Mapping[str, Any]) -> list[str]:
    kind = node.get("type", [])
    return [kind] if isinstance(kind, str) else list(kind)


def _describe(node: Mapping[str, Any]) -> str:
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    types = _types(node)
    if "array" in types:
        at_least = "a non-empty list" if node.get("minItems") else "a list"
        return f"{at_least} such as [a, b]"
    if "properties" in node:
        return f"{{{', '.join(node['properties'])}}}"
    if "object" in types:
        return "a mapping of names to values"
    words = _FORMATS.get(node.get("format", "")) or " or ".join(_TYPES[kind] for kind in types)
    words += _bounds(node)
    if "pattern" in node and "format" not in node:
        words += f" matching {node['pattern']}"
    return words


FAR = 1_000_000
"""Messages name a limit from here on only where a value exceeds it."""


def _bounds(node: Mapping[str, Any]) -> str:
    """How small and how large a number may be. Limits that only a slip exceeds are left out."""
    words = ""
    if node.get("minimum") is not None and node["minimum"] > 0:
        words = f" of at least {node['minimum']}"
    elif "minimum" in node:
        words = " of 0 or more"
    elif "exclusiveMinimum" in node:
        words = f" above {node['exclusiveMinimum']}"
    most = node.get("maximum")
    return words + (f" and at most {most}" if most is not None and most < FAR else "")
