"""The steps of a spike, computed again: is a machine at fault, or data and optimisation?

The problem: a loss that jumps may come of its batches and weights, or of a machine that computed
wrongly. The first answer to a spike is a rollback without skipping, so the same batches come again.

The design: a script that restores all of its state repeats its losses bit for bit. If they come
back so up to the spike, no machine is at fault. If they come back so for some steps, and then do
not, one of the two computations was wrong; where one rank of three or more differs in that step, it
is named, since losses of a step are computed from weights that all ranks share.

Limits: the verdict goes into the incident, and nobody acts on it. A script that repeats its steps
only for a while by itself looks like a machine that failed. Losses alone tell; steps whose batches
are skipped are not compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Mapping

from monitors.replica_findings import Place, computed_again
from monitors.replica_memory import Outcome, Verdict
from monitors.types import Finding, FindingKind, Sample

FEWEST = 8
"""Steps that come back bit for bit, from which on a script is taken to repeat its steps. The first
few may agree by chance: DistributedDataParallel sums in another order from its second step on."""
_RANKS, _STEPS = 8, 1024
"""Ranks, and steps of each, of which losses are kept."""
SPIKES = frozenset({FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE})
"""Kinds of findings whose steps are compared with those that are computed again."""
_Losses = Mapping[int, Mapping[int, tuple[int, float]]]
"""Batch and loss by rank and step."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Case:
    """A spike whose steps are about to be computed again."""

    spike: Finding
    before: _Losses


class LossReplay:
    """Compares the losses of two attempts up to a spike."""

    def __init__(self) -> None:
        self._kept: dict[int, deque[tuple[int, int, float]]] = {}
        """Step, batch and loss by rank, of this attempt."""
        self._spike: Finding | None = None
        self._case: _Case | None = None

    def restart(self, step: int) -> None:
        """A new attempt resumed after `step`."""
        spike, self._spike, self._case = self._spike, None, None
        if spike is not None and step < spike.onset_step:
            self._case = _Case(spike, _by_step(self._kept))
        self._kept = {}

    def found(self, findings: Iterable[Finding]) -> None:
        """Take findings about the losses of this attempt: the first spike counts."""
        if self._spike is None:
            self._spike = next((each for each in findings if each.kind in SPIKES), None)

    def observe(self, sample: Sample) -> list[Finding]:
        """Take a sample of any rank; the verdict, once the lowest one is where the spike was."""
        if sample.loss is None:
            return []
        if sample.rank not in self._kept and len(self._kept) >= _RANKS:
            return []
        kept = self._kept.setdefault(sample.rank, deque(maxlen=_STEPS))
        kept.append((sample.step, sample.batch, sample.loss))
        case = self._case
        if case is None or sample.step < case.spike.detected_step or sample.rank != min(self._kept):
            return []
        self._case = None
        place = Place(sample.attempt, sample.step, sample.batch, sample.time)
        verdict = _verdict(case.before, _by_step(self._kept), case.spike.detected_step)
        return [computed_again(case.spike, verdict, place)] if verdict is not None else []


def _by_step(kept: Mapping[int, Iterable[tuple[int, int, float]]]) -> _Losses:
    return {
        rank: {step: (batch, loss) for step, batch, loss in steps} for rank, steps in kept.items()
    }


def _verdict(before: _Losses, now: _Losses, last: int) -> Verdict | None:
    """The verdict of two computations of the same steps; None: they share no step."""
    same = newest = 0
    for step in sorted({step for steps in now.values() for step in steps if step <= last}):
        pairs = {
            rank: (before[rank][step], steps[step])
            for rank, steps in now.items()
            if step in steps and step in before.get(rank, {})
        }
        if any(old[0] != new[0] for old, new in pairs.values()):
            return None  # other batches
        odd = sorted(rank for rank, (old, new) in pairs.items() if not _is_same(old[1], new[1]))
        if odd:
            return _of_difference(step, same, odd, len(pairs))
        if pairs:
            same, newest = same + 1, step
    if not same:
        return None
    if same < FEWEST:
        return Verdict(Outcome.UNKNOWN, f"only {same} steps could be compared")
    if newest < last:  # a sample of the spike is lost, or the script reports other steps
        why = f"the losses of {same} steps came back bit for bit; that of the spike is not known"
        return Verdict(Outcome.UNKNOWN, why)
    why = f"the losses of {same} steps came back bit for bit, the spike too"
    return Verdict(Outcome.DATA, why)


def _of_difference(step: int, same: int, odd: list[int], compared: int) -> Verdict:
    if same < FEWEST:
        why = "the losses did not come back bit for bit, so the two computations say nothing"
        return Verdict(Outcome.UNKNOWN, why)
    why = f"the losses of {same} steps came back bit for bit, that of step {step} did not"
    named = (odd[0],) if len(odd) == 1 and compared > 2 else ()
    return Verdict(Outcome.HARDWARE, why, ranks=named)


def _is_same(old: float, new: float) -> bool:
    return old == new or (math.isnan(old) and math.isnan(new))
