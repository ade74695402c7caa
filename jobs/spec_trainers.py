"""Fields of the run spec for scripts that know nothing of babysit."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from jobs.spec_types import Model
from jobs.watch import PRESETS, Preset, problem_of


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


class Watch(Model):
    """How to read steps and losses from the output of a script that reports nothing itself."""

    preset: (
        Literal[
            "axolotl",
            "deepspeed",
            "lightning",
            "llm-foundry",
            "megatron",
            "nanogpt",
            "nemo",
            "torchtitan",
            "transformers",
        ]
        | None
    ) = Field(default=None, description="The trainer whose lines are known.")
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
        if self.preset is not None and any(own):
            raise ValueError("give a preset or patterns of your own, not both")
        if self.preset is None and self.step is None:
            raise ValueError("expected a preset, or a pattern for the step")
        return self

    @property
    def preset_or_own(self) -> Preset:
        """The patterns."""
        if self.preset is not None:
            return PRESETS[self.preset]
        return Preset(
            step=self.step or "",
            loss=self.loss,
            grad_norm=self.grad_norm,
            tokens=self.tokens,
            from_zero=self.from_zero,
        )
