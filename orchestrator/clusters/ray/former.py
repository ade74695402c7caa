"""Workers of a Ray cluster that was started anew, and has forgotten them; see :mod:`.identity`."""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.clusters.ray import ends, names
from orchestrator.clusters.ray.facts import Store, Tell


class Former:
    """Finds workers of which the cluster has no key since it was started anew."""

    def __init__(self, store: Store, tell: Tell, clock: Clock) -> None:
        self._store, self._tell, self._clock = store, tell, clock
        self._over_at: float | None = None

    def begin(self, seconds: float | None) -> None:
        """Set how long workers of the former cluster may be alive; None: there was none."""
        self._over_at = None if seconds is None else self._clock.monotonic() + seconds

    def may_start(self, worker: str, run: str) -> bool:
        """True if no agent of the worker can be alive in the former cluster.

        The answer to its first launch may have been lost with the former control store.
        """
        return self._is_over() or self._known(worker, run)

    def may_live(self, worker: str, run: str) -> bool | None:
        """True if it is of the former cluster, and may be alive; None: it is of this one.

        Reports a worker that is over as gone, and returns False.
        """
        if self._over_at is None or self._known(worker, run):
            return None
        # No launch of it that comes late starts anything here.
        self._store.put(names.key(run, worker, names.CLAIM), names.STOPPED)
        if not self._is_over():
            return True
        how = self._store.put(names.key(run, worker, names.END), ends.FORGOTTEN)
        self._tell("gone", worker, run, how)
        return False

    def _is_over(self) -> bool:
        return self._over_at is None or self._clock.monotonic() >= self._over_at

    def _known(self, worker: str, run: str) -> bool:
        """True if this cluster has an order of the worker, or how it ended."""
        return any(
            self._store.get(names.key(run, worker, what)) is not None
            for what in (names.LAUNCH, names.END)
        )
