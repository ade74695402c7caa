"""The few numbers on which ranks must agree, over the user's own process group."""

from __future__ import annotations

import sys
from typing import Any

from babysit.errors import NotDistributedError


def process_group() -> Any:
    """`torch.distributed` if it is imported and initialised; otherwise None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def require_process_group(world_size: int) -> None:
    """Ensure that several ranks can agree.

    Raises:
        NotDistributedError: There are several ranks, and torch.distributed is not initialised.
    """
    if world_size > 1 and process_group() is None:
        raise NotDistributedError(
            f"this run has {world_size} ranks, but torch.distributed is not initialised:"
            " call torch.distributed.init_process_group() before run.restore(state)"
        )


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
