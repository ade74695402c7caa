"""Silent data corruption: replicas whose bits differ, and which of them is wrong.

The problem: a machine that computes wrongly raises no error, and the loss may not show it for days.
Data-parallel ranks hold the same weights bit for bit, so one that differs has been corrupted. But
ranks of a pipeline, of experts or of shards differ by design, and nobody says which ranks share
what.

The design: ranks are learned to be replicas of one another by their own digests: those that agreed
twice, over two different values. From then on they must agree. A majority names the odd ranks;
without one all are suspects. The run goes back to before the first disagreement, and the steps that
it computes again settle the case: a value that comes back was right, and its rank computed well; a
disagreement that comes back in the same ranks is the script's.

Limits: only what is done to a replica after a reduction shows here; a gradient that is corrupted
before it is reduced reaches all ranks alike. A rank that differs from its first fingerprint on is
never learned as a replica. Replicas that all differ at once are a script that has stopped sharing
its weights (local SGD after a warm-up), and are not compared again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from monitors.replica_findings import Place, accusation, diverged, replayed
from monitors.replica_memory import Case, Outcome, ReplicaMemory, Replicas, Split, Value
from monitors.types import Finding, Fingerprint

AGREEMENTS = 2
"""Agreements over different values after which ranks are replicas. One may be a coincidence: the
state of an optimizer begins with zeros on every rank."""
MOST_STEPS = 64
"""Steps of a part that wait for ranks; the oldest is then compared without those."""


class ReplicaMonitor:
    """Compares the fingerprints of one run. Memory is bounded for each rank.

    All that must outlive the control plane is in :attr:`memory`; ranks that are not known to be
    replicas yet are learned anew.
    """

    def __init__(self, known: ReplicaMemory | None = None) -> None:
        known = known or ReplicaMemory()
        self._world_size = known.world_size
        self._replicas = list(known.replicas)
        self._case = known.case
        self._excluded = list(known.excluded)
        self._candidates: dict[str, list[_Candidate]] = {}
        self._open: dict[str, dict[int, dict[int, Fingerprint]]] = {}
        """Part → step → rank → what it said; not compared yet."""
        self._closed: dict[str, int] = {}
        """Part → newest step that was compared."""
        self._newest: dict[int, int] = {}
        """Rank → its newest step."""
        self._reporters: dict[str, set[int]] = {}
        """Part → ranks that have it."""
        self._attempt = known.attempt
        self._start_step = 0
        self._accused = known.accused
        """True once the attempt was accused: its replicas differ from then on."""

    @property
    def memory(self) -> ReplicaMemory:
        """Replicas with their last agreements, and the case that a replay is to settle."""
        return ReplicaMemory(
            world_size=self._world_size,
            attempt=self._attempt,
            accused=self._accused,
            replicas=tuple(self._replicas),
            case=self._case,
            excluded=tuple(self._excluded),
        )

    def restart(self, attempt: int, step: int) -> None:
        """A new attempt goes on after `step`; what agreed later is undone.

        Does nothing if the memory is of this attempt.
        """
        if attempt == self._attempt:
            return
        self._attempt, self._start_step, self._accused = attempt, step, False
        for each in (self._open, self._closed, self._newest, self._reporters, self._candidates):
            each.clear()
        self._replicas = [each.undone(step) for each in self._replicas]
        if self._case is not None and step >= self._case.step:
            self._case = None  # its steps are not computed again

    def observe(self, fingerprints: Iterable[Fingerprint]) -> list[Finding]:
        """Take fingerprints of the current attempt, each rank's in order of steps."""
        findings: list[Finding] = []
        for one in fingerprints:
            if one.world_size != self._world_size:  # other ranks share other things
                self._world_size, self._replicas, self._case = one.world_size, [], None
                self._candidates.clear()
                self._excluded.clear()
            self._newest[one.rank] = max(one.step, self._newest.get(one.rank, -1))
            parts = [part for part in one.parts if part not in self._excluded]
            for part in parts:
                steps = self._open.setdefault(part, {})
                if one.step > self._closed.get(part, -1):
                    steps.setdefault(one.step, {})[one.rank] = one
                self._reporters.setdefault(part, set()).add(one.rank)
            findings += self._compare(parts)
        return findings

    def _compare(self, parts: Iterable[str]) -> list[Finding]:
        """Compare the steps that are complete, the parts of one step together."""
        ready: dict[int, dict[str, dict[int, Fingerprint]]] = {}
        for part in parts:
            steps = self._open[part]
            for step in sorted(steps):
                if not self._is_complete(part, step):
                    break
                ready.setdefault(step, {})[part] = steps.pop(step)
                self._closed[part] = step
        return [found for step in sorted(ready) for found in self._judge(step, ready[step])]

    def _is_complete(self, part: str, step: int) -> bool:
        """True if all replicas have come, or none that is missing will."""
        steps = self._open[part]
        if len(steps) > MOST_STEPS:
            return True
        known = [each.ranks for each in self._replicas if each.part == part]
        reporters = self._reporters[part].union(*known)
        missing = reporters - steps[step].keys()
        if any(self._newest.get(rank, -1) <= step for rank in missing):
            return False
        # The others may have passed over this step: their interval is longer.
        return bool(known) or (
            len(self._newest) >= self._world_size and min(self._newest.values()) >= step
        )

    def _judge(self, step: int, parts: Mapping[str, Mapping[int, Fingerprint]]) -> list[Finding]:
        """Compare one step, learn from it, and say what is wrong."""
        everyone = [one for by_rank in parts.values() for one in by_rank.values()]
        place = Place(
            attempt=self._attempt,
            step=step,
            batch=max(one.batch for one in everyone),
            time=max(one.time for one in everyone),
        )
        splits: list[Split] = []
        for part, by_rank in parts.items():
            digests = {rank: one.parts[part] for rank, one in by_rank.items()}
            splits += self._compare_known(place, part, digests)
            self._learn(place, part, digests)
        settled = self._settle(place, splits)
        return [settled] if settled else self._accuse(place, splits)

    def _compare_known(self, place: Place, part: str, digests: Mapping[int, str]) -> list[Split]:
        """The disagreements among known replicas; agreements are remembered."""
        splits = []
        for place_in_list, each in enumerate(self._replicas):
            seen = {rank: digests[rank] for rank in each.ranks if rank in digests}
            if each.part != part or len(seen) < len(each.ranks):
                continue
            now = Split.of(each, seen)
            if self._case is not None:
                self._case = self._case.compared(now, place.step, place.batch)
            if len(now.digests) > 1:
                splits.append(now)
            else:
                value = Value(step=place.step, batch=place.batch, digest=next(iter(now.digests)))
                self._replicas[place_in_list] = each.after(value)
        return splits

    def _learn(self, place: Place, part: str, digests: Mapping[int, str]) -> None:
        """Find new replicas, and ranks that join known ones: their first reports came late."""
        known = [each for each in self._replicas if each.part == part]
        groups: dict[str, set[int]] = {}
        for rank, digest in digests.items():
            groups.setdefault(digest, set()).add(rank)
        before = self._candidates.get(part) or [_Candidate(frozenset(digests), "", 0)]
        now = [
            _Candidate(frozenset(both), digest, old.agreements + (digest != old.digest))
            for digest, ranks in groups.items()
            for old in before
            if len(both := old.ranks & ranks) > 1 and not any(both <= k.ranks for k in known)
        ]
        self._candidates[part] = [each for each in now if each.agreements < AGREEMENTS]
        for each in now:
            if each.agreements >= AGREEMENTS:
                value = Value(step=place.step, batch=place.batch, digest=each.digest)
                joined = [k for k in known if k.ranks < each.ranks]
                self._replicas = [k for k in self._replicas if k not in joined]
                self._replicas.append(Replicas(part=part, ranks=each.ranks, agreed=(value,)))

    def _settle(self, place: Place, splits: Sequence[Split]) -> Finding | None:
        """The outcome of the replay of a disagreement, once its step has come again."""
        case = self._case
        if case is None or place.step < case.step or case.attempt == self._attempt:
            return None
        verdict, self._case = case.verdict(), None
        if verdict.outcome is Outcome.SCRIPT:
            self._forget(splits)
        elif splits:  # something new: it is accused as any other
            return None
        return replayed(case, verdict, place)

    def _accuse(self, place: Place, splits: Sequence[Split]) -> list[Finding]:
        """Report a disagreement, once in an attempt."""
        gone = [each for each in splits if each.is_diverged]
        self._forget(gone)
        real = [each for each in splits if not each.is_diverged]
        if self._accused or not splits:
            return []
        if not real:
            return [diverged(place, gone)]
        self._accused = True
        agreed = min(each.before[-1].step if each.before else -1 for each in real)
        agreed = agreed if agreed >= 0 else self._start_step
        self._case = Case(
            attempt=self._attempt,
            step=place.step,
            batch=place.batch,
            onset_step=agreed + 1,
            splits=tuple(real),
        )
        return [accusation(place, agreed, real)]

    def _forget(self, splits: Iterable[Split]) -> None:
        """The script itself makes the replicas of these parts differ."""
        gone = {each.part for each in splits}
        self._excluded += sorted(gone)
        self._replicas = [each for each in self._replicas if each.part not in gone]


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """Ranks that agreed whenever they were compared."""

    ranks: frozenset[int]
    digest: str
    agreements: int
    """Different values over which they agreed."""
