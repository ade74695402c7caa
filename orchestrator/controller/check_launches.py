"""The launch of an agent that only checks its node, by the ordinary protocol of clusters."""

from __future__ import annotations

from jobs.checks.results import CHECKS_RUN
from jobs.environment import Environment
from jobs.spec import RunSpec
from orchestrator.clusters.port import AgentAccess, WorkerLaunch
from orchestrator.core.messages.instructions import CheckNode
from orchestrator.core.model.state import State


def check_launch(order: CheckNode, access: AgentAccess) -> WorkerLaunch:
    """The launch of the agent of a check, with all GPUs of its node."""
    spec = RunSpec.model_validate(
        {
            "name": "check",
            "command": ["babysit-agent"],  # never started: the agent has no ranks
            "workdir": "/",
            "upload": False,
            "resources": {"nodes": 1, "gpus_per_node": order.gpus},
            # The node is cordoned, perhaps by us: the agent of a check goes there all the same.
            "kubernetes": {"pod": {"spec": {"tolerations": [{"operator": "Exists"}]}}},
        }
    )
    return WorkerLaunch(
        worker=order.worker,
        run=CHECKS_RUN,
        node=order.node,
        spec=spec,
        checks=order.checks,
        peer=order.peer,
        server_url=access.server_url,
        token=access.token,
        ca=access.ca,
        environment=Environment(),
        grace_seconds=0.0,
    )


def is_wanted(state: State, node: str, worker: str) -> bool:
    """True while the check is under way as far as the core knows."""
    found = state.nodes.get(node)
    return found is not None and found.measured.awaits(worker)
