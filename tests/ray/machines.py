"""A Ray cluster of several raylets on this machine, told what to do by lines on stdin.

A program of its own: Ray's library changes signals, loggers and the environment of a process. Each
line is a JSON list, a method of `Machines` and its arguments; each answer is a line, too.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import services
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as NAMESPACE
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TRIES = 5
LISTEN = re.compile(r"--listen-port=(\d+)")
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what Ray prints is no answer


class Other:
    def ready(self) -> None:
        """It has its resources."""


class Machines:
    def __init__(self) -> None:
        self.cluster = Cluster()
        without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        self.cluster.add_node(num_cpus=0, dashboard_port=0, **without, **agent_ports())
        self.nodes = {}
        self.reports = 0

    def address(self) -> str:
        return self.cluster.address

    def add(self, name: str, options: dict) -> int:
        """Start a node; the pid of its raylet. Ray's library gives it 30 s, which load may take."""
        for left in reversed(range(TRIES)):
            try:
                self.nodes[name] = self.cluster.add_node(node_name=name, **options, **agent_ports())
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

    def remove(self, name: str) -> None:
        """End a node, if there still is one."""
        if name in self.nodes:
            self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

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

    def kill_gcs(self) -> None:
        self.cluster.head_node.kill_gcs_server()

    def start_gcs(self) -> None:
        self.cluster.head_node.start_gcs_server()

    def order(self, kind: str, resources: dict) -> None:
        """Report a node as ordered, as version 2 of the autoscaler does; no resources: none is."""
        self.reports += 1
        report = autoscaler_pb2.AutoscalingState(
            autoscaler_state_version=self.reports,
            pending_instances=[
                autoscaler_pb2.PendingInstance(
                    ray_node_type_name=kind, instance_id="i-1", details="REQUESTED"
                )
            ]
            * bool(resources),
        )
        config = autoscaler_pb2.ClusterConfig(
            node_group_configs=[autoscaler_pb2.NodeGroupConfig(name=kind, resources=resources)]
        )
        client = GcsClient(self.cluster.address)
        client.report_cluster_config(config.SerializeToString())
        client.report_autoscaling_state(report.SerializeToString())

    def metadata(self, changes: dict) -> dict:
        """Have the cluster say that it was started by another version; what it said before."""
        client = GcsClient(self.cluster.address)
        known = json.loads(client.internal_kv_get(CLUSTER_METADATA_KEY, NAMESPACE))
        text = json.dumps({**known, **changes}).encode()
        client.internal_kv_put(CLUSTER_METADATA_KEY, text, True, NAMESPACE)
        return known

    def occupy(self, name: str, options: dict) -> None:
        """Hold resources of a node, as another job of the cluster does."""
        ray.init(self.cluster.address, namespace="others", log_to_driver=False)
        where = NodeAffinitySchedulingStrategy(self.nodes[name].node_id, soft=False)
        self.other = ray.remote(Other).options(scheduling_strategy=where, **options).remote()
        ray.get(self.other.ready.remote())

    def leave(self) -> None:
        """End the other job."""
        ray.kill(self.other)
        ray.shutdown()

    def _raylet(self, node) -> int:
        return node.all_processes["raylet"][0].process.pid


def agent_ports() -> dict[str, int]:
    """Ports for the agents of a raylet, which it need not learn from them; see `tell_raylets`."""
    names = ("metrics_agent", "metrics_export", "dashboard_agent_listen", "runtime_env_agent")
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("", 0))
        return {
            f"{name}_port": probe.getsockname()[1]
            for name, probe in zip(names, probes, strict=True)
        }


def tell_raylets() -> None:
    """Have raylets start with all ports of their agents: Ray's library keeps one of them back.

    A raylet that lacks one waits 15 s for its agents to choose it, which import for longer than
    that on a loaded machine, and then ends.
    """
    start = services.start_ray_process

    def start_all(command: list[str], process_type: str, *given, **named):
        if process_type == PROCESS_TYPE_RAYLET:
            (port,) = {found[1] for word in command if (found := LISTEN.search(word))}
            command = [*command, f"--dashboard_agent_listen_port={port}"]
        return start(command, process_type, *given, **named)

    services.start_ray_process = start_all


def end_raylets(name: str) -> None:
    """End what a start that took too long has left."""
    mark = f"--node-name={name}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def main() -> None:
    tell_raylets()
    machines = Machines()
    for line in sys.stdin:
        name, *given = json.loads(line)
        ANSWERS.write(json.dumps(getattr(machines, name)(*given)) + "\n")
        ANSWERS.flush()
    machines.cluster.shutdown()


main()
