"""Lightning's training data, drawn through the run: exact inside an epoch, quarantine obeyed.

Lightning begins an epoch again after a restart, unless its loader has a state of its own. So once
it has prepared its loader (with a distributed sampler, say), that loader is put into one of
babysit's. Lightning counts the batches of an epoch; those that are passed over are added there.
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

from babysit import rng
from babysit.data import Feed, Position
from babysit.run import Run
from babysit.run_loader import Loader, _after

_END: Any = object()
_RESUMES = "You're resuming from a checkpoint that ended before the epoch ended"
"""Lightning's warning about a loader that it saw before it was wrapped."""


class TrainingData:
    """The data of one `trainer.fit()`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loader: _EpochLoader | None = None
        self._states: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Keep Lightning from a warning that would be wrong here."""
        warnings.filterwarnings("ignore", message=_RESUMES)

    def begin(self, trainer: Any) -> None:
        """Before the first batch: replace the loader, and have Lightning begin with it anew."""
        run, fit = self._run, trainer.fit_loop
        combined, fetcher = fit._combined_loader, fit._data_fetcher  # noqa: SLF001
        if len(combined.flattened) != 1 or not hasattr(fetcher, "fetched"):
            run._reporter.warn(  # noqa: SLF001
                f"Lightning draws from {len(combined.flattened)} loaders here: after a restart each"
                " begins its epoch again, and quarantined batches are not passed over"
            )
            return
        if isinstance(combined.flattened[0], Loader):  # the script's own `run.loader(…)`
            return
        resumed = run._calls.take()  # noqa: SLF001
        place = resumed or Position(batch=run.batch, epoch=trainer.current_epoch)
        self._loader = _EpochLoader(run, combined.flattened[0], place, _Counted(fit))
        if resumed is not None:
            self._loader.states = run._calls._states  # noqa: SLF001
            passed = fit.epoch_loop.batch_progress.current.ready
            if place.offset and not 0 < passed < fit.max_batches:
                self._loader.begin_epoch()
        combined.reset()
        combined.flattened = [self._loader]
        iter(fetcher)

    def batch(self) -> None:
        """Lightning trains with the next batch, which it may have drawn earlier."""
        if self._loader is not None:
            self._loader.use()


class _Counted:
    """Adds batches that were passed over to Lightning's counts of an epoch."""

    def __init__(self, fit: Any) -> None:
        self._fit = fit

    def __call__(self, batches: int) -> None:
        self._fit._data_fetcher.fetched += batches  # noqa: SLF001
        progress = self._fit.epoch_loop.batch_progress
        for counts in (progress.current, progress.total):
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + batches)


class _EpochLoader:
    """A loader of the run, from which Lightning may draw a batch ahead.

    It hides `state_dict`: Lightning would look for that state before this loader is there.
    """

    def __init__(
        self, run: Run, loader: Any, place: Position, passed_over: Callable[[int], None]
    ) -> None:
        self.loader: Loader[Any] = Loader(run, loader, framework=True)
        self.loader._place = self._place = place  # noqa: SLF001
        self._run = run
        self._passed_over = passed_over
        self._drawn: deque[tuple[int, Position | None]] = deque()
        """Number of each batch that is not used yet, and the place after it."""
        self._rest: Iterator[Any] | None = None
        self._length = _length(loader)
        self.states: dict[str, Any] | None = None
        """Generators as of the checkpoint, to be restored before the first batch."""

    def __iter__(self) -> Iterator[Any]:
        if self._rest is not None and self._is_over(self._feed.position):
            next(self._rest, None)  # it only counts what is passed over at the end of the epoch
        self._rest = iter(self.loader)
        return self._counting(self._rest)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name in {"loader", "state_dict", "load_state_dict"}:
            raise AttributeError(name)
        return getattr(self.loader, name)

    def begin_epoch(self) -> None:
        """Leave what is left of the restored epoch: `limit_train_batches` has ended it."""
        if self._length is not None and not self._is_over(self._place):
            self.loader._place = _after(self._place)  # noqa: SLF001

    def use(self) -> None:
        """Take the oldest of the drawn batches as the one that is trained on."""
        if not self._drawn:
            return
        self._run.batch, used = self._drawn.popleft()
        if used is not None:  # the place of the newest one is one too far
            self._run._feed = cast("Feed", _Used(used))  # noqa: SLF001

    @property
    def _feed(self) -> Feed:
        return cast("Feed", self.loader._feed)  # noqa: SLF001

    def _counting(self, rest: Iterator[Any]) -> Iterator[Any]:
        if self.states is not None:
            rng.apply(self.states)
            self.states = None
            first = next(rest, _END)
            # Lightning asks for a batch, so the checkpoint was that of an epoch's end.
            rest = iter(self.loader) if first is _END else itertools.chain([first], rest)
        passed = None
        for batch in rest:
            feed = self._feed
            place = feed.position
            before = feed._begun_at if passed is None else passed  # noqa: SLF001
            passed = place.offset
            missing = passed - before - 1 + self._skipped_after(place)
            if missing > 0:
                self._passed_over(missing)
            ahead = None if self._length is not None else feed.snapshot()
            self._drawn.append((place.batch, ahead))
            yield batch

    def _is_over(self, place: Position) -> bool:
        """True if no batch of the epoch is left, or only some that are passed over."""
        return self._length is not None and place.offset + self._skipped_after(place) >= (
            self._length
        )

    def _skipped_after(self, place: Position) -> int:
        """Batches up to the end of the epoch, if all of them are passed over; otherwise 0."""
        left = (self._length or 0) - place.offset
        if left <= 0 or place.spans() is not None:
            return 0
        skipped = self._run.plan.skip_batches
        numbers = range(place.batch + 1, place.batch + left + 1)
        return left if all(any(a <= n <= b for a, b in skipped) for n in numbers) else 0


class _Used:
    """A feed, as a save sees it: the place after the batch that is trained on."""

    def __init__(self, place: Position) -> None:
        self._place = place

    def snapshot(self) -> Position:
        """The place to save."""
        return self._place


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
