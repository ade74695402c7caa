"""Types of the fields of the run spec: sizes, durations, names, texts for processes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

MOST = 1_000_000
"""Limit of counts of nodes, processes, devices and tries: beyond it a figure is a slip."""
MOST_STEPS = 10**12
"""Limit of counts of steps and batches: 300 years at 100 a second."""
MOST_BYTES = 2**60
"""1 EiB."""
MOST_SECONDS = 100 * 365.25 * 86400.0
"""100 years. A moment that lies further ahead may be one that no calendar has."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_bytes(value: object) -> object:
    """`2Gi`, `512M` or a number of bytes, as bytes. Anything else is left for pydantic."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("expected a size such as 512Mi, 2Gi or 16G")
    unit = (match[2] or "").lower()
    size = float(match[1]) * {**_UNITS, **_BINARY_UNITS}[unit]
    return int(min(size, 2.0 * MOST_BYTES))  # what no integer holds is refused like the rest


def parse_seconds(value: object) -> object:
    """`90s`, `10m`, `1h30m`, `14d` or a number of seconds, also as text, as seconds."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return min(float(value), 2 * MOST_SECONDS)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", value.strip())
    if not parts or re.sub(r"\s", "", value) != "".join(n + u for n, u in parts):
        raise ValueError("expected a duration such as 90s, 10m, 1h30m or 14d")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return min(seconds, 2 * MOST_SECONDS)  # infinity is refused as too large, like the rest


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(ge=0, le=MOST_BYTES),
    WithJsonSchema(
        {"type": ["integer", "string"], "format": "size", "minimum": 0, "maximum": MOST_BYTES}
    ),
]
"""A size in bytes; YAML may say `2Gi`."""
MOST_GRACE = 3600
"""Seconds. People wait for the grace at each `cancel`."""


def _duration(most: float) -> WithJsonSchema:
    schema = {"type": ["number", "string"], "format": "duration", "exclusiveMinimum": 0}
    return WithJsonSchema({**schema, "maximum": most})


Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    Field(gt=0, le=MOST_SECONDS),
    _duration(MOST_SECONDS),
]
"""A duration in seconds; YAML may say `14d`."""
Grace = Annotated[
    float, BeforeValidator(parse_seconds), Field(gt=0, le=MOST_GRACE), _duration(MOST_GRACE)
]
Name = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$", json_schema_extra={"format": "name"}),
]
"""Lower-case letters, digits, dots and dashes, at most 63 characters."""


def _plain_text(value: object) -> object:
    """YAML's true, 1 and 0.5 as the text a shell would see. Anything else is left for pydantic."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _no_nul(value: str) -> str:
    """The text, if a process can be given it."""
    if "\0" in value:
        raise ValueError("has a NUL character, which no process can be given")
    return value


def _variable(name: str) -> str:
    """The name, if an environment can have it."""
    if not name or "=" in name:
        why = "it is empty or has a `=`"
        raise ValueError(f"{name!r} cannot be the name of an environment variable: {why}")
    return _no_nul(name)


Text = Annotated[str, AfterValidator(_no_nul)]
"""Text that is handed to a process: without NUL."""
Variable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable."""


EnvironmentValue = Annotated[
    str,
    BeforeValidator(_plain_text),
    AfterValidator(_no_nul),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]


Reference = Annotated[
    Text,
    Field(pattern=r"^(file:|env:).", json_schema_extra={"format": "reference"}),
]
"""Where the value of a secret is: `file:PATH` or `env:NAME`."""


class Model(BaseModel):
    """Frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
