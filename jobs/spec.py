"""The run spec: what a user asks for. Checked by pydantic; read by :mod:`jobs.spec_file`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from jobs.pod_template import Kubernetes
from jobs.ray_options import Ray
from jobs.spec_slowdowns import CheckpointStall, DataStall, StartupStall, ThroughputDrop
from jobs.spec_trainers import Launcher, Resume, Watch
from jobs.spec_types import (
    MOST,
    MOST_STEPS,
    Bytes,
    EnvironmentValue,
    Grace,
    Model,
    Name,
    Reference,
    Seconds,
    Text,
    Variable,
)
from monitors.exit_rules import RuleFile


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


class Corruption(Model):
    """The comparison of replicas by `run.fingerprint`."""

    action: Action = Action.ACT


class Straggler(Model):
    """The search for slow ranks and nodes."""

    action: Action = Field(
        default=Action.ASK,
        description="Swap the slow node at the next checkpoint where that pays; observe: only say "
        "what would be done; ask: swap 15 min after people were asked.",
    )
    horizon: Seconds = Field(
        default=86_400.0,
        description="Time over which the loss is compared with the cost of the swap.",
    )
    threshold: float = Field(
        default=0.05, gt=0, le=1, description="Share of a step that the run would save without it."
    )
    steps: int = Field(
        default=192, ge=12, le=MOST_STEPS, description="Steps over which it must persist."
    )
    after: Seconds = Field(default=60.0, description="Time over which it must persist.")


class Monitors(Model):
    """Monitors of the run, and how far automation may go for each."""

    loss_spike: LossSpike = LossSpike()
    hang: Hang = Hang()
    corruption: Corruption = Corruption()
    straggler: Straggler = Straggler()
    data_stall: DataStall = DataStall()
    checkpoint_stall: CheckpointStall = CheckpointStall()
    startup_stall: StartupStall = StartupStall()
    throughput_drop: ThroughputDrop = ThroughputDrop()
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
    stop_known: int = Field(
        default=0,
        ge=0,
        le=MOST,
        description="Earlier runs of the same program that a user error has ended, from which on "
        "the run stops at that error without a confirmation; 0: never.",
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
    upload: bool = Field(default=True, description="False: `workdir` is a directory of the image.")
    launcher: Launcher | None = Field(
        default=None,
        description="Variables of the ranks: torchrun (RANK, WORLD_SIZE, MASTER_ADDR, "
        "TORCHELASTIC_RUN_ID …) or none of these; without it none for a run that can only have "
        "one process, as in a shell, and torchrun for all others.",
    )
    env: dict[Variable, EnvironmentValue] = Field(default_factory=dict)
    env_from: tuple[EnvironmentSource, ...] = Field(
        default=(),
        description="Variables whose values are read at submission and kept outside of the spec; "
        "`env` wins over them.",
    )
    image: str | None = Field(default=None, description="Container image; ignored on local nodes.")
    kubernetes: Kubernetes = Field(
        default=Kubernetes(), description="Only for Kubernetes; ignored on local nodes."
    )
    ray: Ray = Field(default=Ray(), description="Only for Ray; ignored on local nodes.")
    resources: Resources = Resources()
    placement: Placement = Placement()
    preload: tuple[Text, ...] = Field(
        default=(),
        description="Modules that the fork server imports ahead, for faster restarts.",
    )
    checkpoint: Checkpoint = Checkpoint()
    watch: Watch | Literal["auto", "off"] = Field(
        default="auto",
        description="Reading of steps and losses of a script that reports nothing itself: a "
        "preset, patterns for its output, its files, or auto: what is recognised.",
    )
    resume: Resume | None = Field(
        default=None,
        description="For a script that saves by itself: how it goes on after a restart. Without it "
        "the same command runs again.",
    )
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

    @field_validator("watch", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _one_source_of_code(self) -> Self:
        if self.upload and self.ray.brings_code:
            raise ValueError(
                "ray.runtime_env.working_dir brings the code of the run: add `upload: false`"
            )
        return self

    @model_validator(mode="after")
    def _one_saves(self) -> Self:
        if self.resume is not None and self.checkpoint.directory is not None:
            raise ValueError(
                "checkpoint.directory is where `run.checkpoint()` saves, resume is for scripts that"
                " save by themselves: give one of them"
            )
        if self.resume is not None and (problem := self.resume.problem_with(self.command)):
            raise ValueError(problem)
        return self

    @property
    def resumes_by_step(self) -> bool:
        """True if the script can be sent back to a checkpoint of its own."""
        return self.resume is not None and self.resume.by_step

    def sets_ranks(self, world_size: int = 1) -> bool:
        """True if the ranks get the variables of torchrun.

        Without a word in the spec, the largest number of processes decides, so that an elastic run
        finds the same variables in each attempt.

        Args:
            world_size: Ranks of an attempt; it counts where it is larger than the spec's.
        """
        if self.launcher is not None:
            return self.launcher is Launcher.TORCHRUN
        most = self.resources.max_nodes * self.resources.processes_per_node
        return max(most, world_size) > 1
