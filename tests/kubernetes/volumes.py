"""What a container of a Pod is given: environment, arguments, and volumes as directories of the
node.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kubernetes.api import Api, ApiError, Object
from tests.kubernetes.containers import Mount


class NotReadyError(Exception):
    """A volume or variable cannot be made now; the kubelet tries again.

    Attributes:
        reason: Of the waiting container, such as `CreateContainerConfigError`.
    """

    def __init__(self, message: str, reason: str = "ContainerCreating") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Places:
    """Directories of one node that volumes come from.

    Attributes:
        disk: Its disk.
        memory: Its memory: gone when the node is lost.
        shared: A directory of the machine that all nodes see at the same path, as they would see a
            file server.
    """

    disk: Path
    memory: Path
    shared: Path
    address: str
    """Address of the node."""

    def host(self, path: str) -> Path:
        """Where a hostPath of the node is on this machine. `/dev`, `/proc` and `/sys` are the
        machine's own.
        """
        if Path(path).is_relative_to(self.shared):
            return Path(path)
        if path.startswith("/dev/shm"):
            return self.memory / "host" / path.removeprefix("/dev/shm").lstrip("/")
        if path.startswith(("/dev", "/proc", "/sys")):
            return Path(path)
        return self.disk / "host" / path.lstrip("/")


class PodFiles:
    """The volumes and variables of one Pod on one node."""

    def __init__(self, api: Api, pod: Object, places: Places, node: str, address: str) -> None:
        self._api, self._pod, self._places = api, pod, places
        self._node, self._address = node, address
        self._namespace = pod["metadata"]["namespace"]
        uid = pod["metadata"]["uid"]
        self.disk = places.disk / "pods" / uid
        self.memory = places.memory / "pods" / uid

    def volumes(self) -> dict[str, Path]:
        """Make the Pod's volumes; name → directory (or file). NotReadyError: something is
        missing.
        """
        self.disk.mkdir(parents=True, exist_ok=True)
        self.memory.mkdir(parents=True, exist_ok=True)
        return {v["name"]: self._volume(v) for v in self._pod["spec"].get("volumes", [])}

    def mounts(self, container: Object, volumes: dict[str, Path]) -> list[Mount]:
        """What the container mounts, outer paths first."""
        found = []
        for item in container.get("volumeMounts", []):
            source = volumes[item["name"]]
            if sub := item.get("subPath"):
                source /= sub
                if not source.exists():
                    source.mkdir(parents=True)
            target = item["mountPath"].rstrip("/") or "/"
            found.append(Mount(source, target, read_only=item.get("readOnly", False)))
        return sorted(found, key=lambda mount: mount.target)

    def environment(self, container: Object) -> dict[str, str]:
        """The container's variables. NotReadyError: a Secret or ConfigMap is missing."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, field in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
                if reference := source.get(field):
                    data = self._data(kind, reference)
                    prefix = source.get("prefix", "")
                    found.update({prefix + k: v.decode() for k, v in data.items()})
        for item in container.get("env", []):
            if (value := self._value(item, container)) is not None:
                found[item["name"]] = expand(value, found)
        return found

    def _value(self, item: Object, container: Object) -> str | None:
        source = item.get("valueFrom")
        if not source:
            return str(item.get("value", ""))
        if field := source.get("fieldRef"):
            return self.field(field["fieldPath"])
        if field := source.get("resourceFieldRef"):
            kind, _, name = field["resource"].partition(".")
            return str(container.get("resources", {}).get(kind, {}).get(name, "0"))
        for kind, key in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
            if reference := source.get(key):
                data = self._data(kind, reference)
                if reference["key"] in data:
                    return data[reference["key"]].decode()
                if reference.get("optional"):
                    return None
                raise NotReadyError(
                    f"couldn't find key {reference['key']} in {kind} {reference['name']}",
                    "CreateContainerConfigError",
                )
        raise NotReadyError(f"cannot make variable {item}", "CreateContainerConfigError")

    def field(self, path: str) -> str:
        """A field of the Pod, as the downward API gives it."""
        if path in {"status.podIP", "status.podIPs"}:
            return self._address
        if path == "status.hostIP":
            return self._places.address
        if path == "spec.nodeName":
            return self._node
        if keyed := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(self._pod["metadata"].get(keyed[1], {}).get(keyed[2], ""))
        value: Any = self._pod
        for part in path.split("."):
            value = value.get(part, "")
        if isinstance(value, dict):
            return "\n".join(f'{k}="{v}"' for k, v in sorted(value.items()))
        return str(value)

    def _volume(self, volume: Object) -> Path:
        name = volume["name"]
        makers: dict[str, Callable[[str, Object], Path]] = {
            "emptyDir": self._empty,
            "hostPath": self._host,
            "secret": self._secret,
            "configMap": self._config_map,
            "projected": self._projected,
            "downwardAPI": lambda name, source: self._write(name, self._downward(source)),
            "persistentVolumeClaim": self._claim,
        }
        for kind, make in makers.items():
            if kind in volume:
                return make(name, volume[kind] or {})
        raise NotReadyError(f"the stand-in knows no volume like {volume}")

    def _empty(self, name: str, source: Object) -> Path:
        base = self.memory if source.get("medium") == "Memory" else self.disk
        directory = base / "volumes" / name
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o777)
        return directory

    def _host(self, name: str, source: Object) -> Path:
        directory = self._places.host(source["path"])
        kind = source.get("type", "")
        if kind in {"", "DirectoryOrCreate"} and not directory.exists():
            directory.mkdir(parents=True)
        if not directory.exists():
            raise NotReadyError(f"hostPath type check failed: {source['path']} is not a {kind}")
        return directory

    def _claim(self, name: str, source: Object) -> Path:
        path = f"/api/v1/namespaces/{self._namespace}/persistentvolumeclaims/{source['claimName']}"
        claim = self._api.find(path)
        volume = claim and claim["spec"].get("volumeName")
        if not volume:
            raise NotReadyError(f"persistentvolumeclaim {source['claimName']} is not bound")
        found = self._api.get(f"/api/v1/persistentvolumes/{volume}")
        return self._host(name, found["spec"]["hostPath"])

    def _secret(self, name: str, source: Object) -> Path:
        reference = {"name": source["secretName"], "optional": source.get("optional", False)}
        return self._write(name, select(self._data("secrets", reference), source))

    def _config_map(self, name: str, source: Object) -> Path:
        return self._write(name, select(self._data("configmaps", source), source))

    def _projected(self, name: str, source: Object) -> Path:
        files: dict[str, bytes] = {}
        for part in source.get("sources", []):
            if token := part.get("serviceAccountToken"):
                files[token["path"]] = self._token(token)
            if secret := part.get("secret"):
                files |= select(self._data("secrets", secret), secret)
            if config := part.get("configMap"):
                files |= select(self._data("configmaps", config), config)
            if downward := part.get("downwardAPI"):
                files |= self._downward(downward)
        return self._write(name, files)

    def _downward(self, source: Object) -> dict[str, bytes]:
        items = source.get("items", [])
        return {i["path"]: self.field(i["fieldRef"]["fieldPath"]).encode() for i in items}

    def _token(self, source: Object) -> bytes:
        account = self._pod["spec"].get("serviceAccountName", "default")
        metadata = self._pod["metadata"]
        bound = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        spec: Object = {
            "audiences": [source["audience"]] if source.get("audience") else None,
            "expirationSeconds": source.get("expirationSeconds", 3600),
            "boundObjectRef": bound,
        }
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = self._api.create(path, body)
        except ApiError as error:
            if error.status in {403, 404, 409}:
                raise NotReadyError(f"failed to fetch token: {error}") from None
            raise
        token: str = answer["status"]["token"]
        return token.encode()

    def _data(self, kind: str, reference: Object) -> dict[str, bytes]:
        name = reference["name"]
        found = self._api.find(f"/api/v1/namespaces/{self._namespace}/{kind}/{name}")
        if found is None:
            if reference.get("optional"):
                return {}
            raise NotReadyError(f'{kind[:-1]} "{name}" not found', "CreateContainerConfigError")
        if kind == "secrets":
            return {k: base64.b64decode(v) for k, v in (found.get("data") or {}).items()}
        plain = {k: v.encode() for k, v in (found.get("data") or {}).items()}
        binary = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
        return plain | binary

    def _write(self, name: str, files: dict[str, bytes]) -> Path:
        # A real kubelet keeps these in memory too.
        directory = self.memory / "volumes" / name
        for path, content in files.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(file.name + ".new")
            fresh.write_bytes(content)
            fresh.rename(file)
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def select(data: dict[str, bytes], source: Object) -> dict[str, bytes]:
    """The keys that a volume asks for, by the path that it wants. NotReadyError: one is missing."""
    items = source.get("items")
    if not items:
        return data
    for item in items:
        if item["key"] not in data and not source.get("optional"):
            raise NotReadyError(f"references non-existent config key: {item['key']}")
    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace `$(NAME)`; `$$(NAME)` stays, without one dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return variables.get(match[1] or "", match[0])

    return re.sub(r"\$\$\([^)]*\)|\$\(([^)]*)\)", replace, text)
