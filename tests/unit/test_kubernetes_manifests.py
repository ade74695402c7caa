"""The objects of a worker, and what templates may change of them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobs.config import AgentConfig
from jobs.environment import Environment
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.kubernetes import manifests, names, template
from orchestrator.clusters.kubernetes.merge import merge
from orchestrator.clusters.kubernetes.settings import pod_settings
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.settings import Settings

OWNER = {"metadata": {"name": "babysit-run-1", "uid": "u-1"}}


def launch(worker: str = "run-1-w1x00000", **spec: Any) -> WorkerLaunch:
    return WorkerLaunch(
        worker=worker,
        run="run-1",
        node="node-1",
        server_url="wss://babysit:8000/agent",
        token="s3cret-token",
        ca="PEM",
        bundle="ab" * 32,
        spec=RunSpec.model_validate(
            {
                "name": "tiny",
                "command": ["python", "train.py"],
                "image": "train:1",
                "env": {"WANDB_API_KEY": "s3cret-key"},
                "resources": {"gpus_per_node": 8, "cpus_per_node": 95.5, "memory_per_node": "1Ti"},
                **spec,
            }
        ),
        environment=Environment(named={"HF_TOKEN": "s3cret-env"}),
        grace_seconds=120,
    )


def pod(order: WorkerLaunch | None = None, **settings: Any) -> dict[str, Any]:
    return manifests.pod(
        order or launch(), "amd.com/gpu", OWNER, pod_settings(Settings(**settings))
    )


def worker(made: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in made["spec"]["containers"] if each["name"] == "worker")


def test_a_pod_is_pinned_by_affinity_owned_by_its_run_and_starts_once() -> None:
    made = pod()
    spec, metadata = made["spec"], made["metadata"]
    assert "nodeName" not in spec
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    pin = {"key": "metadata.name", "operator": "In", "values": ["node-1"]}
    assert terms == {"nodeSelectorTerms": [{"matchFields": [pin]}]}
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 120 + manifests.LEAVE_SECONDS
    assert metadata["ownerReferences"][0]["uid"] == "u-1"
    assert metadata["finalizers"] == [names.FINALIZER]
    service = manifests.service("run-1", pod_settings(Settings()))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= metadata["labels"].items()
    assert service["metadata"]["name"] == spec["subdomain"]


def test_requests_are_limits_and_shared_memory_has_a_size() -> None:
    made = pod()
    amounts = {"cpu": "95500m", "memory": str(2**40), "amd.com/gpu": "8"}
    assert worker(made)["resources"] == {"requests": amounts, "limits": amounts}
    shm = next(each for each in made["spec"]["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": str(2**39)}
    mounts = {each["mountPath"] for each in worker(made)["volumeMounts"]}
    assert "/dev/shm" in mounts
    made = pod(kubernetes_shm_bytes=2**30)
    shm = next(each for each in made["spec"]["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"]["sizeLimit"] == str(2**30)


def test_nothing_secret_is_in_the_pod_and_the_agent_finds_its_files() -> None:
    order, settings = launch(), pod_settings(Settings())
    assert "s3cret" not in json.dumps(pod(order))
    secret = manifests.secret(order, OWNER, settings)
    files = {name: base64.b64decode(text) for name, text in secret["data"].items()}
    config = AgentConfig.model_validate_json(files["config.json"])
    assert (config.token, config.bundle, config.address) == ("s3cret-token", "ab" * 32, "")
    assert config.grace_seconds == 120
    made = pod(order)
    mounts = {each["name"]: each["mountPath"] for each in worker(made)["volumeMounts"]}
    assert worker(made)["args"] == [f"{mounts['config']}/config.json"]
    assert str(config.ca) == f"{mounts['config']}/ca.crt"
    assert str(config.environment_file) == f"{mounts['config']}/environment.json"
    assert config.directory.is_relative_to(mounts["work"])
    assert config.log_directory.is_relative_to(mounts["work"])
    assert config.memory_directory.is_relative_to(mounts["shm"])
    volume = next(each for each in made["spec"]["volumes"] if each["name"] == "config")["secret"]
    assert volume["secretName"] == secret["metadata"]["name"]
    assert {item["key"] for item in volume["items"]} == set(files)
    gone = merge(secret, manifests.mark_gone("agent exited with code 0"))
    assert "data" not in gone  # no Pod can start from it


def test_settings_of_all_pods() -> None:
    made = pod(
        kubernetes_user=1000,
        kubernetes_service_account="trainer",
        kubernetes_priority_class="training",
        kubernetes_tolerations="gpu,team=a:NoSchedule",
        kubernetes_agent_image="agent:1",
    )
    spec = made["spec"]
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "training")
    assert spec["securityContext"]["runAsNonRoot"]
    assert worker(made)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["tolerations"] == [
        {"key": "gpu", "operator": "Exists"},
        {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"},
    ]
    assert spec["initContainers"][0]["image"] == "agent:1"
    copy = spec["initContainers"][0]
    mounted = {each["name"]: each["mountPath"] for each in worker(made)["volumeMounts"]}
    assert worker(made)["command"] == [f"{mounted['agent']}/bin/babysit-agent"]
    # Its script names its Python by the path in the image: it must be the same in the Pod.
    assert copy["command"][-2:] == [mounted["agent"], copy["volumeMounts"][0]["mountPath"]]
    assert copy["volumeMounts"][0]["mountPath"] not in mounted.values()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_every_user_can_copy_the_agent_into_a_volume_that_is_of_root() -> None:
    made = pod(kubernetes_user=1000, kubernetes_agent_image="agent:1")
    copy = made["spec"]["initContainers"][0]
    (volume,) = copy["volumeMounts"]
    (used,) = [each for each in worker(made)["volumeMounts"] if each["name"] == volume["name"]]
    with tempfile.TemporaryDirectory() as directory:  # that of pytest is closed to other users
        root = Path(directory)
        root.chmod(0o755)
        image, mount = root / "image", root / "volume"
        program = Path(worker(made)["command"][0]).relative_to(used["mountPath"])
        lent = image / used["mountPath"].lstrip("/")
        (lent / program).parent.mkdir(parents=True)
        (lent / program).touch(mode=0o755)
        mount.mkdir()
        mount.chmod(0o777)  # as the kubelet makes an emptyDir
        places = {used["mountPath"]: str(lent), volume["mountPath"]: str(mount)}
        command = [places.get(word, word) for word in copy["command"]]
        assert set(places.values()) <= set(command)
        subprocess.run(command, check=True, user=1000, group=1000, extra_groups=[])
        assert os.access(mount / used["subPath"] / program, os.X_OK)


TEMPLATE = """
metadata: {annotations: {k8s.v1.cni.cncf.io/networks: rdma}, labels: {team: a, babysit/run: x}}
spec:
  hostNetwork: true
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
    {matchExpressions: [{key: pool, operator: In, values: [a]}]},
    {matchExpressions: [{key: pool, operator: In, values: [b]}]}]}}}
  tolerations: [{key: team, operator: Exists}]
  containers:
  - name: worker
    env: [{name: NCCL_IB_HCA, value: mlx5}]
    resources: {limits: {rdma/hca: "1"}, requests: {rdma/hca: "1"}}
    securityContext: {capabilities: {add: [IPC_LOCK]}}
    volumeMounts: [{name: data, mountPath: /data}, {mountPath: /dev/shm, $patch: delete}]
  volumes: [{name: data, hostPath: {path: /data}}, {name: shm, $patch: delete}]
