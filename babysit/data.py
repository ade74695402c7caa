"""The position of a run in its data: resume at the exact batch, across epochs, with quarantine.

Batches are numbered from 1 over the whole run, whether drawn *or skipped*, so a number means the
same data in every attempt. How batches are skipped depends on the loader:

* torch `DataLoader` over map-style data: on its index batches, before anything is loaded;
* a sequence: by index;
* a loader with `state_dict` and `load_state_dict`: they resume it, quarantined batches are drawn
  and dropped;
* any other iterable: drawn and dropped.

Random order is repeated by restoring the generators as of the start of the epoch. This does not
work for a sampler that draws from a *global* generator batch by batch, between training steps;
torch's own samplers draw their whole order at the start.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from babysit import rng
from babysit.errors import EmptyLoaderError

Ranges = Sequence[tuple[int, int]]
_END: Any = object()


@dataclasses.dataclass(slots=True)
class Position:
    """The position of a run in its data, saved with every checkpoint."""

    epoch: int = 0
    offset: int = 0
    """Batches passed in this epoch, including skipped ones."""
    batch: int = 0
    """Batches passed in the whole run; the next batch has this number + 1."""
    epoch_states: dict[str, Any] | None = None
    """Random generators as of the start of the epoch; None: the run has not begun one."""
    loader_state: Any = None
    """The loader's own `state_dict()`; None: it has none."""


class Thinning:
    """Decides for each batch in order whether it is used, and queues the numbers of those.

    Prefetching loaders ask ahead, so the numbers wait here until their batches arrive.
    """

    def __init__(self, skip: Ranges, last: int) -> None:
        self._skip = skip
        self.last = last
        """Number of the last batch that was decided."""
        self.kept: deque[int] = deque()

    def __call__(self) -> bool:
        """True if the next batch is used."""
        self.last += 1
        if any(first <= self.last <= last for first, last in self._skip):
            return False
        self.kept.append(self.last)
        return True


class Source(Protocol):
    """A loader, reduced to what resuming needs."""

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Start a pass after the first `offset` batches, without batches that `wanted` rejects.

        Skipping happens at once, not at the first `next`: the caller restores generators in
        between.
        """


class Indexed:
    """A sequence of batches."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Start a pass by index; skipped items are not touched."""
        return (self._batches[i] for i in range(offset, len(self._batches)) if wanted())


class Drawn:
    """Any iterable: skipped batches are drawn and dropped."""

    def __init__(self, loader: Iterable[Any], beat: Callable[[], None]) -> None:
        self._loader, self._beat = loader, beat

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Start a pass by drawing `offset` batches; each is a sign of life, as it may take long."""
        rest = iter(self._loader)
        for _ in range(offset):
            if next(rest, _END) is _END:
                break
            self._beat()
        return self._rest(rest, wanted)

    @staticmethod
    def _rest(rest: Iterator[Any], wanted: Thinning) -> Iterator[Any]:
        # By `next` alone: `iter(rest)` of an object that is its own loader (DeepSpeed's, many made
        # by hand) would begin the epoch again.
        while (batch := next(rest, _END)) is not _END:
            if wanted():
                yield batch


class MapStyle:
    """A torch DataLoader over map-style data: skipped index batches are never loaded.

    A shallow copy of the loader loads the data, so that subclasses, workers, collation and pinning
    stay as they are. :class:`_Indices` replaces its sampler.
    """

    def __init__(self, loader: Any) -> None:
        batched = loader.batch_sampler is not None
        self._sampler = loader.batch_sampler if batched else loader.sampler
        self._indices = _Indices()
        self._loader = copy.copy(loader)
        # DataLoader.__setattr__ refuses to set these, so set them in the copy's dict.
        vars(self._loader)["batch_sampler" if batched else "sampler"] = self._indices
        vars(self._loader)["_iterator"] = None

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Start a pass on the index batches; skipped batches are not loaded."""
        rest = itertools.islice(self._sampler, offset, None)
        indices = (index for index in rest if wanted())
        # Samplers draw their order with their first index. Asking for it here, before the loader
        # draws its workers' seed, makes the order the same for a resumed epoch as for a fresh one.
        first = list(itertools.islice(indices, 1))
        self._indices.pending = itertools.chain(first, indices)
        return iter(self._loader)


