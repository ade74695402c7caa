"""Prometheus and Alertmanager for tests: the programs, and servers that are gone afterwards."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


def find_program(name: str) -> str:
    """Path of a program of Prometheus; fails the test with what to do where there is none."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: run `scripts/prometheus`")
    return found


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(look: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true value of `look`; a server that does not answer yet is waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = look()
        except (urllib.error.URLError, ConnectionError):
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def get(url: str, **query: str) -> Any:
    """The JSON behind a URL."""
    text = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(text, timeout=10) as answer:
        return json.load(answer)


class Server:
    """A program of Prometheus in a directory of its own; stopped when left."""

    def __init__(self, directory: Path, *command: str, url: str, ready: str) -> None:
        self.url, self._ready = url, ready
        self._log = directory / f"{Path(command[0]).name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=directory, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        try:
            eventually(self._is_ready, f"{self.url} to be ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with urllib.request.urlopen(self.url + self._ready, timeout=10) as answer:
            return bool(answer.status == 200)


class Alertmanager(Server):
    """A real Alertmanager without receivers: its API says what it was sent."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        config = directory / "alertmanager.json"  # JSON is YAML
        route = {"receiver": "nobody", "group_by": ["..."], "group_wait": "0s"}
        config.write_text(json.dumps({"route": route, "receivers": [{"name": "nobody"}]}))
        super().__init__(
            directory,
            find_program("prometheus-alertmanager"),
            f"--config.file={config}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            f"--storage.path={directory / 'alertmanager'}",
            url=f"http://127.0.0.1:{port}",
            ready="/-/ready",
        )

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that it holds."""
        found: list[dict[str, Any]] = get(f"{self.url}/api/v2/alerts")
        return found


class Prometheus(Server):
    """A real Prometheus that scrapes one server once a second.

    Args:
        directory: For its data.
        target: `host:port` of the babysit server.
        token: Of the role viewer.
        rules: A file of alert rules.
        alertmanager: `host:port`, to which alerts are sent.
    """

    def __init__(
        self, directory: Path, *, target: str, token: str, rules: Path, alertmanager: str
    ) -> None:
        port = free_port()
        config = directory / "prometheus.json"
        static = [{"targets": [target]}]
        job = {
            "job_name": "babysit",
            "static_configs": static,
            "authorization": {"credentials": token},
        }
        interval = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        managers = [{"static_configs": [{"targets": [alertmanager]}]}]
        body = {
            "global": interval,
            "rule_files": [str(rules)],
            "scrape_configs": [job],
            "alerting": {"alertmanagers": managers},
        }
        config.write_text(json.dumps(body))
        super().__init__(
            directory,
            find_program("prometheus"),
            f"--config.file={config}",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            url=f"http://127.0.0.1:{port}",
            ready="/-/ready",
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of a query now. AssertionError: Prometheus rejects it."""
        try:
            answer = get(f"{self.url}/api/v1/query", query=expression)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def rules(self) -> dict[str, dict[str, Any]]:
        """Alert rules by name, with their health and state."""
        groups = get(f"{self.url}/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}
