"""What the chart renders, with the real Helm and without a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML
from syrupy.assertion import SnapshotAssertion

from jobs import node_monitor
from orchestrator.dashboards.alert_rules import RULES
from orchestrator.settings import Settings
from tests import chart_files
from tests.chart_files import CHART, RIGHTS
from tests.helm import BUNDLED, EXTERNAL, IMAGE, MONITORING, Chart, helm, rendered, template

CERT_MANAGER = ("tls.mode=certManager", "tls.issuer.name=internal")
SERVERS = {
    "app.kubernetes.io/name": "babysit",
    "app.kubernetes.io/instance": "babysit",
    "app.kubernetes.io/component": "control-plane",
}


def stable(chart: Chart) -> dict[str, Any]:
    """The objects without what is random and without what other tests compare."""
    for key, value in chart.objects.items():
        if value["kind"] == "Secret":
            value["data"] = dict.fromkeys(value["data"], "…")
        if "dashboard" in key:
            value["data"] = dict.fromkeys(value["data"], "…")
        if value["kind"] == "PrometheusRule":
            value["spec"] = "…"
        marks = value["metadata"].get("annotations", {})
        marks.update(dict.fromkeys(marks.keys() & {"babysit/issued", "babysit/names"}, "…"))
    for pod in chart.pods().values():
        marks = pod["metadata"].get("annotations", {})
        marks.update({k: "…" for k in marks if k.startswith("checksum/")})
    return chart.objects


def differences(chart: Chart, base: Chart) -> dict[str, Any]:
    """Objects that differ from those of another chart; None: there is none any more."""
    here, there = stable(chart), stable(base)
    keys = [key for key in {**there, **here} if here.get(key) != there.get(key)]
    return {key: here.get(key) for key in sorted(keys)}


def test_files_that_follow_from_others_are_as_they_should_be() -> None:
    """Else: python -m tests.chart_files."""
    for name, text in chart_files.files().items():
        assert (CHART / name).read_text() == text, name
    boards = {f"files/dashboards/{file.name}" for file in (CHART / "files/dashboards").iterdir()}
    assert boards <= chart_files.files().keys()


def test_helm_finds_no_fault(tmp_path: Path) -> None:
    for chosen in (EXTERNAL, BUNDLED, (*EXTERNAL, *CERT_MANAGER)):
        sets = [part for each in chosen for part in ("--set", each)]
        done = helm("lint", "--strict", str(CHART), *sets, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "[WARNING]" not in done.stdout


def test_the_chart_with_a_database_of_its_owner(
    tmp_path: Path, snapshot: SnapshotAssertion
) -> None:
    assert stable(rendered(tmp_path, *EXTERNAL)) == snapshot


@pytest.mark.parametrize(
    ("sets", "options"),
    [
        pytest.param(BUNDLED, (), id="bundled database"),
        pytest.param((*EXTERNAL, *CERT_MANAGER), (), id="cert-manager"),
        pytest.param(EXTERNAL, MONITORING, id="monitoring"),
        pytest.param(EXTERNAL, ("--kube-version", "1.20.15"), id="Kubernetes 1.20"),
        pytest.param((*EXTERNAL, "runs.namespace=runs"), (), id="namespace of runs"),
        pytest.param((*EXTERNAL, "nodeMonitor.enabled=true"), (), id="node monitor"),
    ],
)
def test_variants_differ_so(
    tmp_path: Path, snapshot: SnapshotAssertion, sets: tuple[str, ...], options: tuple[str, ...]
) -> None:
    base, chart = rendered(tmp_path, *EXTERNAL), rendered(tmp_path, *sets, options=options)
    assert differences(chart, base) == snapshot


def test_every_setting_that_is_rendered_exists_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of the values is a float for Helm: 10485760 must not become 1.048576e+07."""
    settings = {"log_bytes": 10485760, "lease_seconds": 2.5, "alerts_severity": "critical"}
    secret = {"slack_token": {"secret": "babysit-slack", "key": "token"}}
    values = {"settings": settings, "secretSettings": secret, "alertsRules": "{}", "logRules": "[]"}
    chart = rendered(tmp_path, *EXTERNAL, values=values)
    names = {each["name"] for each in chart.server()["env"] if each["name"].startswith("BABYSIT_")}
    names |= {e["name"] for e in migration(chart)["env"]}
    assert {name.removeprefix("BABYSIT_").lower() for name in names} <= Settings.model_fields.keys()
    for name, value in chart.environment().items():
        monkeypatch.setenv(name, value.replace("$(POD_NAMESPACE)/$(POD_NAME)", "training/pod-1"))
    read = Settings()
    assert (read.log_bytes, read.lease_seconds, read.alerts_severity) == (10485760, 2.5, "critical")
    assert read.agent_url == "wss://babysit.training.svc/agent"
    assert read.pod == "training/pod-1"


