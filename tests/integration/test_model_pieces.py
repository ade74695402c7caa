"""The pieces of a model that each rank saves: what goes into them, and where they fit."""

from __future__ import annotations

import pytest
import torch

from babysit.errors import StateMismatchError
from babysit.integrations import pieces


class _Model(torch.nn.Module):
    """A layer with a buffer that is saved, and a cache that grows with its longest input."""

    seen: torch.Tensor
    cache: torch.Tensor

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=bias)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        if len(x) > len(self.cache):
            self.register_buffer("cache", torch.zeros(len(x)), persistent=False)
        output: torch.Tensor = self.layer(x)
        return output


def test_a_cache_that_has_grown_does_not_keep_a_model_from_its_checkpoint() -> None:
    model, fresh = _Model(), _Model()
    model(torch.ones(5, 2))
    taken = pieces.take(model, [], 1)
    pieces.put(taken, fresh, [], 1, "step-1")
    assert torch.equal(fresh.layer.weight, model.layer.weight)
    assert (float(fresh.seen), len(fresh.cache)) == (5.0, 2)


def test_a_model_with_more_parameters_is_refused() -> None:
    """They would keep their first values, without a word."""
    taken = pieces.take(_Model(), [], 1)
    with pytest.raises(StateMismatchError, match=r"step-1 has no parameter layer\.bias, which the"):
        pieces.put(taken, _Model(bias=True), [], 1, "step-1")


def test_a_model_with_fewer_parameters_is_refused() -> None:
    taken = pieces.take(_Model(bias=True), [], 1)
    with pytest.raises(StateMismatchError, match=r"the model has no parameter layer\.bias of its"):
        pieces.put(taken, _Model(), [], 1, "step-1")
