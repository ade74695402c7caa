"""Ranks of healthy runs that differ by design are not accused, by their real digests."""

from __future__ import annotations

import copy

import pytest
import torch

from babysit.fingerprint import Wanted, parts
from monitors.replicas import ReplicaMonitor
from monitors.types import Finding, Fingerprint

RANKS, STEPS = 4, 10
PIPELINE, DTYPE, ZERO = "a pipeline of equal stages", "another dtype on rank 0", "ZeRO"
EMA, ALONE, BUFFERS = "EMA on rank 0 alone", "an optimizer of rank 0 alone", "buffers compared"


class Rank:
    """One simulated rank, with BatchNorm and with dropout masks of its own."""

    def __init__(self, rank: int, kind: str) -> None:
        torch.manual_seed(rank if kind == PIPELINE else 0)
        self.rank, self.kind = rank, kind
        kinds = torch.bfloat16 if kind == DTYPE and rank == 0 else torch.float32
        layers = (torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.3))
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).to(kinds)
        self.model = torch.nn.ModuleDict({"layers": self.layers})
        if kind == EMA and rank == 0:
            self.model["ema"] = copy.deepcopy(self.layers)
        self.parameters = list(self.layers.parameters())
        self.owned = self.parameters[rank::RANKS] if kind == ZERO else self.parameters
        self.optimizers = [torch.optim.AdamW(self.owned, lr=0.01)]
        if kind == ALONE and rank == 0:
            self.temperature = torch.nn.Parameter(torch.zeros(3))
            self.temperature.grad = torch.ones(3)
            self.optimizers.append(torch.optim.Adam([self.temperature]))

    def backward(self, step: int) -> None:
        torch.manual_seed(1000 * step + self.rank)  # other batches, and other masks
        batch = torch.randn(8, 6).to(self.parameters[0].dtype)
        self.layers.zero_grad()
        self.layers(batch).square().mean().backward()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        if "ema" in self.model:
            with torch.no_grad():
                for mean, new in zip(self.model["ema"].parameters(), self.parameters, strict=True):
                    mean.lerp_(new, 0.1)

    def said(self, step: int) -> Fingerprint:
        wanted = Wanted(self.model, tuple(self.optimizers), True, self.kind == BUFFERS)
        return Fingerprint(self.rank, step, step, 1e9 + step, RANKS, parts(wanted))


def reduce(ranks: list[Rank]) -> None:
    """All-reduce the gradients, as DDP does."""
    for several in zip(*(rank.parameters for rank in ranks), strict=True):
        mean = torch.stack([each.grad.float() for each in several]).mean(0)
        for each in several:
            each.grad = mean.to(each.dtype)


def share(ranks: list[Rank]) -> None:
    """Each rank of ZeRO has updated its part, and sends it to the others."""
    for place in range(len(ranks[0].parameters)):
        new = ranks[place % RANKS].parameters[place].detach().clone()
        for rank in ranks:
            rank.parameters[place].data.copy_(new)


def trained(kind: str, *, flip: int | None = None) -> tuple[ReplicaMonitor, list[Finding]]:
    monitor, found = ReplicaMonitor(), []
    monitor.restart(1, 0)
    ranks = [Rank(rank, kind) for rank in range(RANKS)]
    for step in range(1, STEPS):
        for rank in ranks:
            rank.backward(step)
        if kind != PIPELINE:
            reduce(ranks)
        for rank in ranks:
            rank.step()
        if kind == ZERO:
            share(ranks)
        if step == flip:
            ranks[2].parameters[0].data[0, 0] += 1e-3
        found += monitor.observe([rank.said(step) for rank in ranks])
    return monitor, found


@pytest.mark.parametrize(
    ("kind", "replicas"),
    [
        ("DDP", {"weights": 4, "gradients": 4, "optimizer": 4}),
        (BUFFERS, {"gradients": 4, "optimizer": 4}),
        (DTYPE, {"weights": 3, "gradients": 3, "optimizer": 3}),
        (EMA, {"weights": 3, "gradients": 4, "optimizer": 4}),
        (ALONE, {"weights": 4, "gradients": 4, "optimizer": 3}),
        (ZERO, {"weights": 4, "gradients": 4}),
        (PIPELINE, {}),
    ],
)
def test_ranks_that_differ_by_design_are_not_accused(kind: str, replicas: dict[str, int]) -> None:
    monitor, found = trained(kind)
    assert found == []
    known = {each.part.partition(":")[0]: len(each.ranks) for each in monitor.memory.replicas}
    assert known == replicas, "the others are compared all the same"


@pytest.mark.parametrize("kind", ["DDP", EMA, ALONE, ZERO])
def test_among_them_a_flipped_bit_shows(kind: str) -> None:
    (found,) = trained(kind, flip=6)[1]
    assert (found.onset_step, found.evidence["odd"]) == (6, [2])
