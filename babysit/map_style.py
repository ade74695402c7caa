"""Torch's loaders over map-style data: batches are passed over before anything of them is loaded.

Workers are seeded anew for each batch, from the run's seed and the number of the batch, so what
they draw does not depend on which batches they loaded before.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from babysit import rng

if TYPE_CHECKING:
    from babysit.loaders import Thinning

_END: Any = object()


class MapStyle:
    """A torch DataLoader over map-style data: skipped index batches are never loaded.

    A shallow copy of the loader loads the data, so that subclasses, workers, collation and pinning
    stay as they are. :class:`_Indices` replaces its sampler, and a generator of its own gives the
    seed of the workers: that seed is drawn when workers start, which differs after a resume.
    """

    def __init__(self, loader: Any, *, apart: bool = False, ahead: bool = False) -> None:
        """Make a copy of the loader.

        Args:
            loader: A `DataLoader` over map-style data.
            apart: Without workers, let a batch draw as in a worker: seeded by its number, and apart
                from what training draws.
            ahead: Decide on one batch more than was asked for.
        """
        batched = loader.batch_sampler is not None
        self._sampler = loader.batch_sampler if batched else loader.sampler
        self.own_stream = not _is_torchs(self._sampler)
        self._apart = apart and not loader.num_workers
        self._ahead = ahead
        self.dealt: Iterator[Any] | None = None
        """Index batches of the next pass, in place of the sampler's."""
        self._indices = _Indices()
        self._loader = copy.copy(loader)
        # DataLoader.__setattr__ refuses to set these, so set them in the copy's dict.
        changes = {
            "batch_sampler" if batched else "sampler": self._indices,
            "generator": sys.modules["torch"].Generator(),
            "_iterator": None,
        }
        if hasattr(loader, "next_iter_state"):  # torchdata's: its place is kept here, not there
            changes["next_iter_state"] = None
        vars(self._loader).update(changes)

    def start(self, offset: int, wanted: Thinning, seed: int, stream: rng.Stream) -> Iterator[Any]:
        """Start a pass on the index batches; skipped batches are not loaded."""
        if self.own_stream:
            with stream():
                rest = iter(self._sampler)
            rest = itertools.islice(stream.draws(rest), offset, None)
        else:
            batches = self._sampler if self.dealt is None else self.dealt
            rest = itertools.islice(batches, offset, None)
        kept = ((index, wanted.last) for index in rest if wanted())
        decided = _one_ahead(kept) if self._ahead else kept
        # Samplers draw their order with their first index. Asking for it here, before the loader
        # starts, makes the order the same for a resumed epoch as for a fresh one.
        first = list(itertools.islice(decided, 1))
        self._indices.pending = (
            self._index(index, seed, number) for index, number in itertools.chain(first, decided)
        )
        number = first[0][1] if first else wanted.last
        self._loader.generator.manual_seed(rng.seed_from(seed, number))
        batches = iter(self._loader)
        return _apart(batches) if self._apart else batches

    def _index(self, index: Any, seed: int, number: int) -> Any:
        if self._apart:
            rng.seed_all(rng.seed_from(seed, number))
        if not self._loader.num_workers:
            return index
        return _Seeding(index, rng.seed_from(seed, number))


class Prepared:
    """accelerate's `DataLoaderShard` over map-style data, without its look ahead.

    accelerate loads one batch more than it has given, to know the last one, so that what the batch
    draws is drawn before the step in between. Here indices are known one ahead instead.
    """

    def __init__(self, loader: Any, *, apart: bool) -> None:
        self._loader = loader
        self._base = MapStyle(loader.base_dataloader, apart=apart, ahead=True)
        self.own_stream = self._base.own_stream

    def start(self, offset: int, wanted: Thinning, seed: int, stream: rng.Stream) -> Iterator[Any]:
        """Start a pass on the index batches; a collective where accelerate aligns generators."""
        loader = self._loader
        if loader.rng_types is not None:
            synchronize = sys.modules["accelerate.utils"].synchronize_rng_states
            synchronize(loader.rng_types, loader.synchronized_generator)
        return self._batches(self._base.start(offset, wanted, seed, stream), wanted)

    def _batches(self, rest: Iterator[Any], wanted: Thinning) -> Iterator[Any]:
        loader = self._loader
        send = sys.modules["accelerate.utils"].send_to_device
        loader.begin()
        try:
            for batch in rest:
                if loader.device is not None:
                    non_blocking = getattr(loader, "_non_blocking", False)
                    batch = send(batch, loader.device, non_blocking=non_blocking)  # noqa: PLW2901
                loader.end_of_dataloader = len(wanted.kept) == 1
                yield batch
        finally:
            loader.end()


def is_prepared(loader: Any) -> bool:
    """True for accelerate's `DataLoaderShard`."""
    names = {each.__name__ for each in type(loader).__mro__}
    return "DataLoaderShard" in names and hasattr(loader, "base_dataloader")


class _Indices:
    """Replaces a sampler and yields the pending indices."""

    def __init__(self) -> None:
        self.pending: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.pending


class _Seeding:
    """An index (or batch of indices) on its way to a worker, which it seeds on arrival."""

    def __init__(self, index: Any, seed: int) -> None:
        self._index, self._seed = index, seed

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._index, self._seed)


def _arrive(index: Any, seed: int) -> Any:
    """In a loader's worker: seed all generators, and give the index as it was."""
    rng.seed_all(seed)
    info = sys.modules["torch"].utils.data.get_worker_info()
    if info is not None:
        for number, source in enumerate(rng.sources(info.dataset)):
            rng.reseed(source, rng.seed_from(seed, number))
    return index


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    item = next(items, _END)
    while item is not _END:
        following = next(items, _END)
        yield item
        item = following


def _apart(rest: Iterator[Any]) -> Iterator[Any]:
    """Draw each item with generators of its own, which `rest` has seeded."""
    while True:
        outside = rng.capture(gpu=False)
        try:
            item = next(rest, _END)
        finally:
            rng.apply(outside)
        if item is _END:
            return
        yield item


def _is_torchs(sampler: Any) -> bool:
    """True for torch's own samplers, which draw their order at the start or from their own."""
    inner = getattr(sampler, "sampler", None)
    own = type(sampler).__module__.startswith(("torch.utils.data.", "torchdata."))
    return own and (inner is None or _is_torchs(inner))
