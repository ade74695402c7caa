"""Digests of a model's state on this rank, equal bit for bit on true replicas.

The problem: a machine that computes wrongly says nothing, and its rank trains on. Ranks that hold
the same weights must hold the same bits, so a digest of 64 bits per rank shows the odd one.

The design: each tensor is read as 64-bit words on its own device. A word is multiplied by an odd
number that depends on its place, and the products are summed modulo 2**64, so a change of any one
word changes the sum, and the order of the summation changes nothing. Only the sums leave the
device. Tensors are grouped by the shard that they are, as the mesh of a DTensor names it; the names
and shapes of a group are part of its key, so that only ranks with the same kind of shard are
compared.

Limits: buffers are left out unless they are asked for, since BatchNorm's running statistics differ
between data-parallel ranks. Tensors that are a partial sum, sparse or without data are left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

_BLOCK = 1 << 21
"""Words that are multiplied at once: 16 MiB for the products, and as much for the multipliers."""
_WORD = 8
_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit multipliers of the splitmix64 generator and its finaliser (Steele et al., 2014)."""
_multipliers: dict[torch.device, torch.Tensor] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """The state to take digests of."""

    model: Any
    optimizers: tuple[Any, ...] = ()
    gradients: bool = False
    buffers: bool = False


class _Named(dict[str, list[tuple[str, torch.Tensor]]]):
    """Tensors by the shard that they are; empty: the whole tensor."""

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """File a tensor, unless it has no bits to compare."""
        shard, local = _local(tensor)
        if local is not None:
            self.setdefault(shard, []).append((name, local))


def parts(wanted: Wanted) -> dict[str, str]:
    """The digests of a rank's state: 16 hex digits by `part:structure` or `part:structure:shard`.

    Waits for the device. Parts are `weights`, `gradients` and `optimizer`.
    """
    names = {id(p): name for name, p in wanted.model.named_parameters()}
    found: dict[str, _Named] = {"weights": _Named()}
    for name, parameter in wanted.model.named_parameters():
        found["weights"].add(name, parameter)
        if wanted.gradients and parameter.grad is not None:
            found.setdefault("gradients", _Named()).add(name, parameter.grad)
    if wanted.buffers:
        for name, buffer in wanted.model.named_buffers():
            found["weights"].add(name, buffer)
    for place, optimizer in enumerate(wanted.optimizers):
        filed = found.setdefault("optimizer", _Named())
        for name, tensor in _state_of(optimizer, names):
            filed.add(f"{place}.{name}", tensor)
    return {
        _key(part, shard, tensors): digest(tensors)
        for part, named in found.items()
        for shard, tensors in named.items()
    }


def _key(part: str, shard: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    structure = hashlib.blake2b(digest_size=4)
    for name, tensor in sorted(tensors, key=lambda each: each[0]):
        structure.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
    return ":".join([part, structure.hexdigest(), *([shard] if shard else [])])


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The digest of named tensors, in any order: 16 hex digits."""
    sums: defaultdict[torch.device, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, tensor in tensors:
        sums[tensor.device].append((name, _sum(tensor.detach())))
    values = [
        (name, value)
        for named in sums.values()
        for (name, _), value in zip(
            named, torch.stack([each for _, each in named]).tolist(), strict=True
        )
    ]
    hashed = hashlib.blake2b(digest_size=8)
    for name, value in sorted(values):
        hashed.update(f"{name} {value};".encode())
    return hashed.hexdigest()


def settle(model: Any) -> None:
    """Wait for what the devices of a model compute, so that a digest can be timed by itself."""
    for device in {p.device for p in model.parameters() if p.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()


def _local(tensor: torch.Tensor) -> tuple[str, torch.Tensor | None]:
    """The shard that this rank has of a tensor, and its own part; None: nothing to compare."""
    shard = ""
    if isinstance(tensor, DTensor):
        if any(placement.is_partial() for placement in tensor.placements):
            return "", None
        shard, tensor = _coordinate(tensor), tensor.to_local()
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
        return "", None
    return shard, tensor


def _coordinate(tensor: DTensor) -> str:
    """The place of a shard in its mesh, without the dimensions over which it is replicated."""
    mesh = tensor.device_mesh
    place: Sequence[int] = mesh.get_coordinate() or ()
    names = mesh.mesh_dim_names or tuple(map(str, range(len(place))))
    return ",".join(
        f"{name}={at}"
        for name, at, placement in zip(names, place, tensor.placements, strict=False)
        if not placement.is_replicate()
    )


def _state_of(optimizer: Any, names: Mapping[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of an optimizer's state by name, in the order of its parameters."""
    counted = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), f"#{counted}")
            counted += 1
            yield from _walk(name, optimizer.state.get(parameter, {}))


def _walk(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _walk(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _walk(f"{name}.{place}", each)
    elif isinstance(value, bool | int | float):
        yield name, torch.tensor(float(value), dtype=torch.float64)


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """The weighted sum of a tensor's words, on its device."""
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for words in _blocks(tensor):
        weighted = (words * _weights(tensor.device)[: words.numel()]).sum()
        total = total * _ODD[0] + _mixed(weighted)
    return total


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bits of a tensor as 64-bit words; the last one is filled up with zeros."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8)
    whole = raw.numel() // _WORD * _WORD
    if whole:
        aligned = raw[:whole]
        if aligned.storage_offset() % _WORD:
            aligned = aligned.clone()
        yield from torch.split(aligned.view(torch.int64), _BLOCK)
    if whole < raw.numel():
        last = torch.zeros(_WORD, dtype=torch.uint8, device=raw.device)
        last[: raw.numel() - whole] = raw[whole:]
        yield last.view(torch.int64)


def _weights(device: torch.device) -> torch.Tensor:
    """An odd multiplier for each place of a block: splitmix64 of the place."""
    known = _multipliers.get(device)
    if known is None:
        places = torch.arange(1, _BLOCK + 1, dtype=torch.int64, device=device) * _ODD[0]
        known = _multipliers[device] = _mixed(places) | 1
    return known


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Spread each bit of a word over all others: the finaliser of splitmix64."""
    words = (words ^ _shifted(words, 30)) * _ODD[1]
    words = (words ^ _shifted(words, 27)) * _ODD[2]
    spread: torch.Tensor = words ^ _shifted(words, 31)
    return spread


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: that of signed words would copy the sign."""
    shifted: torch.Tensor = (words >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def bits_of(number: float) -> str:
    """The bits of a float64 as 16 hex digits; all NaNs are alike."""
    if math.isnan(number):
        return "nan"
    return float(number).hex()


def joined(parts: Mapping[str, str]) -> str:
    """One digest of all parts: 16 hex digits."""
    text = "".join(f"{key}={value};" for key, value in sorted(parts.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
