"""The variables that torchrun sets for its workers, for scripts and libraries that look for them.

Source: `local_elastic_agent.py` and `multiprocessing/api.py` of `torch.distributed.elastic` 2.13.
One value differs on purpose: `TORCHELASTIC_USE_AGENT_STORE` is False, since the store at
MASTER_ADDR is rank 0's own here, while torchrun's agent keeps one.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from jobs.commands import StartAttempt
from jobs.config import AgentConfig

_ASYNC_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_ROLE = "ROLE_NAME"


class Seat(NamedTuple):
    """The part of the variables that differs between ranks."""

    rank: int
    local_rank: int
    error_file: str


def torchrun_variables(
    command: StartAttempt, config: AgentConfig, seat: Seat
) -> dict[str, str | int]:
    """The variables of one rank. A role and a handling of NCCL's errors of the user's own count."""
    restarts = command.attempt - 1
    given = {**os.environ, **config.submitted.variables, **config.spec.env}
    return {
        "RANK": seat.rank,
        "LOCAL_RANK": seat.local_rank,
        "WORLD_SIZE": command.world_size,
        "LOCAL_WORLD_SIZE": len(command.ranks),
        "GROUP_RANK": command.node_rank,
        "NODE_RANK": command.node_rank,
        "GROUP_WORLD_SIZE": command.nodes,
        "ROLE_RANK": seat.rank,
        "ROLE_WORLD_SIZE": command.world_size,
        _ROLE: config.spec.env.get(_ROLE, "default"),
        "MASTER_ADDR": command.master_address,
        "MASTER_PORT": command.master_port,
        "TORCHELASTIC_RUN_ID": config.run,
        "TORCHELASTIC_RESTART_COUNT": restarts,
        "TORCHELASTIC_MAX_RESTARTS": max(restarts, config.spec.recovery.infrastructure),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCHELASTIC_ERROR_FILE": seat.error_file,
        _ASYNC_ERRORS: given.get(_ASYNC_ERRORS, "1"),
    }
