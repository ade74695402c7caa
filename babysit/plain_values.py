"""Values without other values in them, as JSON: texts, arrays, tensors, random generators.

numpy and torch are used if the script has imported them.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import enum
import fractions
import importlib
import io
import pathlib
import random
import sys
import uuid
from collections.abc import Callable
from typing import Any

from babysit.plain_classes import class_of, is_found

Code = Callable[[Any], Any]
"""Encodes, or decodes, a value that another one consists of."""
NOT_MINE: Any = object()
_TEXTS: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "fraction": (fractions.Fraction, str, fractions.Fraction),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "path": (type(pathlib.Path()), str, pathlib.Path),
    "date": (dt.date, dt.date.isoformat, dt.date.fromisoformat),
}
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class NotPlainError(TypeError):
    """A value cannot be encoded."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"a {type(value).__name__}")
        self.value = value
        self.path: tuple[Any, ...] = ()
        """Keys and indices from the outermost container to the value."""


def encode(value: Any, inner: Code) -> Any:
    """A value as JSON; `NOT_MINE`: it is of no kind that this module knows."""
    text = _as_text(value)
    if text is not None:
        return text
    if type(value) is random.Random:
        return ["random", inner(value.getstate())]
    found = _of_torchs(value)
    return _of_numpys(value, inner) if found is NOT_MINE else found


def decode(tag: str, data: list[Any], inner: Code) -> Any:
    """The inverse of :func:`encode`; `NOT_MINE`: the tag is unknown."""
    if tag in _TEXTS:
        return _TEXTS[tag][2](data[0])
    if tag in _DECODERS:
        return _DECODERS[tag](*data)
    if tag in _COMPOSED:
        return _COMPOSED[tag](inner, *data)
    return NOT_MINE


