"""Settings of the checks of nodes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from orchestrator.core.model.checking import CheckPolicy

_HOUR = 3600.0


class CheckSettings(BaseSettings):
    """When nodes are measured, and what a failed check leads to."""

    checks: Literal["off", "shadow", "act"] = Field(
        default="act",
        description="What follows when a node fails a check: `act` cordons it, `shadow` says that "
        "it would, `off` only keeps the results. `babysit nodes check` measures in any case.",
    )
    check_idle_hours: float = Field(
        default=0.0,
        ge=0,
        le=24 * 365,
        description="Idle nodes are checked, and the links between them measured, when the last "
        "check is older, and nodes that the "
        "cluster gives back must pass one first. 0: never. 24 suits a cluster of GPU nodes.",
    )
    check_join_hours: float = Field(
        default=0.0,
        ge=0,
        le=24 * 365,
        description="A worker of a run that starts checks its node before it joins if the last "
        "check is older: half a second of one core. Recoveries never wait for it. 0: never.",
    )

    @property
    def check_policy(self) -> CheckPolicy:
        """The policy of checks as the core reads it."""
        return CheckPolicy(
            action=self.checks,
            idle_seconds=self.check_idle_hours * _HOUR,
            preflight_seconds=self.check_join_hours * _HOUR,
        )
