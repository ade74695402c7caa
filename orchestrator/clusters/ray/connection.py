"""The driver's connection to Ray: what is asked of Ray's control store, in one place.

The one module beside :mod:`.remote` that knows names of Ray which are not public: Ray has no public
call for them (the store of keys, the actor table with its causes of death, nodes that are drained).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray._private import state
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.clusters.ray import names, remote
from orchestrator.clusters.ray.facts import Order, PendingNode, RayFailedError, RayNode, Snapshot

ALIVE, DEAD = "ALIVE", "DEAD"
_STATES = gcs_pb2.ActorTableData.ActorState
_HEAD = "node:__internal_head__"
_AUTOSCALER = "__autoscaling_status"
"""Key under which version 1 of the autoscaler reports, in the store's default namespace."""
_STATUS_SECONDS = 5.0
CONCURRENT_CALLS = 1000
"""Calls to one actor that wait at once: each control plane that has died leaves one behind."""


class ActorFacts(NamedTuple):
    """An actor as Ray's control store has it."""

    id: str
    state: str
    node: str
    """Id of its node in hex; empty: it was placed on none."""
    holds: Mapping[str, float]
    words: str
    """Why it is dead, in Ray's words."""


def connect(address: str, namespace: str) -> None:
    """Connect this process to a cluster, as a driver.

    Raises:
        RayFailedError: There is no such cluster, or its version of Ray or Python is another.
    """
    cloudpickle.register_pickle_by_value(remote)
    try:
        ray.init(
            address=address or os.environ.get("RAY_ADDRESS") or "auto",
            namespace=namespace,
            log_to_driver=False,
            logging_level="error",
            configure_logging=False,
        )
    except Exception as error:
        raise _refused(address, error) from error


def cluster() -> str:
    """The id of the cluster, which its control store keeps if it has storage that outlives it."""
    return str(ray._private.worker.global_worker.node.cluster_id.hex())  # noqa: SLF001


def _refused(address: str, error: Exception) -> RayFailedError:
    words = " ".join(str(error).split())
    if "ersion mismatch" in words:
        return RayFailedError(
            f"Ray: {words:.600} Install babysit for the Python and the version of Ray that the"
            " cluster has, or run the control plane on the head node",
            final=True,
        )
    where = f"at {address}" if address else "that RAY_ADDRESS or this machine names"
    return RayFailedError(
        f"the Ray cluster {where} cannot be reached: {words:.400} Check BABYSIT_RAY_ADDRESS, and"
        " that a Ray node runs on this machine (`ray start --address=HOST:PORT --num-cpus=0`)"
    )


# --- the store of keys --------------------------------------------------------------------------


class Store:
    """Keys and values in Ray's control store, of one installation of babysit."""

    def __init__(self, namespace: str) -> None:
        self.namespace = f"babysit-of-{namespace}"  # a colon would hide keys from Ray's list

    def get(self, key: str) -> str | None:
        """The value; None: there is none."""
        found = internal_kv._internal_kv_get(key, namespace=self.namespace)  # noqa: SLF001
        return None if found is None else found.decode()

    def put(self, key: str, value: str) -> str:
        """Store a value unless there is one; the value that is there then."""
        internal_kv._internal_kv_put(  # noqa: SLF001
            key, value, overwrite=False, namespace=self.namespace
        )
        found = self.get(key)
        return value if found is None else found

    def keys(self, prefix: str) -> Iterable[names.Key]:
        """The keys of workers that begin so."""
        found = internal_kv._internal_kv_list(prefix, namespace=self.namespace)  # noqa: SLF001
        parsed = (names.parse(each.decode()) for each in found)
        return [each for each in parsed if each is not None]

    def remove(self, prefix: str) -> None:
        """Remove all keys that begin so."""
        internal_kv._internal_kv_del(  # noqa: SLF001
            prefix, del_by_prefix=True, namespace=self.namespace
        )


# --- actors -------------------------------------------------------------------------------------


def create(order: Order, namespace: str) -> Any:
    """Create the actor of a worker; the one of its name if there is one."""
    options: dict[str, Any] = {
        "name": order.worker,
        "namespace": namespace,
        "lifetime": "detached",
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": CONCURRENT_CALLS,
        "num_cpus": order.cpus,
        "num_gpus": order.gpus,
        "scheduling_strategy": _on(order.node),
        "get_if_exists": True,
    }
    if order.memory:
        options["memory"] = order.memory
    if order.runtime_env:
        options["runtime_env"] = dict(order.runtime_env)
    return ray.remote(remote.WorkerActor).options(**options).remote()


def find(worker: str, namespace: str) -> Any | None:
    """The actor of a worker; None: it is dead, or was never created."""
    try:
        return ray.get_actor(worker, namespace=namespace)
    except ValueError:
        return None


def identity(handle: Any) -> str:
    """The id of an actor, in hex."""
    return str(handle._actor_id.hex())  # noqa: SLF001 - Ray has no other word for it outside of it


