"""Install, upgrade, rollback and uninstall of the chart, with the real Helm on a real API server.

The servers run as Pods. Where a Service would have an address of its own, the bed has the address
of a Pod: the port of the Service is that of the servers here, and each server listens on the
address of its Pod.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from tests.acceptance.conftest import Jobs
from tests.balancer import balanced
from tests.chart_files import CHART, RIGHTS
from tests.helm import BUNDLED, EXTERNAL, IMAGE, helm, rendered
from tests.kubernetes.api import Api
from tests.kubernetes.bed import Bed
from tests.kubernetes.servers import Servers
from tests.postgres import PostgresServer

T = TypeVar("T")
pytestmark = pytest.mark.slow
VALUES = {
    "database": {"secret": "babysit-database"},
    "service": {"port": 8443},
    "listen": "$(POD_IP)",
    "settings": {"lease_seconds": 4},
    "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}},
    # What the kernel of the machine of the tests may say is not about these tests.
    "nodeMonitor": {"enabled": True, "privileged": False, "sources": {"kernel_log_seconds": 0}},
}


class Release:
    """The release `babysit` in the namespace of a bed."""

    def __init__(self, bed: Bed, home: Path, database: str) -> None:
        self.bed, self.home, self.api = bed, home, bed.api
        self.notes = ""
        self.secret("babysit-database", url=database)
        mount = {"name": "shared", "mountPath": str(bed.shared)}
        pods = {
            "containers": [{"name": "worker", "volumeMounts": [mount]}],
            "volumes": [{"name": "shared", "hostPath": {"path": str(bed.shared)}}],
        }
        self.values = {**VALUES, "runs": {"podTemplate": {"spec": pods}}}

    def secret(self, name: str, **data: str) -> None:
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        self.bed.create({"kind": "Secret", "metadata": {"name": name}, "data": encoded})

    def helm(self, command: str, *arguments: str, fails: bool = False) -> str:
        """Run Helm; what it printed, or its error where that is expected."""
        where = (
            "--namespace",
            self.bed.namespace,
            "--kubeconfig",
            str(self.bed.servers.kubeconfig),
        )
        done = helm(command, *arguments, *where, home=self.home)
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def apply(
        self, command: str, *sets: str, fails: bool = False, wait: bool = True, timeout: int = 180
    ) -> str:
        """Install or upgrade, and wait for the servers."""
        values = self.home / "values.json"
        values.write_text(json.dumps(self.values))
        chosen = [part for each in (IMAGE, *sets) for part in ("--set", each)]
        where = ("babysit", str(CHART), "--values", str(values))
        limits = ("--timeout", f"{timeout}s", *(("--wait",) if wait else ()))
        return self.helm(command, *where, *chosen, *limits, fails=fails)

    def data(self, secret: str) -> dict[str, str]:
        """The content of a Secret."""
        found = self.api.get(self.bed.path("Secret", secret))["data"]
        return {k: base64.b64decode(v).decode() for k, v in found.items()}

    def secrets(self) -> set[str]:
        """Names of the Secrets that the chart has made."""
        query = {"labelSelector": "app.kubernetes.io/managed-by=Helm"}
        items = self.api.get(self.bed.path("Secret"), **query)["items"]
        return {each["metadata"]["name"] for each in items}

    def servers(self) -> list[Any]:
        """Pods of the control plane that are to stay."""
        selector = "app.kubernetes.io/component=control-plane"
        items = self.api.get(self.bed.path("Pod"), labelSelector=selector)["items"]
        return [each for each in items if "deletionTimestamp" not in each["metadata"]]

    def leader(self) -> str:
        """Name of the one Pod that the Service leads to."""
        chosen = self.api.get(self.bed.path("Service", "babysit"))["spec"]["selector"]

        def found() -> str | None:
            led = [
                each["metadata"]["name"]
                for each in self.servers()
                if chosen.items() <= each["metadata"]["labels"].items() and is_ready(each)
            ]
            return led[0] if len(led) == 1 else None

        return self.until(found, "the Service leads to one server", self.logs)

    def until(self, condition: Callable[[], T | None], what: str, why: Callable[[], str]) -> T:
        """Wait until a condition holds; where it does not, `why` has the story."""
        try:
            return self.bed.until(condition, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{why()}") from error

    def story(self) -> str:
        """What is known of the run `job`."""
        return self.babysit("show", "job", "-o", "wide") + self.babysit("logs", "job")

    def logs(self) -> str:
        """The last lines of every server."""
        names = [each["metadata"]["name"] for each in self.servers()]
        files = [self.bed.run(name).log("server") for name in names]
        return "\n".join(f"{file}:\n{file.read_text()[-2000:]}" for file in files)

    def monitors(self) -> str:
        """Phases and last lines of the node monitors."""
        selector = "app.kubernetes.io/component=node-monitor"
        items = self.api.get(self.bed.path("Pod"), labelSelector=selector)["items"]
        lines = [f"{len(items)} Pods"]
        for each in items:
            name = each["metadata"]["name"]
            log = self.bed.run(name).log("node-monitor")
            text = log.read_text()[-2000:] if log.exists() else "no log"
            lines.append(f"{name} {each['status'].get('phase')}: {text}")
        return "\n".join(lines)

    def babysit(self, *arguments: str, ca: str | None = None) -> str:
        """Run a command as somebody does who has forwarded the Service's port to localhost."""
        pod = self.bed.pod(self.leader())
        assert pod is not None
        file = self.home / "ca.pem"
        file.write_text(ca or self.data("babysit-tls")["ca.crt"])
        with balanced([8443], pod["status"]["podIP"]) as forwarded:
            mine = {
                "BABYSIT_HOME": str(self.home / "home"),
                "BABYSIT_SERVER": f"https://localhost:{forwarded.port}",
                "BABYSIT_CA": str(file),
                "BABYSIT_TOKEN": self.data("babysit-admin-token")["token"],
            }
            command = [sys.executable, "-m", "babysit", *arguments]
            done = subprocess.run(
                command, env={**os.environ, **mine}, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"
        return done.stdout


def is_ready(pod: Any) -> bool:
    """True if a Service may lead to the Pod."""
    conditions = pod["status"].get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.fixture(scope="module")
def installed(
    kubernetes_servers: Servers,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Release]:
    shared, home = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("helm")
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE helm_release")
        with Bed(kubernetes_servers, shared, nodes=2) as bed:
            release = Release(bed, home, postgres_server.url("helm_release"))
            release.notes = release.apply("install")
            yield release
        connection.execute("DROP DATABASE helm_release WITH (FORCE)")


def test_two_servers_of_which_one_leads(installed: Release) -> None:
    leader = installed.leader()
    assert len({each["spec"]["nodeName"] for each in installed.servers()}) == 2
    assert json.loads(installed.babysit("server", "status", "-o", "json"))["leader"] is True
    assert installed.babysit("ls", "-o", "json") == "[]\n"
    installed.bed.delete_pod(leader, grace=0)
    assert installed.leader() != leader
    assert json.loads(installed.babysit("server", "status", "-o", "json"))["leader"] is True


def test_the_next_three_commands_work(installed: Release) -> None:
    """Those that Helm prints: kubectl runs the last two in the Pod that the Service leads to."""
    commands = re.findall(r"^   (kubectl .+)$", installed.notes, re.MULTILINE)
    assert len(commands) == 3
    assert commands[0].endswith(f"-n {installed.bed.namespace} rollout status deployment/babysit")
    container = installed.bed.run(installed.leader()).containers[0].container
    assert container is not None
    for each in commands[1:]:
        where, command = each.split(" -- ")
        assert where.endswith("exec service/babysit -c server")
        assert container.run(["sh", "-c", f"USER=mia; {command}"], 60), command


def test_a_node_monitor_on_each_node_reports_to_the_server(installed: Release) -> None:
    def reported() -> dict[str, Any]:
        nodes = json.loads(installed.babysit("nodes", "ls", "-o", "json"))
        return {each["id"]: each["hardware"] for each in nodes if each["hardware"]["reported_at"]}

    installed.until(lambda: len(reported()) == 2, "both nodes report", installed.monitors)
    assert all(each["boot"] for each in reported().values()), reported()


def may(api: Api, namespace: str, verb: str, resource: str, where: str) -> bool:
    """True if the server's service account may do this; asked of the API server."""
    kind, _, sub = resource.partition("/")
    attributes = {"verb": verb, "resource": kind, "subresource": sub, "namespace": where}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:babysit",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": attributes,
        },
    }
    answer = api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