def _as_text(value: Any) -> list[Any] | None:
    """Immutable values whose text is all of them."""
    kind = type(value)
    if kind in {bytes, bytearray}:
        return [kind.__name__, base64.b64encode(value).decode()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is range:
        return ["range", value.start, value.stop, value.step]
    if kind is dt.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if kind is dt.datetime and value.tzinfo in {None, dt.UTC}:
        return ["datetime", value.isoformat(), value.fold]
    if isinstance(value, enum.Enum) and value.name in kind.__members__ and is_found(kind):
        return ["enum", kind.__module__, kind.__qualname__, value.name]
    for tag, (known, encode, _) in _TEXTS.items():
        if kind is known:
            return [tag, encode(value)]
    return None


def _of_torchs(value: Any) -> Any:
    if (torch := sys.modules.get("torch")) is None:
        return NOT_MINE
    kind = type(value)
    if kind is torch.Generator:
        return ["torch_generator", str(value.device), _tensor(value.get_state())]
    if kind is torch.Size:
        return ["size", list(value)]
    if kind in {torch.dtype, torch.device}:
        return ["torch", kind.__name__, str(value).removeprefix("torch.")]
    return NOT_MINE


def _of_numpys(value: Any, inner: Code) -> Any:
    if (numpy := sys.modules.get("numpy")) is None:
        return NOT_MINE
    kind = type(value)
    if kind is numpy.ndarray or (isinstance(value, numpy.generic) and kind.__module__ == "numpy"):
        return _array(numpy, value, inner)
    if isinstance(value, numpy.dtype) and value.names is None and not value.hasobject:
        return ["numpy_dtype", value.str]
    if kind is numpy.random.RandomState:
        return ["numpy_state", inner(value.get_state(legacy=False))]
    if kind is numpy.random.Generator and type(value.bit_generator).__name__ in _BIT_GENERATORS:
        source = value.bit_generator
        sequence: Any = getattr(source, "seed_seq", None)
        seed = sequence.state if type(sequence) is numpy.random.SeedSequence else None
        return ["numpy_generator", type(source).__name__, inner(seed), inner(source.state)]
    return NOT_MINE


def _array(numpy: Any, value: Any, inner: Code) -> Any:
    if value.dtype.hasobject:
        if value.dtype != object:
            return NOT_MINE
        return ["objects", list(value.shape), inner(value.ravel().tolist())]
    file = io.BytesIO()
    numpy.save(file, value, allow_pickle=False)
    tag = "array" if type(value) is numpy.ndarray else "scalar"
    return [tag, base64.b64encode(file.getvalue()).decode()]


def encode_tensor(tensor: Any) -> Any:
    """The content of a small tensor as JSON.

    Raises:
        NotPlainError: The value is not a dense tensor.
    """
    torch = sys.modules.get("torch")
    if torch is None or type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        raise NotPlainError(tensor)
    if tensor.is_quantized or tensor.is_nested:
        raise NotPlainError(tensor)
    return _tensor(tensor)


def _tensor(tensor: Any) -> list[Any]:
    torch = sys.modules["torch"]
    plain = tensor.detach().cpu().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    name = str(plain.dtype).removeprefix("torch.")
    return [name, list(plain.shape), base64.b64encode(content).decode()]


def decode_tensor(data: Any) -> Any:
    """The inverse of :func:`encode_tensor`; the tensor is on the CPU."""
    torch = _imported("torch")
    name, shape, text = data
    flat = torch.frombuffer(bytearray(base64.b64decode(text)) or bytearray(1), dtype=torch.uint8)
    if not text:
        return torch.empty(shape, dtype=getattr(torch, name))
    return flat.view(getattr(torch, name)).reshape(shape)


def _imported(name: str) -> Any:
    """Numpy or torch: what they saved is loaded also in a script that imports them later."""
    return importlib.import_module(name)


# --- decoding -----------------------------------------------------------------------------------


def _enum(module: str, name: str, member: str) -> Any:
    kind = class_of(module, name)
    if not issubclass(kind, enum.Enum):
        raise LookupError(f"{module}.{name} is not an enumeration")  # noqa: TRY004 - of the file
    return kind.__members__[member]


def _random(inner: Code, state: Any) -> Any:
    made = random.Random()
    made.setstate(inner(state))
    return made


def _torch_generator(device: str, state: Any) -> Any:
    made = _imported("torch").Generator(device)
    made.set_state(decode_tensor(state))
    return made


def _torch(kind: str, text: str) -> Any:
    torch = _imported("torch")
    found = torch.device(text) if kind == "device" else getattr(torch, text)
    if not isinstance(found, torch.device | torch.dtype):
        raise LookupError(f"torch.{text} is not a dtype")  # noqa: TRY004 - as above
    return found


def _size(sizes: list[int]) -> Any:
    return _imported("torch").Size(sizes)


def _numpy_dtype(text: str) -> Any:
    return _imported("numpy").dtype(text)


def _load_array(text: str) -> Any:
    return _imported("numpy").load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def _objects(inner: Code, shape: list[int], items: Any) -> Any:
    found = inner(items)
    made = _imported("numpy").empty(len(found), dtype=object)
    for i, item in enumerate(found):
        made[i] = item
    return made.reshape(shape)


def _numpy_state(inner: Code, state: Any) -> Any:
    made = _imported("numpy").random.RandomState()
    made.set_state(inner(state))
    return made


def _numpy_generator(inner: Code, name: str, seed: Any, state: Any) -> Any:
    source = _imported("numpy").random
    if name not in _BIT_GENERATORS:
        raise ValueError(f"numpy's {name} is not a generator that this version reads")
    sequence = inner(seed)
    sequence = None if sequence is None else source.SeedSequence(**sequence)
    made = getattr(source, name)(sequence)
    made.state = inner(state)
    return source.Generator(made)


_DECODERS: dict[str, Callable[..., Any]] = {
    "bytes": base64.b64decode,
    "bytearray": lambda text: bytearray(base64.b64decode(text)),
    "complex": complex,
    "range": range,
    "timedelta": dt.timedelta,
    "datetime": lambda text, fold: dt.datetime.fromisoformat(text).replace(fold=fold),
    "enum": _enum,
    "torch_generator": _torch_generator,
    "torch": _torch,
    "size": _size,
    "array": _load_array,
    "scalar": lambda text: _load_array(text)[()],
    "numpy_dtype": _numpy_dtype,
}
_COMPOSED: dict[str, Callable[..., Any]] = {
    "random": _random,
    "objects": _objects,
    "numpy_state": _numpy_state,
    "numpy_generator": _numpy_generator,
}
