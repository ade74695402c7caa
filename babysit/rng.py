"""States of this process's random number generators, as plain picklable values.

numpy and torch are used only if already imported: a script without them does not draw from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

_END: Any = object()
_REACH = 2000
"""Objects looked at in the search for generators of a loader."""
_ITEMS = 64
"""Items of each container looked at: data sets keep long lists of data."""


def capture(*, gpu: bool = True) -> dict[str, Any]:
    """The states of the generators of python, numpy and torch (CPU, and this rank's GPU)."""
    states: dict[str, Any] = {"python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = numpy.random.get_state()
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state()
        if gpu and torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state()
    return states


def apply(states: dict[str, Any]) -> None:
    """Restore the states that :func:`capture` returned."""
    random.setstate(states["python"])
    if "numpy" in states and (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.set_state(states["numpy"])
    if (torch := sys.modules.get("torch")) is not None:
        if "torch" in states:
            torch.set_rng_state(states["torch"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def seed_from(*parts: Any) -> int:
    """A seed of 63 bits from plain values."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def digest_of(state: Any) -> str:
    """A short text that stands for a captured state."""
    plain = state.numpy().tobytes() if hasattr(state, "numpy") else pickle.dumps(state)
    return hashlib.blake2b(plain, digest_size=16).hexdigest()


def seed_all(seed: int) -> None:
    """Seed the global generators of the CPU."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(seed)


def derived(states: dict[str, Any], *salt: Any) -> dict[str, Any]:
    """Other states that follow from the given ones, those of each library from its own."""
    found: dict[str, Any] = {}
    for name, state in states.items():
        seed = seed_from(digest_of(state), *salt)
        if name == "python":
            found[name] = random.Random(seed).getstate()
        elif name == "numpy":
            found[name] = sys.modules["numpy"].random.RandomState(seed % 2**32).get_state()
        elif name == "torch":
            found[name] = sys.modules["torch"].Generator().manual_seed(seed).get_state()
        elif name == "cuda":
            torch = sys.modules["torch"]
            found[name] = torch.Generator("cuda").manual_seed(seed).get_state()
    return found


class Stream:
    """Global generators of its own for code that draws from them between others' draws.

    A loader that draws while training draws too would see other numbers when it is replayed alone.
    """

    def __init__(self, states: dict[str, Any]) -> None:
        self.states = states

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Use this stream's states inside the block."""
        outside = capture(gpu=False)
        apply(self.states)
        try:
            yield
        finally:
            self.states = capture(gpu=False)
            apply(outside)

    def draws(self, rest: Iterator[Any]) -> Iterator[Any]:
        """The items of an iterator, each drawn inside the stream."""
        while True:
            with self():
                item = next(rest, _END)
            if item is _END:
                return
            yield item


def sources(*roots: Any, beyond: Any = None) -> list[Any]:
    """Generator objects reachable from the roots through attributes and containers, in order.

    The search does not enter `beyond`.
    """
    found: list[Any] = []
    seen: set[int] = set() if beyond is None else {id(beyond)}
    waiting = deque(root for root in roots if root is not None)
    while waiting and len(seen) < _REACH:
        current = waiting.popleft()
        if id(current) in seen or isinstance(current, str | bytes | int | float | type):
            continue
        seen.add(id(current))
        if _is_source(current):
            found.append(current)
        elif isinstance(current, dict):
            waiting.extend(list(current.values())[:_ITEMS])
        elif isinstance(current, list | tuple):
            waiting.extend(current[:_ITEMS])
        elif type(current).__module__ not in {"builtins", "torch", "numpy"}:
            waiting.extend(getattr(current, "__dict__", {}).values())
    return found


def _is_source(value: Any) -> bool:
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return True
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(
        value, numpy.random.Generator | numpy.random.RandomState
    ):
        return True
    return (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Generator)


def state_of(source: Any) -> Any:
    """The state of a generator object."""
    if isinstance(source, random.Random):
        return source.getstate()
    if hasattr(source, "bit_generator"):
        return source.bit_generator.state
    return source.get_state()


def set_state(source: Any, state: Any) -> None:
    """Restore what :func:`state_of` returned."""
    if isinstance(source, random.Random):
        source.setstate(state)
    elif hasattr(source, "bit_generator"):
        source.bit_generator.state = state
    else:
        source.set_state(state)


def reseed(source: Any, seed: int) -> None:
    """Seed a generator object."""
    if isinstance(source, random.Random):
        source.seed(seed)
    elif hasattr(source, "bit_generator"):
        source.bit_generator.state = type(source.bit_generator)(seed).state
    elif hasattr(source, "manual_seed"):
        source.manual_seed(seed)
    else:
        source.seed(seed % 2**32)