CLUSTER_WIDE = {"nodes", "pods"}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    *("pods", "pods/exec", "pods/log", "pods/status", "pods/eviction", "pods/ephemeralcontainers"),
    *("services", "secrets", "configmaps", "events", "serviceaccounts", "serviceaccounts/token"),
    *("persistentvolumeclaims", "nodes", "nodes/proxy", "nodes/status", "namespaces"),
    *("persistentvolumes", "endpoints"),
)


def test_the_servers_may_do_what_the_table_says_and_nothing_else(installed: Release) -> None:
    """The API server decides: for every verb on every resource, here and elsewhere."""
    here = installed.bed.namespace
    allowed = {
        (verb, resource, where)
        for verb in VERBS
        for resource in RESOURCES
        for where in (here, "kube-system", "")
        if may(installed.api, here, verb, resource, where)
    }
    wanted = set()
    for role, resource, verbs in RIGHTS:
        places = (here, "kube-system", "") if role in CLUSTER_WIDE else (here,)
        wanted |= {(verb, resource, where) for verb in verbs.split() for where in places}
    assert allowed == wanted


def unknown(sent: Any, kept: Any, path: str = "") -> list[str]:
    """Fields that the API server did not keep: a misspelt one is dropped without a word."""
    if isinstance(sent, dict):
        found = [f"{path}.{key}" for key in sent if key not in (kept or {}) and sent[key]]
        pairs = [(key, sent[key], kept[key]) for key in sent if key in (kept or {})]
        return found + [each for key, a, b in pairs for each in unknown(a, b, f"{path}.{key}")]
    if isinstance(sent, list):
        return [e for a, b in zip(sent, kept, strict=False) for e in unknown(a, b, f"{path}[]")]
    return []


