"""Expands `~` and variables in the paths of a spec, as a shell would."""

from __future__ import annotations

import pwd
import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\}?)")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"~([A-Za-z0-9_.-]*)")


class PathError(ValueError):
    """A path has a part that cannot be expanded; the message names it."""


def expand(path: str, variables: Mapping[str, str]) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` replaced; `$$` stands for a `$`.

    Nothing is expanded twice, and text that is not one of these is left as it is.

    Raises:
        PathError: A variable is not set or empty, there is no such user, or a `${…}` is more than a
            name. A directory called `~` or `$SCRATCH` is never what was meant.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2] or ""
        if match[1] is None and (not _PLAIN.fullmatch(name) or not match[0].endswith("}")):
            raise PathError(f"{match[0]} cannot be expanded: write ${{NAME}}, or $$ for a $")
        return _set(name, match[0], variables)

    home = _USER.match(path)
    if home is not None and path[home.end() : home.end() + 1] in {"", "/"}:
        rest = _VARIABLE.sub(value, path[home.end() :])
        return _home(home[1], variables) + rest or "/"
    return _VARIABLE.sub(value, path)


def _set(name: str, written: str, variables: Mapping[str, str]) -> str:
    found = variables.get(name)
    if not found:
        what = "is not set" if found is None else "is empty"
        raise PathError(
            f"{written} {what} in the environment of the submission: set it, or write the path out"
        )
    return found


def _home(user: str, variables: Mapping[str, str]) -> str:
    if not user:
        return _set("HOME", "~ (HOME)", variables).rstrip("/")
    try:
        return pwd.getpwnam(user).pw_dir.rstrip("/")
    except KeyError:
        raise PathError(f"~{user}: there is no such user on this machine") from None
