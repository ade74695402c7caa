"""The position of a run in its data: resume at the exact batch, across epochs, with quarantine.

Batches are numbered from 1 over the whole run, whether drawn *or skipped*, so a number means the
same data in every attempt. :mod:`babysit.loaders` passes over batches by the kind of the loader.

Random order is repeated by restoring the generators as of the start of the epoch. What a loader
draws besides (its data set's own generators, a sampler's, those of its workers) is restored or
seeded by the number of the batch. Not restored: other state of a data set, such as a counter; a
loader with `state_dict` and `load_state_dict` keeps that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from babysit import rng
from babysit.errors import EmptyLoaderError
from babysit.global_order import Reference, order_of
from babysit.loaders import (
    Ranges,
    Source,
    Spans,
    Thinning,
    keeps_place,
    limits_of,
    parts_of,
    source_of,
    sources_of,
)
from babysit.map_style import MapStyle
from babysit.reporter import Reporter

_END: Any = object()
_STREAM = "stream"
"""Key of the loader's own stream among the states of an epoch's start."""


@dataclasses.dataclass(slots=True)
class Position:
    """The position of a run in its data, saved with every checkpoint."""

    epoch: int = 0
    """Passes ended in the whole run: the number of the current one, for `set_epoch`."""
    offset: int = 0
    """Batches passed in this epoch, including skipped ones."""
    batch: int = 0
    """Batches passed in the whole run; the next batch has this number + 1."""
    epoch_states: dict[str, Any] | None = None
    """Random generators as of the start of the epoch; None: this call has not begun one."""
    loader_state: Any = None
    """The loader's own `state_dict()`; None: it has none."""
    seed: int | None = None
    """Seed of what workers draw; None: not chosen yet."""
    first_epoch: int = 0
    """The epoch with which this call of `steps()` began."""
    call: int = 0
    """Calls of `steps()` in the run before this one."""
    ended: bool = False
    """True if the loop of this call was over at the save."""
    source_states: list[Any] = dataclasses.field(default_factory=list)
    """States of the data set's own generators."""
    per_batch: int = 0
    """Samples that all ranks together drew in a batch; 0: not known."""
    base: int = 0
    """Samples of the epoch's global order that were drawn before `per_batch` last changed."""
    base_offset: int = 0
    """Batches of this epoch that those samples were drawn in."""
    reference: tuple[int, ...] = ()
    """The :class:`babysit.global_order.Reference` of the run; empty: not known."""
    before_epoch: int = 0
    """Number of the last batch before this epoch."""
    resized: str = ""
    """The warning of a changed number of ranks, for an epoch whose global order is not known."""

    def count_in(self, per_batch: int) -> None:
        """Go on in batches of another number of samples over all ranks."""
        if self.per_batch not in {0, per_batch}:
            self.base += (self.offset - self.base_offset) * self.per_batch
            self.base_offset = self.offset
        self.per_batch = per_batch

    def spans(self) -> Spans | None:
        """The numbers of the batches from here on; None: they count up by one."""
        if not self.reference or (not self.base and self.per_batch == self.reference[1]):
            return None
        reference, first = Reference(*self.reference), self.before_epoch
        begun = self.base + (self.offset - self.base_offset) * self.per_batch

        def span(index: int) -> tuple[int, int]:
            start = begun + index * self.per_batch
            low, high = reference.span(start, start + self.per_batch)
            return first + low, first + high

        return span


