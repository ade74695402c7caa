"""Fields of the run spec for scripts that know nothing of babysit."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from jobs import checkpoint_pattern
from jobs.spec_types import MOST, Model, Text
from jobs.watch import PRESETS, Preset, problem_of
from jobs.watch.files import PLACES, Format, Names


class Launcher(StrEnum):
    """The launcher whose variables the ranks get."""

    NONE = "none"  # the variables of a single process: many scripts take RANK as several ranks
    TORCHRUN = "torchrun"  # those of torchrun


def _bounded(pattern: str) -> str:
    """The pattern, if a line cannot take long."""
    if (problem := problem_of(pattern)) is not None:
        raise ValueError(problem)
    return pattern


Pattern = Annotated[str, AfterValidator(_bounded)]
"""A regular expression whose first group is a number."""


def _listable(pattern: str) -> str:
    """The pattern, if files can be found by it."""
    if "**" in pattern or any(char in pattern for char in "?[]{}"):
        raise ValueError("expected no **, ?, [ or {; * stands for any part of one name")
    if pattern.rstrip("/").rpartition("/")[2] in {"", ".", "..", "*"}:
        raise ValueError("expected a path that ends in the name of a file: logs/*.jsonl")
    return pattern


class MetricNames(Model):
    """Names of numbers in the files of `watch`. Usual ones are found without."""

    step: Text | None = Field(
        default=None, description="Of TensorBoard: a tag whose events have the step."
    )
    loss: Text | None = None
    grad_norm: Text | None = None
    tokens: Text | None = Field(default=None, description="Tokens of one step.")

    @property
    def as_names(self) -> Names:
        """For the reader."""
        return Names(self.step, self.loss, self.grad_norm, self.tokens)


class Watch(Model):
    """How to read steps and losses of a script that reports nothing itself."""

    preset: (
        Literal[
            "axolotl",
            "deepspeed",
            "json-lines",
            "lightning",
            "llm-foundry",
            "megatron",
            "nanogpt",
            "nemo",
            "tensorboard",
            "torchtitan",
            "trainer-state",
            "transformers",
            "wandb",
        ]
        | None
    ) = Field(
        default=None,
        description="The trainer whose lines are known, or the kind of files that are read where "
        "they usually lie: json-lines, tensorboard, trainer-state, wandb.",
    )
    files: Annotated[Text, AfterValidator(_listable)] | None = Field(
        default=None,
        description="Files that rank 0 writes, relative to `workdir`, in place of the output: "
        "logs/metrics.jsonl, runs/*/events.out.tfevents.*; * stands for any part of a name.",
    )
    names: MetricNames | None = Field(
        default=None, description="Names of the numbers in the files."
    )
    step: Pattern | None = Field(
        default=None, description=r"Regular expression for the step, such as `iter (\d+)`."
    )
    loss: Pattern | None = None
    grad_norm: Pattern | None = None
    tokens: Pattern | None = Field(default=None, description="Tokens of one step.")
    from_zero: bool = Field(default=False, description="The first step has the number 0.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        own = (self.step, self.loss, self.grad_norm, self.tokens)
        if sum((self.preset is not None, self.files is not None, any(own))) > 1:
            raise ValueError("give one of a preset, files, and patterns of your own")
        if self.names is not None and not self.places:
            raise ValueError("names are those in files: give files too, or a preset for them")
        if self.preset is None and self.files is None and self.step is None:
            raise ValueError("expected a preset, files, or a pattern for the step")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Patterns of the files that are read in place of the output; empty: none are."""
        if self.files is not None:
            return (self.files,)
        known = {kind.value: PLACES[kind] for kind in Format}
        return known.get(self.preset or "", ())

    @property
    def preset_or_own(self) -> Preset | None:
        """The patterns for the output; None: files are read in its place."""
        if self.places:
            return None
        if self.preset is not None:
            return PRESETS[self.preset]
        return Preset(
            step=self.step or "",
            loss=self.loss,
            grad_norm=self.grad_norm,
            tokens=self.tokens,
            from_zero=self.from_zero,
        )


def _findable(pattern: str) -> str:
    """The pattern, if places can be found by it."""
    if (problem := checkpoint_pattern.problem_of(pattern)) is not None:
        raise ValueError(problem)
    return pattern


class Resume(Model):
    """How a script that saves its checkpoints itself goes on after a restart."""

    args: tuple[Text, ...] = Field(
        default=(),
        description="Arguments that are appended to the command where there is a checkpoint to go "
        "on from. {checkpoint} is its path, {step} its step.",
    )
    checkpoints: Annotated[Text, AfterValidator(_findable)] | None = Field(
        default=None,
        description="Where the script saves: out/checkpoint-{step}, a file or a directory that all "
        "nodes of the run see, relative to `workdir`. * stands for any part of a name. Without "
        "{step} it is one place that is written again and again: it is waited for, and never "
        "rolled back.",
    )
    complete: Text | None = Field(
        default=None,
        description="File inside of a checkpoint that the script writes last. Without it, one that "
        "has not changed for 10 s counts as whole.",
    )
    keep: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Newest checkpoints that are kept; older ones are deleted. Without it nothing "
        "of the script's is ever deleted.",
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.args and self.checkpoints is None:
            raise ValueError("expected args, or checkpoints for a script that finds its newest one")
        asked = [p for p in checkpoint_pattern.PLACEHOLDERS if any(p in arg for arg in self.args)]
        if asked and not self.by_step:
            raise ValueError(f"{asked[0]} in args needs checkpoints with {{step}}")
        if (self.complete or self.keep) and self.checkpoints is None:
            raise ValueError("complete and keep need checkpoints")
        if self.keep is not None and not self.by_step:
            raise ValueError("keep needs checkpoints with {step}")
        return self

    def problem_with(self, command: tuple[str, ...]) -> str | None:
        """A sentence if the arguments would never reach the program; None: they do."""
        shell = command[0].rpartition("/")[2] in {"sh", "bash", "dash", "zsh", "ksh"}
        script = command[command.index("-c") + 1 :][:1] if shell and "-c" in command else ()
        if not self.args or not script or re.search(r"[$][{]?[@*1]", script[0]):
            return None
        return (
            'resume.args would be arguments of the shell: end the command with "$@" and a name'
            " (bash -c 'python train.py \"$@\"' train), or use $BABYSIT_RESUME in it"
        )

    @property
    def by_step(self) -> bool:
        """True if each checkpoint has a place of its own, so that one can be chosen."""
        return checkpoint_pattern.STEP in (self.checkpoints or "")
