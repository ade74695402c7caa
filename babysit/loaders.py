"""How batches of each kind of loader are passed over, and how its randomness is replayed.

* torch `DataLoader` over map-style data: on its index batches, before anything is loaded; see
  :mod:`babysit.map_style`;
* a sequence: by index;
* any other iterable: drawn and dropped. It draws from a :class:`babysit.rng.Stream` of its own,
  as does a sampler that is not torch's: drawn alone, it gives the same again.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from babysit import rng
from babysit.map_style import MapStyle, Prepared, is_prepared

Ranges = Sequence[tuple[int, int]]
Spans = Callable[[int], tuple[int, int]]
"""First and last number that a batch counts as, by its index from the start of a pass on."""
_END: Any = object()


class Thinning:
    """Decides for each batch in order whether it is used, and queues the numbers of those.

    Prefetching loaders ask ahead, so the numbers wait here until their batches arrive.
    """

    def __init__(self, skip: Ranges, last: int, spans: Spans | None = None) -> None:
        self._skip, self._spans = skip, spans
        self.last = last
        """Number of the last batch that was decided."""
        self.drawn = 0
        """Batches that were decided."""
        self.kept: deque[tuple[int, int]] = deque()
        """`last` and `drawn` as of each batch that is used."""

    def __call__(self) -> bool:
        """True if the next batch is used."""
        first = last = self.last + 1
        if self._spans is not None:
            first, last = self._spans(self.drawn)
        self.last, self.drawn = last, self.drawn + 1
        if any(low <= last and first <= high for low, high in self._skip):
            return False
        self.kept.append((self.last, self.drawn))
        return True


class Source(Protocol):
    """A loader, reduced to what resuming needs."""

    own_stream: bool
    """True if drawing from the loader may draw from global generators in any order."""

    def start(self, offset: int, wanted: Thinning, seed: int, stream: rng.Stream) -> Iterator[Any]:
        """Start a pass after the first `offset` batches, without batches that `wanted` rejects.

        Skipping happens at once, not at the first `next`: the caller restores generators in
        between. `seed` is that of the run; `stream` is for a source with a stream of its own.
        """


class Indexed:
    """A sequence of batches."""

    own_stream = False

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def start(
        self, offset: int, wanted: Thinning, _seed: int, _stream: rng.Stream
    ) -> Iterator[Any]:
        """Start a pass by index; skipped items are not touched."""
        return (self._batches[i] for i in range(offset, len(self._batches)) if wanted())


class Drawn:
    """Any iterable: skipped batches are drawn and dropped."""

    own_stream = True

    def __init__(self, loader: Iterable[Any], beat: Callable[[], None]) -> None:
        self._loader, self._beat = loader, beat

    def start(self, offset: int, wanted: Thinning, _seed: int, stream: rng.Stream) -> Iterator[Any]:
        """Start a pass by drawing `offset` batches; each is a sign of life, as it may take long."""
        with stream():
            rest = iter(self._loader)
            for _ in range(offset):
                if next(rest, _END) is _END:
                    break
                self._beat()
        return self._rest(rest, wanted, stream)

    @staticmethod
    def _rest(rest: Iterator[Any], wanted: Thinning, stream: rng.Stream) -> Iterator[Any]:
        # By `next` alone: `iter(rest)` of an object that is its own loader (DeepSpeed's, many made
        # by hand) would begin the epoch again.
        for batch in stream.draws(rest):
            if wanted():
                yield batch


class Stateful(Drawn):
    """A loader that restores its place by its own `load_state_dict`."""

    own_stream = False

    def start(
        self, offset: int, wanted: Thinning, _seed: int, _stream: rng.Stream
    ) -> Iterator[Any]:
        """Start a pass by drawing `offset` batches: 0 if the loader has restored its place."""
        rest = iter(self._loader)
        for _ in itertools.islice(rest, offset):
            self._beat()
        return (batch for batch in _drawn(rest) if wanted())


def _drawn(rest: Iterator[Any]) -> Iterator[Any]:
    while (batch := next(rest, _END)) is not _END:
        yield batch


def source_of(
    loader: Any, beat: Callable[[], None] = lambda: None, *, apart: bool = False
) -> Source:
    """The way to skip batches of this loader; `beat` is called for every drawn batch.

    `apart`: what batches draw at random does not depend on what training draws.
    """
    if (torch_data := _torch_data_of(loader)) is not None:
        if not isinstance(loader.dataset, torch_data.IterableDataset) and not keeps_place(loader):
            if is_prepared(loader):
                return Prepared(loader, apart=apart)
            if not hasattr(loader, "base_dataloader"):
                return MapStyle(loader, apart=apart)
    elif isinstance(loader, Sequence) and not keeps_place(loader):
        return Indexed(loader)
    return Stateful(loader, beat) if keeps_place(loader) else Drawn(loader, beat)


def keeps_place(loader: Any) -> bool:
    """True if the loader resumes by its own `state_dict` and `load_state_dict`.

    torchdata's loader over data without a state of its own is resumed as torch's is: its state has
    no part of what was drawn at random.
    """
    if not _has_state(loader):
        return False
    if _torch_data_of(loader) is None or not type(loader).__module__.startswith("torchdata."):
        return True
    parts = (loader.dataset, loader.collate_fn, loader.sampler, loader.batch_sampler)
    return any(_has_state(p) and not type(p).__module__.startswith("torchdata.") for p in parts)


def _torch_data_of(loader: Any) -> Any:
    """`torch.utils.data` if the loader is one of its DataLoaders; otherwise None."""
    torch_data = sys.modules.get("torch.utils.data")
    is_one = torch_data is not None and isinstance(loader, torch_data.DataLoader)
    return torch_data if is_one else None


def _has_state(thing: Any) -> bool:
    # accelerate's loaders have the methods always, and a state only if asked for it.
    asked = getattr(thing, "use_stateful_dataloader", True)
    return bool(asked) and hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def parts_of(loader: Any) -> list[Any]:
    """The loader, its samplers and its data set, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "batch_sampler", None)
    parts = [
        loader,
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        inner,
        getattr(inner, "sampler", None),
        getattr(loader, "sampler", None),
        getattr(loader, "dataset", None),
    ]
    return list({id(part): part for part in parts if part is not None}.values())