def migration(chart: Chart) -> Any:
    return chart.pods()["Job/babysit-migration"]["spec"]["containers"][0]


def test_every_file_that_a_setting_names_is_mounted(tmp_path: Path) -> None:
    values = {"alertsRules": "{}", "logRules": "[]"}
    chart = rendered(tmp_path, *EXTERNAL, values=values)
    mounts = {each["mountPath"]: each["name"] for each in chart.server()["volumeMounts"]}
    files = chart.one("ConfigMap", "-files")["data"]
    secret = chart.one("Secret", "-tls")["data"]
    for name, value in chart.environment().items():
        if value.startswith("/etc/"):
            folder, _, file = value.rpartition("/")
            assert file in {"files": files, "tls": secret}[mounts[folder]], name


def test_code_of_runs_is_kept_where_all_servers_reach_it(tmp_path: Path) -> None:
    url = rendered(tmp_path, *EXTERNAL, "bundles.url=s3://bucket/babysit")
    assert url.environment()["BABYSIT_BUNDLES"] == "s3://bucket/babysit"
    claim = rendered(tmp_path, *EXTERNAL, "bundles.claim=babysit-bundles")
    folder = claim.environment()["BABYSIT_BUNDLES"].removeprefix("file://")
    (name,) = [m["name"] for m in claim.server()["volumeMounts"] if m["mountPath"] == folder]
    volumes = {v["name"]: v for v in claim.pods()["Deployment/babysit"]["spec"]["volumes"]}
    assert volumes[name]["persistentVolumeClaim"] == {"claimName": "babysit-bundles"}
    assert "BABYSIT_BUNDLES" not in rendered(tmp_path, *EXTERNAL).environment()


def test_every_setting_of_a_user_can_be_given_once() -> None:
    """A new setting is either the chart's, or of no use here, or in the schema of the values."""
    users = chart_files.settings_of_users().keys()
    assert not chart_files.OF_THE_CHART & chart_files.ELSEWHERE
    every = users | chart_files.OF_THE_CHART | chart_files.ELSEWHERE
    assert every == Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("settings.lease_second=5", "settings: Additional property lease_second is not allowed"),
        ("settings.lease_seconds=fast", "settings.lease_seconds: Invalid type"),
        ("settings.lease_seconds=0", "settings.lease_seconds: Must be greater than 0"),
        ("settings.log_level=loud", "settings.log_level: settings.log_level must be one of"),
        ("settings.slack_token=xoxb-1", "settings: Additional property slack_token is not allowed"),
        ("settings.database_url=x", "settings: Additional property database_url is not allowed"),
        ("secretSettings.slack_token=xoxb-1", "secretSettings.slack_token: Invalid type"),
        ("replicas=0", "replicas: Must be greater than or equal to 1"),
        ("tls.mode=self", 'tls.mode must be one of the following: "own", "certManager", "secret"'),
        ("database.bundeld.enabled=true", "database: Additional property bundeld is not allowed"),
        ("agentUrl=ws://plain/agent", "agentUrl: Does not match pattern"),
        ("tls.mode=secret", "tls.mode=secret needs tls.secret"),
        ("tls.mode=certManager", "tls.mode=certManager needs tls.issuer.name"),
        ("database.bundled.enabled=true", "both set: keep one"),
        ("bundles.claim=c,bundles.url=s3://b", "bundles.url and bundles.claim are both set"),
        ("tls.public=true", "use tls.mode=certManager or secret"),
        ("tls.public=true,tls.mode=secret,tls.secret=t", "tls.public=true needs agentUrl"),
        ("agentUrl=wss://b.example.org/agent", "b.example.org, which is not in the certificate"),
    ],
)
def test_a_wrong_value_is_refused_in_words(tmp_path: Path, wrong: str, words: str) -> None:
    done = template(tmp_path, *EXTERNAL, wrong)
    assert done.returncode != 0
    assert words in done.stderr


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    assert "set database.secret to a Secret" in template(tmp_path, IMAGE).stderr
    assert "image.repository is empty: name the image" in template(tmp_path, *EXTERNAL[1:]).stderr