"""


def test_a_template_adds_what_a_clusters_owner_needs(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(TEMPLATE)
    order = launch(kubernetes={"pod": {"spec": {"hostNetwork": None, "dnsPolicy": "Default"}}})
    made = pod(order, kubernetes_pod_template=file)
    spec, container = made["spec"], worker(made)
    assert made["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma"
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"]["babysit/run"] == "run-1"
    assert ("hostNetwork" in spec, spec["dnsPolicy"]) == (False, "Default")
    assert {each["name"] for each in container["env"]} >= {"NCCL_IB_HCA", "BABYSIT_NODE_ADDRESS"}
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "amd.com/gpu", "rdma/hca"}
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert {each["name"] for each in container["volumeMounts"]} == {"config", "work", "data"}
    assert {each["name"] for each in spec["volumes"]} == {"config", "work", "data"}
    assert len(spec["tolerations"]) == 4
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    # Terms are alternatives: a template must not open a way to another node.
    assert [each["matchFields"][0]["values"] for each in terms["nodeSelectorTerms"]] == [
        ["node-1"],
        ["node-1"],
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"spec": {"nodeName": "node-2"}}, "spec.nodeName: babysit decides it"),
        ({"metadata": {"namespace": "kube-system"}}, "metadata.namespace: babysit decides it"),
        ({"containers": []}, "containers: a Pod template has"),
        ({"spec": ["x"]}, "spec: expected a mapping"),
    ],
)
def test_a_wrong_template_is_refused_with_its_field(
    wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        launch(kubernetes={"pod": wrong})
    (tmp_path / "pod.json").write_text(json.dumps(wrong))
    with pytest.raises(ClusterError, match=words):
        template.read(tmp_path / "pod.json")


def test_what_cannot_be_launched_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"image: .*BABYSIT_KUBERNETES_IMAGE"):
        pod(launch(image=None))
    assert worker(pod(launch(image=None), kubernetes_image="base:2"))["image"] == "base:2"
    removes = {"pod": {"spec": {"containers": [{"name": "worker", "$patch": "delete"}]}}}
    with pytest.raises(ValueError, match="removes the container `worker`"):
        pod(launch(kubernetes=removes))
    lost = launch().model_copy(update={"environment": None})
    with pytest.raises(ValueError, match="submit the run again"):
        manifests.secret(lost, OWNER, pod_settings(Settings()))


def test_names_are_labels_of_dns_and_different_for_different_ids() -> None:
    ids = ["run-1-w1x0", "Run-1-w1x0", "run.1-w1x0", "run_1-w1x0", "r" * 80, "r" * 81, "-", "é"]
    made = [names.object_name(each) for each in ids]
    assert len(set(made)) == len(ids)
    assert all(len(each) <= 63 and each == each.lower().strip("-") for each in made)
    assert made[0] == "babysit-run-1-w1x0"