def sources_of(loader: Any) -> tuple[list[Any], list[Any]]:
    """Generator objects of a loader: those of its order, and all others.

    The first ones come back by drawing the order again from the start of the epoch; the others
    (of a data set that is read in this process) are as they were at the checkpoint.
    """
    if _torch_data_of(loader) is None or keeps_place(loader):
        return [], rng.sources(loader)
    samplers = [loader.batch_sampler, loader.sampler, loader.generator]
    order = rng.sources(*samplers, beyond=loader.dataset)
    if isinstance(loader.dataset, sys.modules["torch.utils.data"].IterableDataset):
        return [*order, *_others(rng.sources(loader.dataset, loader.collate_fn), order)], []
    return order, _others(rng.sources(loader.dataset, loader.collate_fn), order)


def _others(found: list[Any], order: list[Any]) -> list[Any]:
    return [source for source in found if not any(source is other for other in order)]


def limits_of(loader: Any) -> str:
    """The part of a loader that does not come back bit for bit; empty: none is known."""
    torch_data = _torch_data_of(loader)
    if torch_data is None or not loader.num_workers:
        return ""
    name = type(loader).__name__
    if not getattr(loader, "in_order", True):
        return f"{name}(in_order=False) gives its batches in the order of loading"
    iterable = isinstance(loader.dataset, torch_data.IterableDataset)
    if iterable and loader.persistent_workers and not keeps_place(loader):
        return (
            f"the persistent workers of {name} go on drawing from one epoch to the next; with"
            " persistent_workers=False, or a loader with state_dict(), they are replayed"
        )
    if keeps_place(loader):
        return f"what the workers of {name} draw is replayed only as far as its state_dict() has it"
    return ""