def test_every_selector_finds_its_pods(tmp_path: Path) -> None:
    chart = rendered(tmp_path, *BUNDLED, options=MONITORING)
    labels = [pod["metadata"]["labels"] for pod in chart.pods().values()]
    leader = {"babysit/leader": "true"}
    for key, value in chart.objects.items():
        spec = value.get("spec", {})
        found = {
            "Service": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
            "PodDisruptionBudget": (spec.get("selector") or {}).get("matchLabels"),
        }.get(value["kind"])
        if found:
            wanted = found.items() - leader.items()
            assert any(wanted <= each.items() for each in labels), key
    monitor = chart.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [v for v in chart.objects.values() if v["kind"] == "Service"]
    matched = [v for v in services if monitor.items() <= v["metadata"]["labels"].items()]
    assert [v["metadata"]["name"] for v in matched] == ["babysit-servers"]


def test_clients_reach_the_server_that_leads_and_prometheus_all(tmp_path: Path) -> None:
    chart = rendered(tmp_path, *EXTERNAL)
    clients, servers = chart.one("Service", "/babysit"), chart.one("Service", "-servers")
    assert clients["spec"]["selector"] == {**SERVERS, "babysit/leader": "true"}
    assert servers["spec"]["selector"] == SERVERS
    assert servers["spec"]["clusterIP"] == "None"


def test_node_monitors_report_with_the_servers_secret_and_ask_nothing_else(tmp_path: Path) -> None:
    sets = ("nodeMonitor.enabled=true", "nodeMonitor.sources.nvml_seconds=30")
    chart = rendered(tmp_path, *EXTERNAL, *sets)
    pod = chart.pods()["DaemonSet/babysit-node-monitor"]["spec"]
    (container,) = pod["containers"]
    environment = {each["name"]: each for each in container["env"]}
    server = {each["name"]: each for each in chart.server()["env"]}
    assert environment["BABYSIT_NODE_TOKEN"] == server["BABYSIT_NODE_TOKEN"]
    known = {name for name in environment if name.startswith("BABYSIT_")}
    assert known <= set(node_monitor.VARIABLES.values())
    plain = {name: each["value"] for name, each in environment.items() if "value" in each}
    read = node_monitor.read_config({**plain, "BABYSIT_NODE": "gpu-7"})
    assert read.sources.nvml_seconds == 30
    assert read.server_url == chart.environment()["BABYSIT_AGENT_URL"]
    assert not pod["automountServiceAccountToken"]
    assert "serviceAccountName" not in pod
    assert {key for key in chart.objects if "node-monitor" in key} == {
        "DaemonSet/babysit-node-monitor",
        "Secret/babysit-node-monitor",
    }
    secret = ("nodeMonitor.tokenSecret=mine", "nodeMonitor.privileged=false", "tls.public=false")
    closed = rendered(tmp_path, *EXTERNAL, *sets, *secret)
    pod = closed.pods()["DaemonSet/babysit-node-monitor"]["spec"]
    assert "Secret/babysit-node-monitor" not in closed.objects
    assert "privileged" not in pod["containers"][0]["securityContext"]
    assert [v["name"] for v in pod["volumes"]] == ["state", "ca"]


def test_no_container_is_privileged_or_writes_to_its_image(tmp_path: Path) -> None:
    chart = rendered(tmp_path, *BUNDLED)
    external = rendered(tmp_path, *EXTERNAL)
    for key, pod in {**external.pods(), **chart.pods()}.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], key
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
        assert spec["automountServiceAccountToken"] == key.startswith("Deployment/")


