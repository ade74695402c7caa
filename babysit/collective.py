"""The few numbers on which ranks must agree, over the user's own process group."""

from __future__ import annotations

import sys
from typing import Any


def process_group() -> Any:
    """`torch.distributed` if it is imported and initialised; otherwise None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def minimum(*values: int) -> tuple[int, ...]:
    """Element-wise minimum over all ranks; a collective. Without a process group: the values."""
    distributed = process_group()
    if distributed is None:
        return values
    import torch  # noqa: PLC0415  # loaded only if the script uses it

    on_gpu = distributed.get_backend() == "nccl"
    numbers = torch.tensor(values, device="cuda" if on_gpu else "cpu", dtype=torch.int64)
    distributed.all_reduce(numbers, op=distributed.ReduceOp.MIN)
    return tuple(int(n) for n in numbers.tolist())
