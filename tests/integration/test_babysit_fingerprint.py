"""Digests of tensors: one flipped bit anywhere shows, and only the bits count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from babysit import fingerprint_ring
from babysit.fingerprint import Wanted, digest, parts
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import Plan

TYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 1001])
def test_each_flipped_bit_shows(kind: torch.dtype, size: int) -> None:
    tensor = (torch.arange(size) % 2 + 1).to(kind)
    before = digest([("w", tensor)])
    raw = tensor.view(torch.uint8)
    seen = {before}
    for byte in sorted({0, 1 % raw.numel(), raw.numel() // 2, raw.numel() - 1}):
        for bit in (0, 6):
            raw[byte] ^= 1 << bit
            seen.add(digest([("w", tensor)]))
            raw[byte] ^= 1 << bit
    places = len({0, 1 % raw.numel(), raw.numel() // 2, raw.numel() - 1})
    assert len(seen) == 1 + 2 * places
    assert digest([("w", tensor)]) == before


def test_the_place_of_a_value_counts_and_the_layout_does_not() -> None:
    tensor = torch.randn(8, 12)
    assert digest([("w", tensor)]) != digest([("w", tensor.flip(0))])
    assert digest([("w", tensor.t().contiguous().t())]) == digest([("w", tensor)])
    pair = [("a", tensor), ("b", tensor + 1)]
    assert digest(pair) == digest(pair[::-1]) != digest([("a", tensor + 1), ("b", tensor)])
    odd = torch.zeros(9, dtype=torch.float32)
    odd[1:] = tensor[0, :8]  # a view that does not begin at a multiple of 8 bytes
    assert digest([("w", odd[1:])]) == digest([("w", tensor[0, :8].clone())])


def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 5)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made_run = Run(Plan("r", 1, 0, 1), Reporter(tmp_path, 0))
    made_run.step = 1
    return made_run


def test_what_counts_and_what_does_not(run: Run) -> None:
    model, optimizer = made()

    def taken(**options: bool) -> str | None:
        return run.fingerprint(model, optimizer, every=1, **options)

    before = taken()
    assert before == taken()
    model[1].running_mean += 1
    assert taken() == before, "buffers may differ"
    assert taken(buffers=True) != taken()
    model[0].weight.grad[0, 0] += 1
    assert taken() == before
    optimizer.state[model[0].weight]["step"] += 1
    changed = taken()
    assert changed != before
    model[0].bias.data[0] += 1e-6
    assert taken() != changed


def test_what_the_script_gives_never_raises(run: Run) -> None:
    assert run.fingerprint(object(), every=1) is None
    assert run.fingerprint(torch.nn.Linear(2, 2), object(), every=1) is None
    with torch.device("meta"):
        assert run.fingerprint(torch.nn.Linear(2, 2), every=1) is not None


def test_the_same_failure_at_each_step_is_one_warning(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A rank has 100 warnings in all, also for its checkpoints."""
    for step in range(1, 20):
        run.step = step
        run.fingerprint(object(), every=1)
    assert len(caplog.records) == 1
    assert "run.fingerprint is left out" in caplog.text


def test_the_agent_reads_what_a_rank_took(run: Run, tmp_path: Path) -> None:
    model, optimizer = made()
    for step in range(1, 2 * fingerprint_ring.CAPACITY):
        run.step = step
        run.fingerprint(model, optimizer, reduced={"loss": torch.tensor(0.5)}, every=1)
        if step == 3:
            reader = fingerprint_ring.FingerprintReader(tmp_path / fingerprint_ring.FILE)
            assert len(reader.drain()) == 3
    lines = reader.drain()
    assert 0 < len(lines) <= fingerprint_ring.CAPACITY
    assert b'"step": 255' in lines[-1]
    assert b'"loss:reduced": "0x1.0000000000000p-1"' in lines[-1]
    reader.close()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_shard_is_named_by_its_coordinate(group: None) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replica", "shard"))
    model = torch.nn.Linear(4, 4)
    placed = distribute_tensor(model.weight.data, mesh, [Replicate(), Shard(0)])
    model.weight = torch.nn.Parameter(placed)
    keys = {key.split(":", 2)[0::2][-1] for key in parts(Wanted(model))}
    assert keys == {"shard=0", "weights"}
