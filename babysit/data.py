"""Where the run is in its data: resuming at the exact batch, over epochs, without quarantined ones.

Batches are numbered from 1 over the whole run, every one that is drawn *or skipped*; so a number
names the same data on every attempt. How a batch is passed over depends on the loader:

* torch `DataLoader` over map-style data: on its index batches, before anything is loaded;
* a sequence: by index;
* a loader with `state_dict` and `load_state_dict`: resumed by them, quarantined batches drawn and
  dropped;
* any other iterable: drawn and dropped.

Random order is replayed by putting the generators back to where they stood when the epoch began. A
sampler that draws from a *global* generator batch by batch, between the steps of training, cannot
be replayed so; torch's own draw their whole order at the start.
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
    """Where a run is in its data; saved with every checkpoint."""

    epoch: int = 0
    offset: int = 0
    """Batches passed in this epoch, skipped ones included."""
    batch: int = 0
    """Batches passed in the whole run; the next has this number + 1."""
    epoch_states: dict[str, Any] | None = None
    """Generators as they stood when the epoch began."""
    loader_state: Any = None
    """The loader's own `state_dict()`, where it has one."""


class Thinning:
    """Decides batch by batch, in order, whether it is wanted; remembers the numbers of those kept.

    Prefetching loaders ask ahead, so the numbers wait here until their batches come out.
    """

    def __init__(self, skip: Ranges, last: int) -> None:
        self._skip = skip
        self.last = last
        """Number of the last batch decided on."""
        self.kept: deque[int] = deque()

    def __call__(self) -> bool:
        """Whether the next batch is wanted."""
        self.last += 1
        if any(first <= self.last <= last for first, last in self._skip):
            return False
        self.kept.append(self.last)
        return True


class Source(Protocol):
    """A loader, reduced to what resuming needs."""

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Begin a pass, past the first `offset` batches, leaving out those not `wanted`.

        Passing over happens at once, not at the first `next`: generators are put back in between.
        """


class Indexed:
    """A sequence of batches."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Only wanted items are touched."""
        return (self._batches[i] for i in range(offset, len(self._batches)) if wanted())


class Drawn:
    """Any iterable: what is not wanted is drawn and dropped."""

    def __init__(self, loader: Iterable[Any], beat: Callable[[], None]) -> None:
        self._loader, self._beat = loader, beat

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Draws `offset` batches; each is a sign of life, as there may be a million of them."""
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
    """A torch DataLoader over map-style data: its index batches are thinned before loading.

    A shallow copy of the loader does the loading (so subclasses, workers, collation and pinning
    stay as they are), fed from :class:`_Indices` instead of its own sampler.
    """

    def __init__(self, loader: Any) -> None:
        batched = loader.batch_sampler is not None
        self._sampler = loader.batch_sampler if batched else loader.sampler
        self._indices = _Indices()
        self._loader = copy.copy(loader)
        # DataLoader.__setattr__ refuses these; on the copy they are ours to set.
        vars(self._loader)["batch_sampler" if batched else "sampler"] = self._indices
        vars(self._loader)["_iterator"] = None

    def start(self, offset: int, wanted: Thinning) -> Iterator[Any]:
        """Nothing that is passed over is loaded."""
        rest = itertools.islice(self._sampler, offset, None)
        indices = (index for index in rest if wanted())
        # Samplers draw their order with their first index. Asking for it here, before the loader
        # draws its workers' seed, makes the order the same for a resumed epoch as for a fresh one.
        first = list(itertools.islice(indices, 1))
        self._indices.pending = itertools.chain(first, indices)
        return iter(self._loader)


class _Indices:
    """Stands in for a sampler: gives what is pending."""

    def __init__(self) -> None:
        self.pending: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.pending


def source_of(loader: Any, beat: Callable[[], None] = lambda: None) -> Source:
    """How batches of this loader can be passed over; `beat` is called for each that is drawn."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(loader, torch_data.DataLoader):
        mapped = not isinstance(loader.dataset, torch_data.IterableDataset)
        return MapStyle(loader) if mapped and not _is_stateful(loader) else Drawn(loader, beat)
    if isinstance(loader, Sequence) and not _is_stateful(loader):
        return Indexed(loader)
    return Drawn(loader, beat)


class Feed:
    """The batches of a run, from a position on, over epochs."""

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
        """Yield batches; `position` is that of the last one yielded.

        Args:
            epochs: Passes over the loader in the whole run; None: no end.
            states: Generators as the checkpoint saw them, put back before the first batch.

        Raises:
            EmptyLoaderError: A whole pass gave nothing.
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
                    " gave no batch: is the data empty, or is it an iterator that was used up?"
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
    """The loader, its samplers and its data set: each once."""
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
    """What is to be told the number of the epoch, as torch's DistributedSampler."""
    return [part for part in _parts(loader) if callable(getattr(part, "set_epoch", None))]


def _generators(loader: Any) -> list[Any]:
    """The torch generators the order of the data is drawn from, each once."""
    found = [getattr(part, "generator", None) for part in _parts(loader)]
    return list({id(g): g for g in found if hasattr(g, "get_state")}.values())