def sweep(order: Mapping[str, Any], node: str, runtime_env: Mapping[str, Any]) -> Any:
    """A task on a node that ends what is left of a worker there."""
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": _on(node)}
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    return ray.remote(remote.sweep).options(**options).remote(dict(order))


def actor(identity: str) -> ActorFacts | None:
    """An actor by its id; None: Ray does not know it (any more)."""
    accessor = state.state._connect_and_get_accessor()  # noqa: SLF001
    found = accessor.get_actor_info(ray.ActorID(bytes.fromhex(identity)))
    if found is None:
        return None
    data = gcs_pb2.ActorTableData.FromString(found)
    cause = data.death_cause
    kind = cause.WhichOneof("context")
    words = ""
    if kind is not None:
        context = getattr(cause, kind)
        words = str(getattr(context, "error_message", "") or context)
    return ActorFacts(
        id=identity,
        state=_STATES.Name(data.state),
        node=data.node_id.hex() or data.address.node_id.hex(),
        holds=dict(data.required_resources),
        words=" ".join(words.split()),
    )


def _on(node: str) -> Any:
    return NodeAffinitySchedulingStrategy(node, soft=False)


# --- nodes --------------------------------------------------------------------------------------


def snapshot(ours: Mapping[str, Mapping[str, float]], *, pending: bool) -> Snapshot:
    """The cluster as Ray's control store has it.

    Args:
        ours: Node -> resources that workers of babysit hold there.
        pending: True: with the nodes that the autoscaler has ordered, which takes two more calls.
    """
    free = state.available_resources_per_node()
    drained = state.state.get_draining_nodes()
    nodes = []
    for each in ray.nodes():
        total = each["Resources"]
        if not each["Alive"] or not _runs_work(total):
            continue
        node = each["NodeID"]
        held = ours.get(node, {})
        left = free.get(node, total)
        others = {
            name: max(0.0, total.get(name, 0.0) - left.get(name, 0.0) - held.get(name, 0.0))
            for name in ("CPU", "GPU", "memory")
        }
        nodes.append(
            RayNode(
                id=node,
                name=each["NodeName"] or each["NodeManagerAddress"],
                host=each["NodeManagerHostname"],
                total=dict(total),
                others=others,
                labels=dict(each.get("Labels") or {}),
                deadline=drained.get(node),
            )
        )
    return Snapshot(tuple(nodes), tuple(_pending()) if pending else ())


class Death(NamedTuple):
    """The end of a node."""

    words: str
    """Why, in Ray's words."""
    host: str = ""
    """The name of its machine; empty: Ray does not know the node."""


def death(node: str) -> Death | None:
    """How a node ended; None: it is alive."""
    for each in ray.nodes():
        if each["NodeID"] == node:
            words = str(each.get("DeathReasonMessage") or "no reason is given")
            dead = Death(" ".join(words.split()), each["NodeManagerHostname"])
            return None if each["Alive"] else dead
    return Death("Ray does not know it")


def _runs_work(total: Mapping[str, float]) -> bool:
    return bool(total.get("CPU") or total.get("GPU"))


def _pending() -> Iterable[PendingNode]:
    """Nodes that the autoscaler has ordered, as either of its versions reports them."""
    found = [*_pending_of_version_1(), *_pending_of_version_2()]
    config = state.state.get_cluster_config() if found else None
    if config is None:
        return found  # version 1 tells nobody how large the nodes will be
    sizes = {group.name: dict(group.resources) for group in config.node_group_configs}
    runs_nothing = {kind for kind, size in sizes.items() if not _runs_work(size)}  # such as heads
    return [
        each._replace(total=sizes.get(each.kind, {}))
        for each in found
        if each.kind not in runs_nothing
    ]


def _pending_of_version_1() -> Iterable[PendingNode]:
    found = internal_kv._internal_kv_get(_AUTOSCALER)  # noqa: SLF001
    report = (json.loads(found).get("autoscaler_report") or {}) if found else {}
    for address, kind, status in report.get("pending_nodes") or ():
        yield PendingNode(f"{kind}-{address}", kind, str(status))
    for kind, count in (report.get("pending_launches") or {}).items():
        yield from _launches(kind, int(count))


def _pending_of_version_2() -> Iterable[PendingNode]:
    reply = autoscaler_pb2.GetClusterStatusReply()
    client = internal_kv.internal_kv_get_gcs_client()
    reply.ParseFromString(client.get_cluster_status(timeout_s=_STATUS_SECONDS))
    for each in reply.autoscaling_state.pending_instances:
        kind = each.ray_node_type_name
        yield PendingNode(f"{kind}-{each.instance_id}", kind, each.details or "starting")
    for each in reply.autoscaling_state.pending_instance_requests:
        yield from _launches(each.ray_node_type_name, each.count)


def _launches(kind: str, count: int) -> Iterable[PendingNode]:
    for number in range(1, count + 1):
        yield PendingNode(f"{kind}-launch-{number}", kind, "launching")