def test_the_schema_is_migrated_before_the_servers_that_need_it(tmp_path: Path) -> None:
    """Before the first install neither the release's objects nor the bundled database exist."""
    chart = rendered(tmp_path, *EXTERNAL)
    job = chart.one("Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = chart.pods()["Job/babysit-migration"]["spec"]
    assert migration(chart)["command"] == ["babysit", "db", "upgrade"]
    assert "serviceAccountName" not in pod
    own = {name for kind, name in (key.split("/") for key in chart.objects) if kind != "Job"}
    assert not own & set(re.findall(r"'(?:name|secretName)': '([^']+)'", str(pod)))
    bundled = rendered(tmp_path, *BUNDLED)
    assert "Job" not in bundled.kinds()
    (waiting,) = bundled.pods()["Deployment/babysit"]["spec"]["initContainers"]
    assert "babysit db upgrade" in waiting["command"][-1]
    assert "initContainers" not in chart.pods()["Deployment/babysit"]["spec"]


def test_the_budget_is_of_the_version_that_the_cluster_has(tmp_path: Path) -> None:
    for version, api in (("1.20.15", "policy/v1beta1"), ("1.30.0", "policy/v1")):
        budget = rendered(tmp_path, *EXTERNAL, options=("--kube-version", version))
        assert budget.one("PodDisruptionBudget")["apiVersion"] == api
    old = template(tmp_path, *EXTERNAL, options=("--kube-version", "1.19.0"))
    assert "incompatible with Kubernetes v1.19.0" in old.stderr


def test_rights_are_those_of_the_table_and_no_others(tmp_path: Path) -> None:
    chart = rendered(tmp_path, *EXTERNAL, "runs.namespace=runs")
    found = {
        (value["metadata"]["name"].rpartition("-")[2], resource, " ".join(rule["verbs"]))
        for value in chart.objects.values()
        if value["kind"] in {"Role", "ClusterRole"}
        for rule in value["rules"]
        for resource in rule["resources"]
    }
    assert found == RIGHTS.keys()
    fewer = rendered(tmp_path, *EXTERNAL, "rbac.podsOfOthers=false")
    (only,) = fewer.one("ClusterRole")["rules"]
    assert only["resources"] == ["nodes"]
    assert chart.one("Role", "-runs")["metadata"]["namespace"] == "runs"
    for binding in ("RoleBinding/babysit-runs", "RoleBinding/babysit-leader"):
        (subject,) = chart.objects[binding]["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": "babysit", "namespace": "training"}


def test_what_prometheus_gets_is_what_babysit_has(tmp_path: Path) -> None:
    chart = rendered(tmp_path, *EXTERNAL, options=MONITORING)
    assert chart.one("PrometheusRule")["spec"] == YAML(typ="safe").load(RULES)
    monitor = chart.one("ServiceMonitor")["spec"]
    assert monitor["jobLabel"] == "app.kubernetes.io/name"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["tlsConfig"]["serverName"] == "babysit.training.svc"
    assert "ServiceMonitor" not in rendered(tmp_path, *EXTERNAL).kinds()


def test_whoever_verifies_the_certificate_expects_a_name_that_is_in_it(tmp_path: Path) -> None:
    """Also one of a public authority, which signs no name of a Service."""
    public = ("tls.public=true", "agentUrl=wss://b.example.org/agent", "tls.hosts={b.example.org}")
    for sets in (CERT_MANAGER, (*CERT_MANAGER, *public)):
        chart = rendered(tmp_path, *EXTERNAL, *sets, options=MONITORING)
        names = chart.one("Certificate")["spec"]["dnsNames"]
        (endpoint,) = chart.one("ServiceMonitor")["spec"]["endpoints"]
        agents = urlsplit(chart.environment()["BABYSIT_AGENT_URL"]).hostname
        assert {agents, endpoint["tlsConfig"]["serverName"]} <= set(names)
    any_name = ("agentUrl=wss://b.example.org/agent", "tls.hosts={*.example.org}")
    assert template(tmp_path, *EXTERNAL, *any_name).returncode == 0


def test_no_secret_is_rendered_but_those_that_the_chart_makes(tmp_path: Path) -> None:
    mine = ("adminToken.secret=mine", "tls.mode=secret", "tls.secret=mine-tls")
    assert "Secret" not in rendered(tmp_path, *EXTERNAL, *mine).kinds()