class _Indices:
    """Replaces a sampler and yields the pending indices."""

    def __init__(self) -> None:
        self.pending: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.pending


def source_of(loader: Any, beat: Callable[[], None] = lambda: None) -> Source:
    """The way to skip batches of this loader; `beat` is called for every drawn batch."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(loader, torch_data.DataLoader):
        mapped = not isinstance(loader.dataset, torch_data.IterableDataset)
        return MapStyle(loader) if mapped and not _is_stateful(loader) else Drawn(loader, beat)
    if isinstance(loader, Sequence) and not _is_stateful(loader):
        return Indexed(loader)
    return Drawn(loader, beat)


class Feed:
    """The batches of a run from a position on, across epochs."""

    def __init__(
        self,
        loader: Any,
        skip: Ranges = (),
        position: Position | None = None,
        *,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.position = position or Position()
        self._loader = loader
        self._skip = tuple(skip)
        self._source = source_of(loader, beat)
        self._stateful = _is_stateful(loader)
        self._generators = _generators(loader)

    def batches(self, epochs: int | None, states: dict[str, Any] | None = None) -> Iterator[Any]:
        """Yield batches; `position` is that of the last yielded one.

        Args:
            epochs: Passes over the loader in the whole run; None: unlimited.
            states: Generators as of the checkpoint, restored before the first batch; None: keep
                them.

        Raises:
            EmptyLoaderError: A whole pass gave no batch.
        """
        resumed = self.position.epoch_states is not None
        while epochs is None or self.position.epoch < epochs:
            wanted = Thinning(self._skip, self.position.batch)
            rest = self._begin(wanted, resumed=resumed)
            if resumed and states is not None:
                rng.apply(states)
            resumed = False
            for batch in rest:
                self._advance_to(wanted.kept.popleft())
                yield batch
            self._advance_to(wanted.last)
            if self.position.offset == 0:
                raise EmptyLoaderError(
                    f"epoch {self.position.epoch} of the loader ({type(self._loader).__name__})"
                    " gave no batch: is the data empty, or is the loader an exhausted iterator?"
                )
            self.position = dataclasses.replace(
                self.position, epoch=self.position.epoch + 1, offset=0
            )

    def snapshot(self) -> Position:
        """The position to save: the next batch drawn is the one after it."""
        state = self._loader.state_dict() if self._stateful else None
        return dataclasses.replace(self.position, loader_state=state)

    def _begin(self, wanted: Thinning, *, resumed: bool) -> Iterator[Any]:
        position = self.position
        for target in _epoch_aware(self._loader):
            target.set_epoch(position.epoch)
        if resumed and position.epoch_states is not None:
            self._replay(position.epoch_states)
        else:
            position.epoch_states = rng.capture() | {
                f"generator {i}": g.get_state() for i, g in enumerate(self._generators)
            }
        if resumed and self._stateful and position.loader_state is not None:
            self._loader.load_state_dict(position.loader_state)
            return self._source.start(0, wanted)
        return self._source.start(position.offset, wanted)

    def _replay(self, states: dict[str, Any]) -> None:
        rng.apply(states)
        for i, generator in enumerate(self._generators):
            if (state := states.get(f"generator {i}")) is not None:
                generator.set_state(state)

    def _advance_to(self, number: int) -> None:
        self.position.offset += number - self.position.batch
        self.position.batch = number


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _parts(loader: Any) -> list[Any]:
    """The loader, its samplers and its data set, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [
        loader,
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
        getattr(loader, "sampler", None),
        getattr(loader, "dataset", None),
    ]
    return list({id(part): part for part in parts if part is not None}.values())


def _epoch_aware(loader: Any) -> list[Any]:
    """Parts with `set_epoch`, such as torch's DistributedSampler."""
    return [part for part in _parts(loader) if callable(getattr(part, "set_epoch", None))]


def _generators(loader: Any) -> list[Any]:
    """The torch generators that decide the order of the data, each once."""
    found = [getattr(part, "generator", None) for part in _parts(loader)]
    return list({id(g): g for g in found if hasattr(g, "get_state")}.values())
