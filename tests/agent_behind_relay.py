"""The real agent of a check, with a link that stalls: `agent_behind_relay.py CONFIG`."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterable

from jobs.agent import __main__ as agent
from jobs.agent.network import free_port
from jobs.checks import runner, worker
from jobs.checks.measurement import Task
from jobs.checks.results import CheckResult
from tests.relay import Relay

_STALLS_AFTER = 50_000
"""Bytes: the hello and the round trips pass, and the exchange does not."""


async def behind_relay(
    names: Iterable[str], task: Task, limit_seconds: float
) -> tuple[CheckResult, ...]:
    """Run the real program, with a relay before it or behind it."""
    if task.peer:
        host, _, port = task.peer.rpartition(":")
        relay = Relay((host, int(port)), stalls_after=_STALLS_AFTER)
        task = dataclasses.replace(task, peer=f"127.0.0.1:{relay.port}")
    else:
        inner = free_port(random.Random())
        Relay((task.address, inner), stalls_after=_STALLS_AFTER, port=task.port)
        task = dataclasses.replace(task, port=inner)
    return await runner.run_checks(names, task, limit_seconds)


if __name__ == "__main__":
    worker.run_checks = behind_relay  # type: ignore[assignment]
    sys.exit(agent.main(sys.argv[1:]))
