"""A loader whose place in the data belongs to the run, for loops that `run.steps()` does not make.

A framework draws from its loader itself: it counts epochs, asks for `state_dict()`, resumes. Inside
is the feed of `run.steps()`, so a pass goes on at the exact batch, quarantined batches are passed
over, and every draw is a sign of life. Two ways lead to the place:

* a script's own loop: `run.restore(state)` restores it. Passes that had ended before the checkpoint
  give nothing, as calls of `run.steps()` do, and `run.epochs(n)` leaves them out;
* a framework that saves and loads the loader's `state_dict()`: its next pass goes on from there,
  and the framework counts the epochs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from babysit import rng
from babysit.calls import numbers_of
from babysit.checkpoint import position as positions
from babysit.data import Feed, Position
from babysit.errors import EmptyLoaderError, StateMismatchError
from babysit.wire import Note, Phase

if TYPE_CHECKING:
    from babysit.run import Run

Batch = TypeVar("Batch")

_END: Any = object()
_KEY = "babysit"


class Loader(Generic[Batch]):
    """Draws from a loader, and keeps its place; all other attributes are those of the loader.

    Not thread-safe, and passes do not overlap. `set_epoch` changes nothing: the epoch is part of
    the place.
    """

    def __init__(
        self, run: Run, loader: Iterable[Batch], *, framework: bool = False, joins: bool = False
    ) -> None:
        """Wrap a loader; see :meth:`babysit.run.Run.loader`.

        Args:
            run: The run.
            loader: Any iterable of batches.
            framework: A framework counts the epochs: the first pass goes on from the place that
                `run.restore()` has restored.
            joins: A pass goes on with what the one before it has left, or what is left at the
                place, and if that is nothing, it is a new one.
        """
        self.loader = loader
        self._run = run
        self._place: Position | None = None
        """Where the next pass begins, if a framework counts the epochs."""
        self._framework, self._joins = framework, joins
        self._feed: Feed | None = None
        self._rest: Iterator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._joins:
            return self._joined()
        numbers = numbers_of(sys._getframe(1).f_locals)  # noqa: SLF001  # the script's loop
        self._rest = self.draw(numbers)
        return self._rest

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # raises TypeError as the loader does

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the place has the epoch."""

    def start_at(self, epoch: int, offset: int, *, batch: int) -> None:
        """Begin after this many batches of an epoch, unless a place has been restored.

        The order is the same as it was only if it follows from the number of the epoch.
        """
        place = Position(epoch=epoch, offset=offset, batch=batch, before_epoch=batch - offset)
        if offset:
            place.epoch_states = rng.capture()
        self._place = self._place or place

    def leave(self) -> None:
        """End the pass: the next one begins a new epoch."""
        self._rest = None

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was drawn, as plain values.

        Raises:
            StateMismatchError: The loader's own state has a value that cannot be saved.
        """
        run = self._run
        place = self._feed.snapshot() if self._feed else self._place or Position()
        saved = positions.dumps({"position": place, "rank": run.rank, "ranks": run.world_size})
        return {_KEY: saved.decode()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place with the next pass; from then on the framework counts the epochs.

        Raises:
            StateMismatchError: It is not the state of such a loader.
        """
        try:
            saved = positions.loads(state[_KEY].encode())
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StateMismatchError(
                f"this is not the state of a run.loader(): {error!r}. Was the checkpoint saved"
                " without it?"
            ) from error
        place: Position = saved["position"]
        if saved["rank"] != self._run.rank and place.seed is not None:
            # Most frameworks save rank 0's alone; workers of other ranks draw other numbers.
            place.seed = rng.seed_from(place.seed, self._run.rank)
        self._place, self._framework = place, True
        self._feed = self._rest = None
        self._run.batch = place.batch

    def _joined(self) -> Iterator[Batch]:
        """The rest of the pass before, or a new pass if nothing of it is left."""
        for _ in range(3):  # left by the framework; restored at its end; new
            self._rest = rest = self.draw({}) if self._rest is None else self._rest
            batch = next(rest, _END)
            if batch is not _END:
                yield batch
                yield from rest
                return
            self._rest = None

    def draw(self, numbers: dict[str, int]) -> Iterator[Batch]:
        """One pass over the loader, or the rest of one.

        `numbers` are local variables of the script's loop; see :func:`babysit.calls.numbers_of`.
        """
        run, before = self._run, self._feed
        position, states = self._begin(numbers)
        if position is None:
            run._calls.pass_over(run._reporter)  # noqa: SLF001  # a part of Run
            return
        feed = Feed(
            self.loader,
            run.plan.skip_batches,
            position,
            beat=run._beat,  # noqa: SLF001
            before=before,
            apart=self._framework,
        )
        self._feed = run._feed = feed  # noqa: SLF001
        feed.warn_of_limits(run._reporter)  # noqa: SLF001
        if before is None:
            run._reporter.note(Note.LOOPING, step=run.step)  # noqa: SLF001
        try:
            yield from _draw(run, feed, states)
        except EmptyLoaderError:
            if not self._framework:  # frameworks have their own word for it
                raise
        finally:
            self._end(feed)

    def _begin(self, numbers: dict[str, int]) -> tuple[Position | None, dict[str, Any] | None]:
        """Where the pass begins, and generators to restore before its first batch."""
        run = self._run
        if not self._framework:
            return run._calls.begin(self.loader, run.batch, numbers)  # noqa: SLF001
        if self._feed is not None:
            place = _after(self._feed.position)
        else:
            place = self._place or run._calls.take() or Position(batch=run.batch)  # noqa: SLF001
        self._place = None
        place.first_epoch = place.epoch
        # The order is drawn again; what the framework has restored of the generators must stay.
        return place, rng.capture() if place.epoch_states is not None else None

    def _end(self, feed: Feed) -> None:
        run = self._run
        if not self._framework:
            run._calls.end(feed)  # noqa: SLF001
        elif not feed.position.offset:  # it came to its end: the next pass draws a new order
            feed.position = dataclasses.replace(feed.position, epoch_states=None)


def _after(position: Position) -> Position:
    """The place at which the pass after this one begins."""
    left = position.offset > 0
    return dataclasses.replace(
        position,
        epoch=position.epoch + left,
        offset=0,
        epoch_states=None,
        loader_state=None,
        source_states=[],
        before_epoch=position.batch,
        base=0,
        base_offset=0,
    )


def _draw(run: Run, feed: Feed, states: dict[str, Any] | None) -> Iterator[Any]:
    groups = feed.groups(1, states)
    while True:
        run._enter(Phase.LOADING)  # noqa: SLF001  # a part of Run
        batch, _ = next(groups, (_END, True))
        if batch is _END:
            break
        run.batch = feed.position.batch
        run._enter(Phase.TRAINING)  # noqa: SLF001
        yield batch
    run._enter(Phase.TRAINING)  # noqa: SLF001
