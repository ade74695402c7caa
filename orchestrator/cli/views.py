"""Reads views from the answers of a server that may be older or newer than the command line.

A newer server may send fields of a run's spec that this version does not know, and an older one
leaves out fields that were added since. The first are dropped; the second become null, or what is
empty for their kind. An answer that fits as it is costs no more.

Limits: a word that this version does not know, such as a new state, is still an error.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.version import package_version

_EMPTY: tuple[Any, ...] = (None, [], {}, "", 0)
"""Values for a field that is missing, in the order in which they are tried."""
V = TypeVar("V", bound=BaseModel)
Place = tuple[int | str, ...]


def read(kind: type[V], answer: Any) -> V:
    """A view from the answer of a server.

    Raises:
        CliError: The answer is not of this kind, in whatever version.
    """
    tried: dict[Place, int] = {}
    while True:
        try:
            return kind.model_validate(answer, extra="ignore")
        except ValidationError as error:
            answer = copy.deepcopy(answer)
            if not all(_mend(answer, each, tried) for each in error.errors()):
                first = error.errors(include_input=False)[0]
                raise CliError(
                    f"the server's answer cannot be read by babysit {package_version()}"
                    f" ({'.'.join(map(str, first['loc']))}: {first['msg']}): install the"
                    " version that the server has",
                    ExitCode.REFUSED,
                ) from error


def _mend(answer: Any, error: Any, tried: dict[Place, int]) -> bool:
    """Change an answer where it differs by its version; False: something else is wrong with it."""
    place: Place = error["loc"]
    try:
        for key in place[:-1]:
            answer = answer[key]
        if error["type"] != "missing" and place not in tried:
            return False
        tried[place] = tried.get(place, -1) + 1
        answer[place[-1]] = copy.deepcopy(_EMPTY[tried[place]])
    except (LookupError, TypeError):
        return False
    return True