def test_the_api_server_knows_every_field_of_every_object(
    installed: Release, tmp_path: Path
) -> None:
    """Also of the bundled database, whose image the bed does not have."""
    sets = (*BUNDLED, "fullnameOverride=other")
    old = rendered(tmp_path, *sets, options=("--kube-version", "1.20.2"))
    job = rendered(tmp_path, *EXTERNAL, "fullnameOverride=other").one("Job")
    dropped = []
    for each in (*old.objects.values(), job):
        group, kind = each["apiVersion"], f"{each['kind'].lower()}s"
        base = f"/api/{group}" if group == "v1" else f"/apis/{group}"
        plural = {"networkpolicys": "networkpolicies"}.get(kind, kind)
        inside = "" if kind.startswith("cluster") else f"/namespaces/{installed.bed.namespace}"
        each["metadata"].pop("namespace", None)
        kept = installed.api.request("POST", f"{base}{inside}/{plural}", each, dryRun="All")
        dropped += unknown(each, kept, each["kind"])
    # 1.20 knows this one behind a feature gate.
    assert dropped == ["Job.spec.ttlSecondsAfterFinished"]


def test_a_living_run_notices_no_upgrade_and_no_rollback(installed: Release) -> None:
    """Authority and token stay; an upgrade whose migration fails changes nothing at all."""
    shared = installed.bed.shared
    job = Jobs(shared)(
        pace=0.1,
        image="registry.example.org/train:1",
        upload=False,
        workdir=str(shared / "job"),
    )
    installed.babysit("submit", str(job.spec))
    installed.until(lambda: job.events("step"), "it trains", installed.story)
    ca, tls = installed.data("babysit-ca"), installed.data("babysit-tls")
    token = installed.data("babysit-admin-token")
    before = {each["metadata"]["name"] for each in installed.servers()}
    installed.secret("elsewhere", url="postgresql://babysit@127.0.0.1:1/babysit")
    wrong = installed.apply("upgrade", "database.secret=elsewhere", fails=True, timeout=8)
    assert "pre-upgrade hooks failed" in wrong
    assert {each["metadata"]["name"] for each in installed.servers()} == before

    installed.apply("upgrade", "tls.hosts={babysit.example.org}")
    assert before.isdisjoint(each["metadata"]["name"] for each in installed.servers())
    assert (installed.data("babysit-ca"), installed.data("babysit-admin-token")) == (ca, token)
    renewed = installed.data("babysit-tls")
    assert renewed["ca.crt"] == ca["ca.crt"]
    assert renewed["tls.crt"] != tls["tls.crt"]
    installed.babysit("ls", ca=ca["ca.crt"])

    installed.helm("rollback", "babysit", "1")
    assert installed.data("babysit-ca") == ca
    assert installed.data("babysit-tls") == tls
    installed.babysit("ls", ca=ca["ca.crt"])

    steps = max(line["step"] for line in job.events("step"))
    job.finish()
    installed.babysit("wait", "job", "--timeout", "120s")
    assert [line["attempt"] for line in job.events("start")] == [1, 1]
    shown = json.loads(installed.babysit("show", "job", "-o", "json"))
    assert (shown["state"], shown["attempt"], shown["restarts_count"]) == ("succeeded", 1, 0)
    assert shown["step"] >= steps
    assert [line["attempt"] for line in job.events("end")] == [1, 1]


def test_what_an_uninstall_leaves_is_taken_again(installed: Release) -> None:
    own = ("babysit-ca", "babysit-admin-token", "babysit-node-monitor")
    kept = {name: installed.data(name) for name in own}
    installed.helm("uninstall", "babysit", "--wait", "--timeout", "120s")
    assert installed.secrets() == kept.keys()
    installed.bed.until(lambda: not installed.servers(), "the servers are gone")
    installed.apply("install", "replicas=1", wait=False)
    assert {name: installed.data(name) for name in kept} == kept
