"""Settings of hardware monitoring, a part of :class:`orchestrator.settings.Settings`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from jobs.hardware.settings import SourceSettings
from jobs.spec import Action


class NodeMonitorSettings(BaseSettings):
    """Permission to report hardware, and intervals of the sources of this machine."""

    hardware_action: Action = Field(
        default=Action.ACT,
        description="How far babysit may go when a node's own machine says that it is faulty: "
        "`act`, `ask` people first, or `observe`: only say what it would do.",
    )
    hardware_ask_seconds: float = Field(
        default=900.0,
        ge=0,
        description="With `hardware_action=ask`: seconds after which the action starts by itself. "
        "0: never.",
    )
    hardware_rules: Path | None = Field(
        default=None,
        description="YAML file of changes to the hardware rules, for this cluster: other actions, "
        "rows of its own, rows in shadow. Read when the server starts.",
    )
    node_token: SecretStr | None = Field(
        default=None,
        description="Secret that node monitors exchange for the token of their node. Not set: only "
        "tokens of `babysit nodes token` count.",
    )
    local_hardware: bool = Field(
        default=True,
        description="Read the hardware of this machine (kernel log, GPUs, disks …) where the "
        "cluster is `local`. Findings are recorded in shadow: its nodes are all this machine.",
    )
    sources: SourceSettings | None = Field(
        default=None,
        description="Intervals of the hardware sources as a JSON object, such as "
        '{"nvml_seconds": 30, "smart_seconds": 0}; 0 leaves a source out. Not set: those of '
        "docs/hardware.md.",
    )
