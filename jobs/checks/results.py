"""The result of a check of a node, as data."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

CHECKS_RUN = "checks"
"""In the place of a run's id: the agent of this worker only checks its node. No run has this id:
those are ULIDs."""
CLOCK = "clock-skew"
"""The check that the server makes: the node's clock against its own."""

QUICK = ("gpu-count", "matmul", "memory", "disk", "tmpfs")
"""Programs before a worker joins: half a second of one core, unless the node has GPUs."""
ALL = (*QUICK, "gpu-matmul", "gpu-memory", "pcie", "nvlink")
"""All programs with which a node measures itself, in the order in which they run."""
LINK = "link"
"""The program that needs another node."""


class Verdict(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"  # correct, and no slower than like nodes as far as these are known
    FAILED = "failed"  # wrong, impossible, hung, or slower than the limit
    SKIPPED = "skipped"  # not measured; the reason says why


class CheckResult(BaseModel):
    """One measured thing of a node. What a node measures of itself has no limit on rates yet."""

    model_config = ConfigDict(frozen=True)

    check: str = Field(max_length=80)
    """`matmul`, `disk-write` … (docs/monitors.md lists them)."""
    figure: float | None = None
    """None: nothing was measured."""
    unit: str = Field(default="", max_length=20)
    limit: float | None = None
    """The figure from which on it fails, in the same unit; None: there is none."""
    verdict: Verdict = Verdict.PASSED
    reason: str = Field(default="", max_length=2000)
    """Why it failed or was skipped, in one sentence."""
    device: str = Field(default="", max_length=200)
    """The measured device, such as `NVIDIA H100` or `CPU`; figures of others are not compared."""
    peer: str = Field(default="", max_length=253)
    """The node at the other end of a link; empty: the node was measured alone."""


class Listening(BaseModel):
    """The body of the frame by which an agent says that another node can connect to it."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    port: int = Field(gt=0, le=65535)


class CheckReport(BaseModel):
    """The body of the one report of an agent that only checks its node."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    node: str
    results: tuple[CheckResult, ...]
