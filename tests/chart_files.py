"""The files of the Helm chart that follow from others: `python -m tests.chart_files` writes them.

Dashboards and alert rules are copied, the settings in `values.schema.json` come from
:class:`orchestrator.settings.Settings`, and the table in the chart's README from the schema. A test
compares them with what is there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from orchestrator.dashboards.alert_rules import RULES
from orchestrator.dashboards.board import render, text_of
from orchestrator.dashboards.boards import BOARDS
from orchestrator.settings import Settings

CHART = Path(__file__).parents[1] / "helm" / "babysit"
OF_THE_CHART = {
    *("agent_ca", "agent_url", "alerts_rules", "bundles", "ca", "cluster", "database_url"),
    *("home", "host"),
    *("kubernetes_instance", "kubernetes_namespace", "kubernetes_pod_template"),
    *("log_rules", "node_token", "pod", "port", "tls_certificate", "tls_key", "token"),
}
"""Settings that the chart makes from its own values."""
ELSEWHERE = {
    *("allow_http", "oidc_client_secret_file"),
    *("kubernetes_kubeconfig", "kubernetes_context"),
    *("grafana_url", "grafana_token", "idle_exit_seconds", "lost_host", "request_seconds"),
    *("server", "start_seconds"),
    *("local_hardware", "sources"),
    *("local_cpus_per_node", "local_gpus_per_node", "local_memory_per_node", "local_nodes"),
}
"""Settings of the command line, of embedded servers, of clusters on one machine, and those that the
chart leaves no use for."""


RIGHTS = {
    ("runs", "pods", "get list watch create patch delete"): "the workers",
    ("runs", "services", "get list create delete"): "one for each run: it owns everything that "
    "belongs to the run, and names its workers",
    ("runs", "secrets", "get list create patch"): "one for each worker: the configuration of its "
    "agent, with its token; kept without it as proof that the worker has ended",
    ("leader", "pods", "get list patch"): "the label `babysit/leader`, by which the Service finds "
    "the server that leads",
    ("nodes", "nodes", "list watch patch"): "their labels, conditions and taints; cordon, "
    "uncordon, and the reason for it",
    ("pods", "pods", "list watch"): "what the Pods of others request on the nodes; "
    "not with `rbac.podsOfOthers=false`",
}
"""Role, resource and verbs of each rule of the chart, with what it is for."""
WHERE = {
    "runs": "namespace of the runs",
    "leader": "namespace of the release",
    "nodes": "cluster",
    "pods": "cluster",
}


def settings_of_users() -> dict[str, Any]:
    """Name and JSON Schema of each setting that the owner of a release may set."""
    properties: dict[str, Any] = Settings.model_json_schema()["properties"]
    definitions = Settings.model_json_schema().get("$defs", {})
    found = {}
    for name in sorted(properties.keys() - OF_THE_CHART - ELSEWHERE):
        value = dict(properties[name])
        kinds = [kind for kind in value.pop("anyOf", []) if kind.get("type") != "null"]
        for kind in kinds:
            value.update(kind)
        if reference := value.pop("$ref", ""):
            value["enum"] = definitions[reference.rpartition("/")[2]]["enum"]
            value["type"] = "string"
        found[name] = {k: v for k, v in value.items() if k not in {"title", "default"}}
    return found


def schema(current: dict[str, Any]) -> dict[str, Any]:
    """The schema of the values, with the settings as they are."""
    properties = current["properties"]
    secret = {
        "type": "object",
        "properties": {"secret": {"type": "string", "minLength": 1}, "key": {"type": "string"}},
        "required": ["secret", "key"],
        "additionalProperties": False,
    }
    settings = settings_of_users()
    hidden = {name for name, value in settings.items() if value.get("format") == "password"}
    properties["settings"]["properties"] = {
        name: value for name, value in settings.items() if name not in hidden
    }
    properties["secretSettings"]["properties"] = {
        name: {"description": settings[name]["description"], **secret} for name in sorted(hidden)
    }
    return current


def rows(schema: dict[str, Any], values: Any, path: str = "") -> list[str]:
    """The rows of the table of values: one for each that is no object of others."""
    found = []
    for name, value in schema["properties"].items():
        here = f"{path}{name}"
        if name in {"settings", "secretSettings"} or not value.get("properties"):
            if name == "global":
                continue
            default = json.dumps(values[name])
            shown = "" if default in {'""', "{}", "[]"} else f"`{default}`"
            found.append(f"| `{here}` | {shown} | {value['description']} |")
        else:
            found += rows(value, values[name], f"{here}.")
    return found


def files() -> dict[str, str]:
    """Path in the chart and content of each file that follows from others."""
    made = {f"files/dashboards/{b.uid}.json": text_of(render(b)) for b in BOARDS}
    made["files/alert-rules.yml"] = RULES.read_text()
    whole = schema(json.loads((CHART / "values.schema.json").read_text()))
    made["values.schema.json"] = json.dumps(whole, indent=2) + "\n"
    values = YAML(typ="safe").load(CHART / "values.yaml")
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *rows(whole, values)])
    rights = ["| rule | where | for |", "|---|---|---|"]
    for (role, resource, verbs), purpose in RIGHTS.items():
        rights.append(f"| `{resource}`: {verbs} | {WHERE[role]} | {purpose} |")
    page = _with_table((CHART / "README.md").read_text(), table)
    made["README.md"] = _with_table(page, "\n".join(rights))
    return made


def _with_table(page: str, table: str) -> str:
    """The page with the table in the place of the one with the same head."""
    head = re.escape(table.partition("\n")[0])
    return re.sub(
        rf"^{head}\n.*?\n\n", lambda _: f"{table}\n\n", page, flags=re.DOTALL | re.MULTILINE
    )


if __name__ == "__main__":
    for name, text in files().items():
        (CHART / name).write_text(text)
