"""Clusters and alert channels are chosen by a setting; what does not exist is refused in words."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from jobs.clock import Clock, ManualClock
from monitors.types import Severity
from orchestrator.alerts import factory as alerts
from orchestrator.alerts.log import LogNotifier
from orchestrator.clusters import factory as clusters
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local.cluster import LocalCluster
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.instructions import INSTRUCTION, Notify
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

KUBECONFIG = """
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u, namespace: training}}]
current-context: x
"""
NOTICE = Notify(
    id="e.1",
    cause="e",
    run="run-1",
    reason="tiny-gpt hangs",
    severity=Severity.CRITICAL,
    text="tiny-gpt hangs",
    incident_kind="hang",
    attempt=2,
    channel="#training",
)


class Pager:
    """A toy alert channel: keeps one notice for each problem."""

    channel = "pager"
    ignored_fields: Mapping[str, str] = {"notify.slack": "it is a pager"}

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.pages: dict[str, tuple[str | None, str]] = {}

    async def notify(self, notice: Notify) -> None:
        self.pages[notice.dedup_key] = (notice.channel, notice.text)


class ToyCluster(SimulatedCluster):
    """A toy engine: the simulated cluster with a node of its own."""


def toy_cluster(settings: Settings, clock: Clock) -> ToyCluster:
    return ToyCluster([], clock)


@pytest.fixture
def toys() -> Iterator[str]:
    """A module that is imported by name, as an engine or a channel is."""
    module = types.ModuleType("toy_implementations")
    module.pager, module.cluster = Pager, toy_cluster  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


def test_the_defaults_are_the_local_cluster_and_the_log() -> None:
    assert isinstance(clusters.make_cluster(Settings(), ManualClock()), LocalCluster)
    assert isinstance(alerts.make_notifier(Settings()), LogNotifier)


async def test_simulated_nodes_are_as_large_as_the_settings_say() -> None:
    settings = Settings(
        cluster="simulated", local_nodes=3, local_gpus_per_node=8, local_memory_per_node=2**30
    )
    nodes = await clusters.make_cluster(settings, ManualClock()).nodes()
    assert [(n.id, n.gpus, n.cpus, n.memory) for n in nodes] == [
        (f"node-{number}", 8, 1, 2**30) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("name", [*clusters.CLUSTERS])
def test_every_cluster_that_is_offered_can_be_made(name: str, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    settings = Settings(cluster=name, kubernetes_kubeconfig=kubeconfig)
    cluster = clusters.make_cluster(settings, ManualClock())
    assert cluster.ignored_fields is not None
    assert [*cluster.needed_fields] == (["image"] if name == "kubernetes" else [])


@pytest.mark.parametrize("name", [*alerts.CHANNELS])
def test_every_channel_that_is_offered_can_be_made(name: str) -> None:
    settings = Settings(
        alerts="log,grafana" if name == "grafana" else name,  # which tells nobody by itself
        slack_token="xoxb-1",
        slack_channel="#training",
        webhook_url="https://example.org",
        webhook_secret="YWJj",
        pagerduty_key="key",
        smtp_url="smtp://127.0.0.1",
        email_from="a@example.org",
        email_to="b@example.org",
        grafana_url="https://grafana.example.org",
        grafana_token="glsa_1",
    )
    assert alerts.make_notifier(settings).channel.split("+")[-1] == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Settings(cluster="slurm"),
            (
                "BABYSIT_CLUSTER=slurm: no such choice; it may be kubernetes or local or ray or"
                " simulated"
            ),
        ),
        (
            Settings(cluster="lokal"),
            (
                "BABYSIT_CLUSTER=lokal: no such choice; it may be kubernetes or local or"
                " ray or simulated; did you mean local?"
            ),
        ),
        (
            Settings(alerts="slak"),
            (
                "BABYSIT_ALERTS=slak: no such choice; it may be email or grafana or log or"
                " pagerduty or slack or webhook; did you mean slack?"
            ),
        ),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(settings: Settings, message: str) -> None:
    def make() -> None:
        alerts.make_notifier(settings)
        clusters.make_cluster(settings, ManualClock())

    with pytest.raises(InvalidError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "ray://head:10001 is an address of Ray Client.* which `ray start`"),
        ("http://head:8265", "is the address of Ray's dashboard: give HOST:PORT"),
        ("head", "'head' is not the address of a Ray cluster: give HOST:PORT"),
    ],
)
def test_an_address_that_is_not_of_a_ray_cluster_says_what_to_give(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(ray_address=address)
    if importlib.util.find_spec("ray"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match=f"RAY_ADDRESS: .*{message}"):
            clusters.make_cluster(Settings(cluster="ray"), ManualClock())


def test_a_kubeconfig_without_the_context_says_what_to_do(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    wrong = {"kubernetes_kubeconfig": kubeconfig, "kubernetes_context": "y"}
    with pytest.raises(ClusterError, match=r"no access to Kubernetes: .*KUBERNETES_CONTEXT"):
        clusters.make_cluster(Settings(cluster="kubernetes", **wrong), ManualClock())


def test_a_client_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clusters.CLUSTERS, "toy", "no_such_library.engine:from_settings")
    with pytest.raises(InvalidError, match=r"the Python package no_such_library.*babysit\[toy\]"):
        clusters.make_cluster(Settings(cluster="toy"), ManualClock())


async def test_a_new_channel_is_one_class_and_one_row(
    toys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(alerts.CHANNELS, "pager", f"{toys}:pager")
    pager = alerts.make_notifier(Settings(alerts="pager"))
    assert isinstance(pager, Pager)
    await pager.notify(NOTICE)
    again = INSTRUCTION.validate_json(NOTICE.model_dump_json())  # as the outbox gives it back
    assert isinstance(again, Notify)
    await pager.notify(again)
    assert pager.pages == {"run-1/hang/2": ("#training", "tiny-gpt hangs")}


def test_a_new_cluster_is_one_module_and_one_row(
    toys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(clusters.CLUSTERS, "toy", f"{toys}:cluster")
    made = clusters.make_cluster(Settings(cluster="toy"), ManualClock())
    assert isinstance(made, ToyCluster)


def test_a_notice_about_the_whole_cluster_has_a_key_of_its_own() -> None:
    fleet = NOTICE.model_copy(update={"run": None, "attempt": None, "incident_kind": "breaker"})
    assert fleet.dedup_key == "fleet/breaker"
