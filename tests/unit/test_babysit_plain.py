"""Values come back from JSON as they were, and no code runs on the way."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import queue
import random
import re
import subprocess
import threading
import types
import uuid
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from babysit import plain
from babysit.plain_values import NotPlainError, decode_tensor, encode_tensor

Pair = collections.namedtuple("Pair", "first second")  # noqa: PYI024 - as scripts have it


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Entry:
    step: int
    notes: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float = -0.0


class Slots:
    __slots__ = ("__hidden", "absent", "shown")

    def __init__(self) -> None:
        self.shown, self.__hidden = 1, [2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and self.__hidden == other.__hidden

    __hash__ = None  # type: ignore[assignment]


class Config(dict[str, Any]):
    """Has items and attributes."""


class Rows(list[int]):
    pass


class Counting:
    """Would show that code of the class ran."""

    made = 0

    def __init__(self) -> None:
        Counting.made += 1


def again(value: Any) -> Any:
    return plain.loads(plain.dumps(value, encode_tensor), decode_tensor)


VALUES = {
    "numbers": [True, 0, -1, 10**40, 1 / 3, -0.0, 5e-324, float("inf"), 1 - 2j],
    "texts": ["", "é\0\n", "\ud800", b"", b"\xff\0", "list"],
    "keys": {(1, "a"): 1, None: 2, 1.5: 3, Colour.RED: 4, True: 5, b"k": 6, "": 7},
    "sequences": [(), (1, (2, [3])), range(1, 9, 2), Pair(1, [2]), ["list", 1]],
    "sets": [{1, (2, 3)}, frozenset({"a"})],
    "mappings": [collections.Counter("aab"), collections.OrderedDict(b=1, a=[2])],
    "default": [collections.defaultdict(list, {1: [2]}), collections.defaultdict(None)],
    "deque": collections.deque([1, [2]], maxlen=3),
    "objects": [Entry(3, ["x"]), Point(0.5), Slots(), Rows([1, 2]), {"entry": Entry(1, [])}],
    "namespaces": [argparse.Namespace(lr=1e-3), types.SimpleNamespace(a=[1])],
    "library": [
        pathlib.Path("/a"),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        dt.date(2026, 1, 2),
        dt.timedelta(1, 2, 3),
        dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    ],
    "of torch": [torch.Size([1, 2]), torch.bfloat16, torch.device("cpu")],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name: str) -> None:
    value = VALUES[name]
    found = again(value)
    assert found == value
    assert repr(found) == repr(value) or "Slots" in repr(value)  # types, signs of zero, order


atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = atoms | st.binary() | st.tuples(atoms, atoms)
trees = st.recursive(
    atoms | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(collections.deque),
        st.dictionaries(keys, inner),
        st.builds(Entry, st.integers(), st.lists(inner)),
    ),
)


@given(trees)
def test_any_nesting_comes_back(value: Any) -> None:
    assert again(value) == value


def test_arrays_and_tensors_come_back_bit_for_bit() -> None:
    nan = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)
    record = np.zeros(2, [("a", "f4"), ("b", "i8")])
    shapes = [np.arange(6).reshape(2, 3).T, np.array(5), np.zeros((0, 3)), np.array(["a", "bc"])]
    for array in [nan, record, *shapes]:
        found = again(array)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()
        assert found.flags.f_contiguous == array.flags.f_contiguous
    mixed = np.array([[{"a": 1}], [None]], dtype=object)
    assert again(mixed).tolist() == mixed.tolist()
    for scalar in (np.float32(2.5), np.float64(1 / 3), np.bool_(True), np.int8(-1), np.str_("a")):
        assert type(again(scalar)) is type(scalar)
        assert again(scalar) == scalar
    for tensor in (
        torch.randn(2, 3).T,
        torch.randn(3).bfloat16(),
        torch.empty(0, 2),
        torch.ones(()),
    ):
        found = again(tensor)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_generators_go_on_as_they_would_have() -> None:
    generators: list[tuple[Any, Any]] = [
        (random.Random(3), lambda g: [g.random(), g.gauss(0, 1)]),
        (np.random.RandomState(3), lambda g: g.standard_normal(3).tolist()),
        (torch.Generator().manual_seed(3), lambda g: torch.rand(3, generator=g).tolist()),
    ]
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        draw = lambda g: [*g.standard_normal(3), g.integers(9), g.spawn(1)[0].random()]  # noqa: E731
        generators.append((np.random.Generator(kind(3)), draw))
    for generator, draw in generators:
        draw(generator)
        copy = again(generator)
        assert draw(copy) == draw(generator)


def test_what_is_shared_is_shared_again_and_circles_close() -> None:
    shared = [1]
    entry = Entry(1, [])
    entry.notes.append(entry)  # type: ignore[arg-type]
    one, two, there = again((shared, {"x": shared}, entry))
    assert one is two["x"]
    assert there.notes[0] is there


def test_no_code_of_a_class_runs() -> None:
    made = Counting()
    made.__dict__["note"] = 1
    before = Counting.made
    assert again(made).note == 1
    assert Counting.made == before


class Reduced:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


class Acts:
    def __del__(self) -> None:
        """Something."""


class Hidden(queue.SimpleQueue):  # type: ignore[type-arg]
    """Keeps its items where no attribute shows them."""


class Local:
    class Inner:
        pass


@pytest.mark.parametrize(
    "value",
    [
        *(
            len,
            print,
            lambda: 1,
            Entry,
            Reduced(),
            Acts(),
            Hidden(),
            threading.Lock(),
            ValueError(),
        ),
        *(re.compile("a"), np.ma.array([1]), object(), types, iter([]), torch.nn.Linear(1, 1)),
        collections.defaultdict(lambda: 1),
        type("Unfound", (), {})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_only_its_own_code_could_make_is_refused_by_path(value: Any) -> None:
    with pytest.raises(NotPlainError) as refused:
        plain.dumps({"a": [0, value]}, encode_tensor)
    assert refused.value.path == ("a", 1)
    assert again(Local.Inner()).__class__ is Local.Inner


def test_a_file_names_no_class_that_acts_and_no_module_is_imported() -> None:
    """As if somebody had written it."""
    empty: list[Any] = [[], []]
    for module, name in (
        ("subprocess", "Popen"),
        ("tempfile", "_TemporaryFileCloser"),
        ("builtins", "eval"),
        ("antigravity", "x"),
        (__name__, "Reduced"),
        (__name__, "Acts"),
        (__name__, "subprocess.Popen"),
    ):
        data = json.dumps(["object", module, name, empty, empty, None]).encode()
        with pytest.raises((LookupError, ValueError)):
            plain.loads(data)
    assert subprocess.Popen is not None
    for data in (["torch", "dtype", "load"], ["numpy_generator", "default_rng", None, None]):
        with pytest.raises((LookupError, ValueError)):
            plain.loads(json.dumps(data).encode())
    with pytest.raises(ValueError, match="'later', which this version does not read"):
        plain.loads(b'["later",1]')
