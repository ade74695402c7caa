"""The run spec: what a user asks for. Checked by pydantic; read by :mod:`jobs.spec_file`."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from monitors.exit_rules import RuleFile

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


class Priority(StrEnum):
    """Order of runs within a queue."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"


class Action(StrEnum):
    """How far automation may go for one monitor."""

    OBSERVE = "observe"  # report what it would do
    ASK = "ask"  # ask a person first; act after 15 minutes without an answer
    ACT = "act"  # act at once


class NodeRange(Model):
    """Elastic: between `min` and `max` nodes."""

    min: int = Field(ge=1, le=MOST)
    max: int = Field(ge=1, le=MOST)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Resources(Model):
    """Resources of the run. All counts but `nodes` are per node."""

    nodes: Annotated[int, Field(ge=1, le=MOST)] | NodeRange = 1
    processes_per_node: int = Field(
        default=1, ge=1, le=MOST, description="Training processes (ranks) on each node."
    )
    gpus_per_node: int = Field(default=0, ge=0, le=MOST)
    cpus_per_node: float = Field(default=1, gt=0, le=MOST)
    memory_per_node: Bytes = 0

    @property
    def min_nodes(self) -> int:
        """Fewest nodes the run can start on."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.min

    @property
    def max_nodes(self) -> int:
        """Most nodes the run can use."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes.max


class Placement(Model):
    """Which nodes the run may use."""

    pack: Literal["nvlink", "rack", "spine", "zone", "any"] = "any"
    standbys: int = Field(
        default=0, ge=0, le=MOST, description="Standby nodes kept warm for this run."
    )


class Checkpoint(Model):
    """When and where checkpoints are saved."""

    directory: Text | None = Field(default=None, description="Directory tier; relative to workdir.")
    every_steps: int = Field(
        default=100, ge=1, le=MOST_STEPS, description="Steps between saves to the directory."
    )
    memory_every_steps: int = Field(
        default=0,
        ge=0,
        le=MOST_STEPS,
        description="Steps between saves to node memory (tmpfs); 0: never.",
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=MOST,
        description="Directory checkpoints kept, and always the last trusted one.",
    )
    good_after_steps: int = Field(
        default=50,
        ge=1,
        le=MOST_STEPS,
        description="Clean steps after a checkpoint before it counts as good.",
    )


class LossSpike(Model):
    """The loss and gradient monitors."""

    action: Action = Action.ACT
    skip_batches: int = Field(
        default=20,
        ge=0,
        le=MOST_STEPS,
        description="Batches skipped from the onset when a spike comes back after a rollback.",
    )
    threshold: float = Field(
        default=8.0, gt=0, le=MOST, description="Robust z (median/MAD of detrended loss)."
    )
    persistence: int = Field(
        default=3, ge=1, le=MOST_STEPS, description="Anomalous steps in a row before acting."
    )
    warmup_steps: int = Field(
        default=20, ge=5, le=MOST_STEPS, description="Steps before the monitor judges."
    )
    direction: Literal["down", "up"] = Field(
        default="down",
        description="Where the loss is meant to go; up for a reward, whose falls are then watched.",
    )
    drift: Literal["auto", "off"] = Field(
        default="auto",
        description="Slow divergence; auto: looked for unless the loss rises from the beginning, "
        "crosses zero, or has risen and come back like this before. YAML's off is accepted.",
    )

    @field_validator("drift", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value


class Hang(Model):
    """The hang monitor."""

    action: Action = Action.ACT
    after: Literal["auto"] | Seconds = Field(
        default="auto",
        description="Silence that counts as a hang; auto: from the median step time of the run.",
    )
    starting: Seconds = Field(default=600.0, description="Limit for the first step after a start.")


class Monitors(Model):
    """Monitors of the run, and how far automation may go for each."""

    loss_spike: LossSpike = LossSpike()
    hang: Hang = Hang()
    logs: tuple[str | RuleFile, ...] = Field(
        default=(),
        description="Files of rules that say what words in the logs of this run mean, relative to "
        "the spec's directory; they come before those of the cluster and of babysit.",
    )


ExitCode = Annotated[int, Field(ge=1, le=255)]
"""The exit code of a program that ended itself, or 128 plus the number of a signal."""


class Recovery(Model):
    """Restart budgets: failures with the same signature and no progress in between."""

    infrastructure: int = Field(default=50, ge=0, le=MOST)
    user: int = Field(
        default=1, ge=0, le=MOST, description="Confirmations of a user error before the run stops."
    )
    anomaly: int = Field(default=3, ge=0, le=MOST)
    stop_on: list[ExitCode] = Field(
        default_factory=list,
        description="Exit codes after which the run stops at once, without a confirmation.",
    )
    retry_on: list[ExitCode] = Field(
        default_factory=list,
        description="Exit codes that are tried again within the budget of infrastructure, such as "
        "75 (EX_TEMPFAIL).",
    )

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if both := set(self.stop_on) & set(self.retry_on):
            raise ValueError(f"{min(both)} is in both stop_on and retry_on: keep it in one")
        return self


class EnvironmentSource(Model):
    """Where variables get their values from, at submission. Exactly one of the fields is given."""

    file: Text | None = Field(
        default=None,
        min_length=1,
        description="File of NAME=value lines (dotenv); relative to the spec's directory.",
    )
    variables: tuple[Variable, ...] = Field(
        default=(),
        description="Variables of the shell that submits; WANDB_* stands for all that begin so.",
    )
    secrets: dict[Variable, Reference] = Field(
        default_factory=dict,
        description="Variables with file:PATH (the content of a file) or env:NAME (another "
        "variable of the shell).",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(map(bool, (self.file, self.variables, self.secrets))) != 1:
            raise ValueError("give one of file, variables and secrets, and the others as entries")
        return self


class Notify(Model):
    """Where notices of the run are sent."""

    slack: str | None = Field(
        default=None,
        pattern=r"^[#@].+",
        description="Channel or person, such as #training.",
        json_schema_extra={"format": "channel"},
    )


class RunSpec(Model):
    """One training job. Keys that begin with `x-` are ignored: a place for YAML anchors."""

    model_config = ConfigDict(json_schema_extra={"patternProperties": {"^x-": {}}})

    name: Name
    queue: Name = "default"
    project: Name = "default"
    owner: str = Field(
        default="",
        description="The user who submits owns the run; only administrators name another.",
    )
    priority: Priority = Priority.NORMAL
    command: tuple[Text, ...] = Field(min_length=1)
    workdir: Text = "."
    env: dict[Variable, EnvironmentValue] = Field(default_factory=dict)
    env_from: tuple[EnvironmentSource, ...] = Field(
        default=(),
        description="Variables whose values are read at submission and kept outside of the spec; "
        "`env` wins over them.",
    )
    image: str | None = Field(default=None, description="Container image; ignored on local nodes.")
    resources: Resources = Resources()
    placement: Placement = Placement()
    preload: tuple[Text, ...] = Field(
        default=(),
        description="Modules that the fork server imports ahead, for faster restarts.",
    )
    checkpoint: Checkpoint = Checkpoint()
    monitors: Monitors = Monitors()
    recovery: Recovery = Recovery()
    notify: Notify = Notify()
    grace: Grace = Field(
        default=30.0,
        description="Time that ranks get to save when they are asked to stop (preemption, drain, "
        "restart, cancel); never less than 1.5 times the longest save of the run, up to 30 min.",
    )
    max_runtime: Seconds | None = Field(
        default=None,
        description="The run ends after this time with nodes; time without nodes does not count.",
    )