class Feed:
    """The batches of one call of `steps()` from a position on, across epochs."""

    def __init__(
        self,
        loader: Any,
        skip: Ranges = (),
        position: Position | None = None,
        *,
        beat: Callable[[], None] = lambda: None,
        before: Feed | None = None,
        apart: bool = False,
    ) -> None:
        self.position = position or Position()
        self.loader = loader
        self._skip = tuple(skip)
        # The same workers serve all calls with one loader.
        same = before is not None and before.loader is loader
        known = before.source if same and before else None
        self._source: Source = known or source_of(loader, beat, apart=apart)
        self._stateful = keeps_place(loader)
        self._global = order_of(loader) if isinstance(self._source, MapStyle) else None
        self._order, self._others = sources_of(loader)
        self._stream = rng.Stream({})
        self._last: Position | None = None
        self._begun_at = 0
        """Batches of the epoch that had passed when this pass over the loader began."""

    @property
    def source(self) -> Source:
        """The way in which the loader's batches are passed over."""
        return self._source

    def batches(self, epochs: int | None, states: dict[str, Any] | None = None) -> Iterator[Any]:
        """Yield batches, each an optimizer step; see :meth:`groups`."""
        return (batch for batch, _ in self.groups(epochs, states))

    def groups(
        self, epochs: int | None, states: dict[str, Any] | None = None, accumulate: int = 1
    ) -> Iterator[tuple[Any, bool]]:
        """Yield `(batch, complete)`; `position` is that of the last yielded one.

        Args:
            epochs: Passes over the loader in this call; None: unlimited.
            states: Generators as of the checkpoint, restored before the first batch; None: keep
                them.
            accumulate: Batches of an optimizer step. `complete` is true for its last one, or the
                last of the pass. To know the latter, batches within a step are drawn one ahead.

        Raises:
            EmptyLoaderError: A whole pass gave no batch.
        """
        resumed = self.position.epoch_states is not None
        while epochs is None or self.position.epoch - self.position.first_epoch < epochs:
            wanted = self._numbered(resumed=resumed)
            rest = self._begin(wanted, resumed=resumed)
            if resumed and states is not None:
                rng.apply(states)
            resumed = False
            yield from self._groups(rest, wanted, accumulate)
            self._advance_to(wanted.last, wanted.drawn)
            if self.position.offset == 0:
                raise EmptyLoaderError(
                    f"epoch {self.position.epoch} of the loader ({type(self.loader).__name__})"
                    " gave no batch: is the data empty, or is the loader an exhausted iterator?"
                )
            renumbered = self.position.spans() is not None
            passed = self.position.before_epoch + self.position.reference[2] if renumbered else 0
            passed = passed or self.position.batch
            self.position = dataclasses.replace(
                self.position,
                epoch=self.position.epoch + 1,
                batch=passed,
                before_epoch=passed,
                offset=0,
                base=0,
                base_offset=0,
            )

    def _groups(
        self, rest: Iterator[Any], wanted: Thinning, size: int
    ) -> Iterator[tuple[Any, bool]]:
        inside, batch = 0, next(rest, _END)
        while batch is not _END:
            inside += 1
            complete = inside == size
            following = _END
            if not complete:
                before = self._loader_state()
                following = next(rest, _END)
                complete = following is _END
                self._last = dataclasses.replace(self.position, loader_state=before)
            self._advance_to(*wanted.kept.popleft())
            yield batch, complete
            self._last = None
            if complete:
                inside = 0
                following = next(rest, _END)
            batch = following

    def warn_of_limits(self, reporter: Reporter) -> None:
        """Warn if a part of the loader does not come back bit for bit."""
        if self.position.resized and self._global is None:
            reporter.warn(self.position.resized)
        if limits := limits_of(self.loader):
            reporter.warn(f"a resumed run may draw other data: {limits}")

    def snapshot(self) -> Position:
        """The position to save: the next batch drawn is the one after it."""
        # A batch that was drawn ahead is not part of it.
        state = self._last.loader_state if self._last else self._loader_state()
        return dataclasses.replace(
            self.position,
            loader_state=state,
            resized="",
            source_states=[rng.state_of(source) for source in self._others],
        )

    def sources(self) -> list[Any]:
        """States of the generators of the loader, as after its last batch."""
        return [rng.state_of(source) for source in [*self._order, *self._others]]

    def set_sources(self, states: list[Any]) -> None:
        """Restore what :meth:`sources` returned."""
        for source, state in zip([*self._order, *self._others], states, strict=False):
            rng.set_state(source, state)

    def _loader_state(self) -> Any:
        try:
            return self.loader.state_dict() if self._stateful else None
        except (AttributeError, NotImplementedError):  # the methods are there, and no state is
            self._stateful = False
            return None

    def _numbered(self, *, resumed: bool) -> Thinning:
        """Decides on the batches of an epoch, from the position on."""
        position = self.position
        self._begun_at = position.offset
        if not resumed:
            position.before_epoch = position.batch
        if self._global is not None:
            position.count_in(self._global.per_batch)
            known = position.reference
            if not known or known[3] != self._global.samples:
                ranks = known[0] if known else self._global.ranks
                position.reference = tuple(self._global.reference(ranks))
        return Thinning(self._skip, position.batch, position.spans())

    def _begin(self, wanted: Thinning, *, resumed: bool) -> Iterator[Any]:
        position = self.position
        for target in epoch_aware(self.loader):
            target.set_epoch(position.epoch)
        if resumed and position.epoch_states is not None:
            self._replay(position.epoch_states)
        else:
            position.epoch_states = self._states()
        offset = position.offset
        if resumed and self._stateful and position.loader_state is not None:
            self.loader.load_state_dict(position.loader_state)
            offset = 0
        if self._global is not None and isinstance(self._source, MapStyle):
            dealt = self._global.batches(position.base) if position.base else None
            self._source.dealt, offset = dealt, offset - position.base_offset
        seed = position.seed or 0
        batches = self._source.start(offset, wanted, seed, self._stream)
        if resumed:
            for source, state in zip(self._others, position.source_states, strict=False):
                rng.set_state(source, state)
        return batches

    def _states(self) -> dict[str, Any]:
        """The generators at the start of an epoch."""
        states = rng.capture()
        position = self.position
        if position.seed is None:
            position.seed = rng.seed_from(rng.digest_of(states.get("torch", states["python"])))
        if self._source.own_stream and not self._stream.states:
            main = {name: state for name, state in states.items() if name != "cuda"}
            self._stream.states = rng.derived(main, position.call, position.batch)
        sources = [*self._order, *self._others]
        numbered = {f"generator {i}": rng.state_of(source) for i, source in enumerate(sources)}
        return states | {_STREAM: self._stream.states} | numbered

    def _replay(self, states: dict[str, Any]) -> None:
        rng.apply(states)
        self._stream.states = states.get(_STREAM) or rng.capture(gpu=False)
        for i, source in enumerate([*self._order, *self._others]):
            if (state := states.get(f"generator {i}")) is not None:
                rng.set_state(source, state)

    def _advance_to(self, number: int, drawn: int) -> None:
        self.position.offset = self._begun_at + drawn
        self.position.batch = number


def epoch_aware(loader: Any) -> list[Any]:
    """Parts with `set_epoch`, such as torch's DistributedSampler."""
    return [part for part in parts_of(loader) if callable(getattr(part, "set_epoch", None))]
