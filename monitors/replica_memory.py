"""Knowledge about the replicas of a run that outlives the control plane, and the case of a replay.

All of it is pure data, kept with the run as a part of what its monitors have learned.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

RECENT = 16
"""Agreements that are kept with a set of replicas, the newest: a replay is compared with them."""


def _ranges(ranks: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted ranks as inclusive ranges: thousands of ranks are one or two."""
    runs = itertools.groupby(enumerate(sorted(ranks)), key=lambda each: each[1] - each[0])
    blocks = ([rank for _, rank in block] for _, block in runs)
    return [(block[0], block[-1]) for block in blocks]


def _listed(value: object) -> object:
    """Ranks from inclusive ranges; ranks stay as they are."""
    if isinstance(value, list) and all(isinstance(each, list) for each in value):
        return frozenset(rank for first, last in value for rank in range(first, last + 1))
    return value


Ranks = Annotated[
    frozenset[int], BeforeValidator(_listed), PlainSerializer(_ranges, when_used="json")
]


class Value(BaseModel):
    """A digest that all replicas of a part had."""

    model_config = ConfigDict(frozen=True)

    step: int
    batch: int
    digest: str


class Replicas(BaseModel):
    """Ranks that must agree on a part of their state."""

    model_config = ConfigDict(frozen=True)

    part: str
    """The key of its digests; see :class:`jobs.events.RankFingerprint`."""
    ranks: Ranks
    agreed: tuple[Value, ...] = ()
    """The last agreements, the newest last."""

    def after(self, value: Value) -> Replicas:
        """With one more agreement."""
        return self.model_copy(update={"agreed": (*self.agreed, value)[-RECENT:]})

    def undone(self, step: int) -> Replicas:
        """After a rollback to `step`: later agreements say nothing of what is computed next.

        An agreement after `step` says as much of the state at that step.
        """
        earlier = tuple(each for each in self.agreed if each.step <= step)
        if len(earlier) < len(self.agreed) and (not earlier or earlier[-1].step < step):
            earlier = (*earlier, Value(step=step, batch=0, digest=""))
        return self.model_copy(update={"agreed": earlier})


class Split(BaseModel):
    """A disagreement about a part: rank → digest, by digest."""

    model_config = ConfigDict(frozen=True)

    part: str
    digests: dict[str, Ranks]
    before: tuple[Value, ...] = ()
    """The last agreements of these replicas."""

    @classmethod
    def of(cls, replicas: Replicas, seen: Mapping[int, str]) -> Split:
        """The disagreement among replicas."""
        by_digest = {
            digest: frozenset(rank for rank in seen if seen[rank] == digest)
            for digest in sorted(set(seen.values()))
        }
        return cls(part=replicas.part, digests=by_digest, before=replicas.agreed)

    @property
    def size(self) -> int:
        """Number of replicas that were compared."""
        return sum(map(len, self.digests.values()))

    @property
    def is_diverged(self) -> bool:
        """True if three replicas or more all differ: no machine fails like that."""
        return len(self.digests) == self.size > 2

    @property
    def odd(self) -> frozenset[int]:
        """The ranks outside the majority; empty: there is none."""
        largest = max(self.digests.values(), key=len)
        if 2 * len(largest) <= self.size:
            return frozenset()
        return frozenset(rank for ranks in self.digests.values() for rank in ranks - largest)


class Outcome(StrEnum):
    """Outcomes of the replay of a suspicious step."""

    HARDWARE = "hardware"  # another value came out: a machine had computed wrongly
    SCRIPT = "script"  # the same ranks differ again, in the same way
    DATA = "data or optimisation"  # the same value came out: no machine is at fault
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a replay, and the ranks that had computed wrongly."""

    outcome: Outcome
    why: str
    """A clause for people."""
    ranks: tuple[int, ...] = ()


class Case(BaseModel):
    """A disagreement whose steps are about to be computed again."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    step: int
    batch: int
    onset_step: int
    splits: tuple[Split, ...]
    same: int = 0
    """Digests of earlier steps that came back bit for bit."""
    different: int = 0
    again: tuple[Split, ...] = ()
    """The parts at the step itself, as they came back."""

    def compared(self, now: Split, step: int, batch: int) -> Case:
        """With replicas of a part that were compared again; their ranks may agree this time."""
        mine = next((each for each in self.splits if each.part == now.part), None)
        if mine is None or step > self.step:
            return self
        if step == self.step:
            same_batch = batch == self.batch
            return self.model_copy(update={"again": (*self.again, now)}) if same_batch else self
        before = next((v for v in mine.before if v.step == step and v.batch == batch), None)
        if before is None or not before.digest:
            return self
        came_back = set(now.digests) == {before.digest}
        counted = "same" if came_back else "different"
        return self.model_copy(update={counted: getattr(self, counted) + 1})

    def verdict(self) -> Verdict:
        """The outcome of the replay. Equal bits by chance have a probability of 2**-64."""
        if not self.again:
            why = f"step {self.step} was not computed again with the same batch and a fingerprint"
            return Verdict(Outcome.UNKNOWN, why)
        then = {each.part: each.digests for each in self.splits}
        if any(len(now.digests) > 1 and now.digests == then[now.part] for now in self.again):
            why = "the same ranks differ again, with the same values: the script does it"
            return Verdict(Outcome.SCRIPT, why)
        wrong: set[int] = set()
        for now in self.again:
            right = set(now.digests) & set(then[now.part]) if len(now.digests) == 1 else set()
            for digest, ranks in then[now.part].items() if right else ():
                wrong |= ranks if digest not in right else set()
        if wrong:
            why = "the others' values came back bit for bit, and theirs did not"
            return Verdict(Outcome.HARDWARE, why, tuple(sorted(wrong)))
        if self.different or not self.same:
            why = "none of the values came back, and the script has not shown that it repeats its"
            return Verdict(Outcome.UNKNOWN, f"{why} steps bit for bit")
        if any(len(now.digests) > 1 for now in self.again):
            return Verdict(Outcome.UNKNOWN, "the replicas differ again, in another way")
        # The odd one may have reached the others by a reduction before the step was compared.
        odd = tuple(sorted(frozenset().union(*(each.odd for each in self.splits))))
        why = "the steps before came back bit for bit, and the disagreement did not"
        return Verdict(Outcome.HARDWARE, why if odd else f"{why}; whose it was is not known", odd)


class ReplicaMemory(BaseModel):
    """The knowledge of the replicas of a run."""

    model_config = ConfigDict(frozen=True)

    world_size: int = 0
    attempt: int = 0
    accused: bool = False
    """The attempt was accused already."""
    replicas: tuple[Replicas, ...] = ()
    case: Case | None = None
    excluded: tuple[str, ...] = ()
    """Parts in which the script itself makes replicas differ: they are not compared again."""
