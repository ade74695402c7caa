"""Hash of a model's parameters and buffers on this rank."""

from __future__ import annotations

import ctypes
import hashlib
import itertools

import torch
from torch.distributed.tensor import DTensor


def digest(model: torch.nn.Module) -> str:
    """Hash names, shapes and bytes of parameters and buffers (local shards if sharded).

    Returns:
        32 hex digits (blake2b, 16 bytes).
    """
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        data = local.detach().cpu().contiguous()
        hashed.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        size = data.numel() * data.element_size()
        hashed.update((ctypes.c_ubyte * size).from_address(data.data_ptr()))
    return hashed.hexdigest()
