"""What the machine has, and how it becomes virtual nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local import hardware
from orchestrator.clusters.local.virtual_nodes import LocalClusterSettings, virtual_nodes

GPUS = ("GPU-0a", "GPU-1b", "GPU-2c")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, GPUS),
        ("", ()),
        ("2,0", ("GPU-2c", "GPU-0a")),
        ("GPU-1", ("GPU-1b",)),
        (" 1 , GPU-2c", ("GPU-1b", "GPU-2c")),
        ("0,7,1", ("GPU-0a",)),
        ("-1", ()),
    ],
)
def test_visible_devices_are_respected(chosen: str | None, expected: tuple[str, ...]) -> None:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert hardware.visible(GPUS, environment) == expected


@pytest.mark.parametrize(
    ("count", "hands", "sizes"), [(8, 4, [2, 2, 2, 2]), (3, 2, [2, 1]), (1, 3, [1, 0, 0])]
)
def test_gpus_are_dealt_contiguously(count: int, hands: int, sizes: list[int]) -> None:
    items = [str(number) for number in range(count)]
    dealt = hardware.deal(items, hands)
    assert [len(hand) for hand in dealt] == sizes
    assert [item for hand in dealt for item in hand] == items


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_named_by_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo GPU-0a; echo GPU-1b")
    assert hardware.gpu_uuids() == ("GPU-0a", "GPU-1b")


def test_no_driver_tool_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpu_uuids() == ()


def test_a_driver_without_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo No devices were found; exit 6")
    assert hardware.gpu_uuids() == ()


def test_a_broken_driver_is_not_taken_for_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "echo Driver/library version mismatch >&2; exit 18")
    with pytest.raises(ClusterError, match=r"Driver/library version mismatch.*repair the driver"):
        hardware.gpu_uuids()


def test_virtual_nodes_carry_what_was_configured() -> None:
    settings = LocalClusterSettings(
        home=Path("/somewhere"),
        nodes=2,
        cpus_per_node=3,
        memory_per_node=2**30,
        labels={"node-2": {"rack": "b"}},
    )
    first, second = virtual_nodes(settings, GPUS)
    assert (first.info.id, first.info.gpus, first.devices) == ("node-1", 2, GPUS[:2])
    assert (second.info.id, second.info.gpus, second.devices) == ("node-2", 1, GPUS[2:])
    assert second.info.labels == {"rack": "b"}
    assert (second.info.cpus, second.info.memory) == (3, 2**30)


def test_by_default_every_node_offers_all_cpus() -> None:
    settings = LocalClusterSettings(home=Path("/somewhere"), nodes=3)
    assert {node.info.cpus for node in virtual_nodes(settings, ())} == {hardware.cpus()}


def test_a_cluster_may_have_no_nodes() -> None:
    settings = LocalClusterSettings(home=Path("/somewhere"), nodes=0)
    assert list(virtual_nodes(settings, GPUS)) == []
