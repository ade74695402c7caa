"""A Ray cluster of several raylets on this machine, told what to do by lines on stdin.

A program of its own: Ray's library changes signals, loggers and the environment of a process. Each
line is a JSON list, a method of `Machines` and its arguments; each answer is a line, too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster
from ray.core.generated import gcs_pb2

TRIES = 5
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what Ray prints is no answer


class Machines:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=0, dashboard_port=0, include_dashboard=False)
        self.nodes = {}

    def address(self) -> str:
        return self.cluster.address

    def add(self, name: str, options: dict) -> int:
        """Start a node; the pid of its raylet. Ray's library gives it 30 s, which load may take."""
        for left in reversed(range(TRIES)):
            try:
                self.nodes[name] = self.cluster.add_node(node_name=name, **options)
            except Exception:
                if not left:
                    raise
                end_raylets(name)
            else:
                break
        return self._raylet(self.nodes[name])

    def kill(self, name: str) -> None:
        """SIGKILL the raylet, as when the machine is switched off. Nobody reaps it."""
        os.kill(self._raylet(self.nodes.pop(name)), signal.SIGKILL)

    def drain(self, name: str, seconds: int) -> str:
        """Announce the end of a node, as a cloud's notice of preemption is passed on."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
        command += ["--address", self.cluster.address]
        command += ["--node-id", self.nodes[name].node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def used(self, label: str, value: str) -> dict:
        """Node -> what is reserved on it, of the live nodes with a label."""
        state = self.cluster.global_state
        free = state.available_resources_per_node()
        return {
            node["NodeName"]: {
                name: used
                for name in ("CPU", "GPU")
                if (used := node["Resources"][name] - free[node["NodeID"]].get(name, 0))
            }
            for node in state.node_table()
            if node["Alive"] and node["Labels"].get(label) == value
        }

    def actors(self, namespace: str) -> dict:
        """Worker -> pid of its actor's process, of those that are alive."""
        found = {}
        accessor = self.cluster.global_state._connect_and_get_accessor()
        for data in accessor.get_actor_table(None, None):
            actor = gcs_pb2.ActorTableData.FromString(data)
            alive = actor.state == gcs_pb2.ActorTableData.ALIVE
            if alive and actor.ray_namespace == namespace:
                found[actor.name] = actor.pid
        return found

    def _raylet(self, node) -> int:
        return node.all_processes["raylet"][0].process.pid


def end_raylets(name: str) -> None:
    """End what a start that took too long has left."""
    mark = f"--node-name={name}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def main() -> None:
    machines = Machines()
    for line in sys.stdin:
        name, *given = json.loads(line)
        ANSWERS.write(json.dumps(getattr(machines, name)(*given)) + "\n")
        ANSWERS.flush()
    machines.cluster.shutdown()


main()
