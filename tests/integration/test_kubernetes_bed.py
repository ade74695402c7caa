"""The test bed for Kubernetes itself: what other tests take for granted."""

from __future__ import annotations

import base64
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kubernetes.api import Api, ApiError
from tests.kubernetes.bed import Bed
from tests.kubernetes.proxy import Proxy
from tests.kubernetes.servers import Servers

LOOP = (
    "trap 'echo saved >> /out/log; exit 0' TERM; echo started >> /out/log; "
    "while :; do sleep 0.05; done"
)


def pod(name: str, script: str, **spec: Any) -> dict[str, Any]:
    """A Pod that runs a shell script; `/out` is the same directory everywhere."""
    container = {
        "name": "main",
        "image": "any",
        "command": ["/bin/sh", "-c", script],
        **spec.pop("container", {}),
    }
    container["volumeMounts"] = [
        {"name": "out", "mountPath": "/out"},
        *container.get("volumeMounts", []),
    ]
    volumes = [{"name": "out", "hostPath": {"path": spec.pop("out")}}, *spec.pop("volumes", [])]
    body = {"restartPolicy": "Never", "containers": [container], "volumes": volumes, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}


def pinned(node: str) -> dict[str, Any]:
    """An affinity to one node."""
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


@pytest.fixture(scope="module")
def module_bed(
    kubernetes_servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    """One cluster for all of these tests; each leaves its nodes as they were."""
    with Bed(kubernetes_servers, tmp_path_factory.mktemp("shared"), nodes=2) as made:
        yield made


def test_a_pod_has_its_environment_and_volumes(module_bed: Bed) -> None:
    bed, out = module_bed, module_bed.shared
    secret = {"token": base64.b64encode(b"abc").decode()}
    bed.create({"kind": "Secret", "metadata": {"name": "s"}, "data": secret})
    bed.create({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"file": "text", "A": "1"}})
    script = (
        'echo "$IP $NODE $TOKEN $A $(hostname) $(cat /etc/s/token) $(cat /c/f) $(pwd)"; '
        "ls /var/run/secrets/kubernetes.io/serviceaccount; touch /dev/shm/x /usr/x; test -w /mem; "
        'python3 -c "import babysit, os; print(os.getppid())"'
    )
    fields = {"IP": "status.podIP", "NODE": "spec.nodeName"}
    environment = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in fields.items()
    ]
    environment.append(
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}
    )
    container = {
        "env": environment,
        "envFrom": [{"configMapRef": {"name": "c"}}],
        "workingDir": "/usr",
        "volumeMounts": [
            {"name": "s", "mountPath": "/etc/s"},
            {"name": "c", "mountPath": "/c"},
            {"name": "mem", "mountPath": "/mem"},
        ],
    }
    volumes = [
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "c", "configMap": {"name": "c", "items": [{"key": "file", "path": "f"}]}},
        {"name": "mem", "emptyDir": {"medium": "Memory"}},
    ]
    body = pod(
        "files", f"({script}) > /out/files 2>&1", out=str(out), container=container, volumes=volumes
    )
    init = {"name": "first", "image": "any", "command": ["sh", "-c", "echo 1 > /mem/init"]}
    init["volumeMounts"] = [{"name": "mem", "mountPath": "/mem"}]
    body["spec"]["initContainers"] = [init]
    bed.create(body)
    bed.until(
        lambda: (bed.pod("files") or {}).get("status", {}).get("phase") in {"Succeeded", "Failed"},
        "the end",
    )
    found = bed.pod("files")
    assert found is not None
    written = (out / "files").read_text()
    assert found["status"]["phase"] == "Succeeded", written
    node, address = found["spec"]["nodeName"], found["status"]["podIP"]
    first, *rest = written.splitlines()
    assert first == f"{address} {node} abc 1 files abc text /usr"
    assert rest == ["ca.crt", "namespace", "token", "1"]
    assert address.startswith("127.")
    assert not Path("/usr/x").exists()


def test_a_deleted_pod_has_its_grace_and_then_goes(module_bed: Bed) -> None:
    bed = module_bed
    log = bed.shared / "log"
    bed.create(pod("polite", LOOP, out=str(bed.shared)))
    bed.until(lambda: log.exists() and "started" in log.read_text(), "it runs")
    bed.delete_pod("polite")
    bed.until_gone("polite")
    assert log.read_text() == "started\nsaved\n"
    bed.create(pod("deaf", "trap '' TERM; touch /out/deaf; sleep 1000", out=str(bed.shared)))
    bed.until((bed.shared / "deaf").exists, "it runs")
    pid = bed.run("deaf").containers[0].container.pid  # type: ignore[union-attr]
    bed.delete_pod("deaf", grace=1)
    bed.until_gone("deaf")
    assert not Path(f"/proc/{pid}").exists()


