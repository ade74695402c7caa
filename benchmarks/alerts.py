"""From findings to Slack, in a burst: a table, then one JSON line.

    python benchmarks/alerts.py [--incidents 100]

The real controller, core, SQLite store, outbox and slack-sdk; Slack is the stand-in of the tests,
over HTTP in the same process, without its rate limits (Slack itself takes about one message a
second for each channel). Runs of one node train; then a loss spike is found in all of them at once.

    first message   seconds from a finding to the message about its incident at Slack: the median,
                    99 % of them, the slowest
    parents         messages per incident; one is right
    calls           calls of Slack per incident, edits and replies included
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from benchmarks import controller as gang
from benchmarks.reports import Agent
from benchmarks.support.harness import last_line, median, table, workplace
from benchmarks.support.running_controller import running_controller, until
from jobs.clock import SystemClock
from jobs.events import RanksStarted, WorkerJoined
from jobs.spec import RunSpec
from monitors.types import Finding, FindingKind, Severity
from orchestrator.alerts import slack
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.events import FindingRaised, RunSubmitted
from orchestrator.database import schema
from orchestrator.database.alert_memory import SqlAlertMemory
from orchestrator.database.engine import Database
from orchestrator.settings import Settings
from tests.slack_server import TOKEN, SlackServer


class TimedSlack(SlackServer):
    """Notes when the first message about each run arrives."""

    def __init__(self) -> None:
        super().__init__("training", begins=int(SystemClock().now().timestamp()))
        self.arrived: dict[str, float] = {}

    def _answer(self, method: str, auth: str, arguments: dict[str, Any]) -> dict[str, Any]:
        now = time.perf_counter()
        if method == "chat.postMessage" and (run := re.search(r"burst-\d+", arguments["text"])):
            self.arrived.setdefault(run[0], now)
        return super()._answer(method, auth, arguments)


async def training(controller: Controller, cluster: SimulatedCluster, count: int) -> None:
    """Runs of one node that train."""
    for number in range(count):
        spec = RunSpec.model_validate(
            {
                "name": f"burst-{number}",
                "command": ["python", "train.py"],
                "resources": {"nodes": 1, "gpus_per_node": 1},
                "checkpoint": {"directory": f"/checkpoints/{number}"},
            }
        )
        await controller.submit(gang.request(RunSubmitted, run=f"run-{number}", spec=spec))
    await until(lambda: sum(w.launch is not None for w in cluster.workers.values()) == count)
    agents = [Agent(controller, w.run, name, w.node) for name, w in cluster.workers.items()]
    for agent in agents:
        await controller.attach(agent.worker, agent.run, agent)
    await asyncio.gather(
        *(a.report(a.event(WorkerJoined, 0, node=a.node, address=a.node, port=1)) for a in agents)
    )
    await until(lambda: len(controller.state.attempts) == count)
    await asyncio.gather(*(a.report(a.event(RanksStarted, ranks=(0,))) for a in agents))


def finding() -> Finding:
    """A loss spike, as a monitor says it."""
    now = SystemClock().now().timestamp()
    return Finding(
        kind=FindingKind.LOSS_SPIKE,
        severity=Severity.CRITICAL,
        attempt=1,
        rank=0,
        onset_step=100,
        onset_batch=100,
        detected_step=103,
        onset_time=now,
        detected_time=now,
        reason="loss 11.2 against a median of 2.31",
    )


async def burst(directory: Path, count: int) -> dict[str, float]:
    """The figures of one burst."""
    url = f"sqlite:///{directory / 'babysit.db'}"
    await schema.upgrade(url)
    async with TimedSlack() as server:
        settings = Settings(
            alerts="slack",
            slack_token=SecretStr(TOKEN),
            slack_channel="#training",
            slack_url=server.url,
        )
        channel, memory = slack.from_settings(settings), Database(url)
        await channel.start(SqlAlertMemory(memory), SystemClock())
        async with running_controller(url, count, 1, notifier=channel) as (controller, cluster):
            await training(controller, cluster, count)
            began: dict[str, float] = {}

            async def found(number: int) -> None:
                began[f"burst-{number}"] = time.perf_counter()
                await controller.submit(
                    gang.request(FindingRaised, run=f"run-{number}", attempt=1, finding=finding())
                )

            await asyncio.gather(*map(found, range(count)))
            await until(lambda: len(server.arrived) == count)
            await until(lambda: controller.notices["slack", "delivered"] >= count)
        await channel.close()
        await memory.close()
        waits = sorted(server.arrived[run] - began[run] for run in began)
        return {
            "incidents": count,
            "first_message_median_seconds": median(waits),
            "first_message_p99_seconds": waits[math.ceil(0.99 * count) - 1],
            "first_message_slowest_seconds": waits[-1],
            "parents_per_incident": len(server.named("training").parents()) / count,
            "calls_per_incident": server.calls.total() / count,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--incidents", type=int, default=100)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with workplace("alerts") as directory:
        found = asyncio.run(burst(directory, given.incidents))
    table([name.replace("_", " ") for name in found], [list(found.values())])
    last_line(found)


if __name__ == "__main__":
    main()