def test_ends_are_told_in_the_kubelets_words(module_bed: Bed) -> None:
    bed = module_bed
    bed.image_faults["typo:1"] = ("ImagePullBackOff", 'Back-off pulling image "typo:1"')
    bed.create(pod("typo", "true", out=str(bed.shared), container={"image": "typo:1"}))
    bed.create(pod("code", "exit 3", out=str(bed.shared)))
    deaf = pod("deaf", "sleep 1000", out=str(bed.shared), terminationGracePeriodSeconds=1)
    bed.create(deaf)
    for name in ("oom", "evicted"):
        bed.create(pod(name, "sleep 1000", out=str(bed.shared)))
        bed.until_phase(name, "Running")
    bed.run("oom").kill("OOMKilled")
    bed.run("evicted").fail("Evicted", "The node was low on resource: memory.")

    def end(name: str) -> dict[str, Any]:
        (status,) = bed.until_phase(name, "Failed")["status"]["containerStatuses"]
        found: dict[str, Any] = status["state"]["terminated"]
        return found

    assert end("code")["exitCode"] == 3
    oom = end("oom")
    assert (oom["exitCode"], oom["reason"]) == (137, "OOMKilled")
    assert bed.until_phase("evicted", "Failed")["status"]["reason"] == "Evicted"
    found = bed.until_phase("typo", "Pending")

    def waiting() -> Any:
        statuses = (bed.pod("typo") or {})["status"].get("containerStatuses", [{}])
        return statuses[0].get("state", {}).get("waiting", {}).get("reason") == "ImagePullBackOff"

    bed.until(waiting, "the reason")
    assert found["spec"]["nodeName"]
    bed.evict("deaf")
    bed.until_gone("deaf")


def test_a_lost_node_takes_its_memory_along(module_bed: Bed) -> None:
    """The real controller-manager finds that it is gone, and removes its Pods from the API."""
    bed = module_bed
    script = "touch /mem/x /out/on-$NODE; sleep 1000"
    container = {
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "volumeMounts": [{"name": "mem", "mountPath": "/mem"}],
    }
    volumes = [{"name": "mem", "hostPath": {"path": "/dev/shm/babysit"}}]
    for node in bed.nodes:
        body = pod(node, script, out=str(bed.shared), container=container, volumes=volumes)
        bed.create({**body, "spec": {**body["spec"], "affinity": pinned(node)}})
    for node in bed.nodes:
        bed.until((bed.shared / f"on-{node}").exists, f"the Pod of {node} runs")
    lost = bed.nodes["node-1"]
    pid = bed.run("node-1").containers[0].container.pid  # type: ignore[union-attr]
    assert (lost.places.host("/dev/shm/babysit") / "x").exists()
    lost.lose()
    assert not Path(f"/proc/{pid}").exists()
    assert not lost.places.host("/dev/shm/babysit").exists()
    bed.until_ready("node-1", "Unknown")
    bed.until(lambda: bed.pod("node-1")["metadata"].get("deletionTimestamp"), "it is evicted")  # type: ignore[index]
    lost.restore()
    bed.until_ready("node-1")
    bed.until_gone("node-1")
    assert bed.until_phase("node-2", "Running")
    bed.nodes["node-2"].freeze()
    bed.until_ready("node-2", "Unknown")
    bed.nodes["node-2"].thaw()
    bed.until_ready("node-2")


def test_a_simulated_node_runs_pods_without_processes(
    kubernetes_servers: Servers, tmp_path: Path
) -> None:
    with Bed(kubernetes_servers, tmp_path, nodes=0, simulated=1) as bed:
        body = pod("simulated", "true", out="/out")
        bed.create({**body, "spec": {**body["spec"], "affinity": pinned("simulated-1")}})
        bed.until_phase("simulated", "Running")
        bed.delete_pod("simulated")
        bed.until_gone("simulated")


def test_rights_are_enforced(kubernetes_servers: Servers) -> None:
    """RBAC is on: a service account without a role may do nothing."""
    servers = kubernetes_servers
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = servers.api.create(path, body)["status"]["token"]
    poor = type(servers.api)(servers.url, servers.ca, token)
    with pytest.raises(ApiError, match="403"):
        poor.get("/api/v1/nodes")
    poor.close()


def test_nothing_survives_the_tests(tmp_path: Path) -> None:
    """A program that the tests start dies with them, even if they are killed."""
    code = (
        "import os, threading; from tests.kubernetes.processes import spawn; "
        "t = threading.Thread(target=lambda: print(spawn(['sleep', '1000']).pid, flush=True)); "
        "t.start(); t.join(); import time; time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert select.select([child], [], [], 60)[0], "it lives on"
    os.close(child)


def test_the_proxy_counts_refuses_and_cuts(kubernetes_servers: Servers) -> None:
    servers = kubernetes_servers
    with Proxy(servers) as proxy:
        api = Api(proxy.url, servers.ca, servers.api.token)
        api.get("/api/v1/nodes")
        api.get("/api/v1/namespaces/default")
        body = {"kind": "ConfigMap", "metadata": {"name": "proxied"}}
        path = "/api/v1/namespaces/default/configmaps"
        proxy.refuse("create configmaps", 429, retry_after=1)
        with pytest.raises(ApiError, match="429"):
            api.create(path, body)
        assert servers.api.find(f"{path}/proxied") is None
        proxy.refuse("create configmaps", 500, act=True)
        with pytest.raises(ApiError, match="500"):
            api.create(path, body)
        api.delete(f"{path}/proxied")  # it was made: only the answer was lost
        changes = api.watch(path)
        seen = {item["metadata"]["name"] for _, item in (next(changes),)}
        assert seen == {"kube-root-ca.crt"}
        servers.api.create(path, body)
        assert next(changes)[0] == "ADDED"
        proxy.cut()
        with pytest.raises(httpx.TransportError):
            next(changes)
        proxy.go_away()
        with pytest.raises(httpx.TransportError):
            api.get("/api/v1/nodes")
        proxy.come_back()
        api.delete(f"{path}/proxied")
        api.close()
    assert proxy.calls == {
        "list nodes": 1,
        "get namespaces": 1,
        "create configmaps": 2,
        "delete configmaps": 2,
        "list configmaps": 1,
        "watch configmaps": 1,
    }
