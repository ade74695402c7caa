"""Which ranks really live, of all attempts of all runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.commands import StartAttempt
from orchestrator.fuzz.environment import Environment
from orchestrator.fuzz.training import Gang, Host, Job, Share


class Gangs:
    """The gangs of all attempts of all runs, whether they live or not.

    Args:
        environment: What they stand on.
        jobs: What each run really is.
        on_start: Called as ranks begin to live: with their run, their attempt, and the ranks of
            other attempts of the run that are alive, as (attempt, worker).
    """

    def __init__(
        self,
        environment: Environment,
        jobs: Mapping[str, Job],
        on_start: Callable[[str, int, list[tuple[int, str]]], None],
    ) -> None:
        self._environment, self._jobs, self._on_start = environment, jobs, on_start
        self._gangs: dict[tuple[str, int], Gang] = {}

    def start(self, agent: Host, run: str, command: StartAttempt) -> Share:
        """An agent starts its ranks, the first of their attempt or not."""
        key = run, command.attempt
        if key not in self._gangs:
            self._gangs[key] = Gang(self._environment, self._jobs[run], command)
        share = Share(agent, self._gangs[key], command.ranks)
        share.gang.shares.append(share)
        others = [each for each in self._alive(run) if each[0] != command.attempt]
        self._on_start(run, command.attempt, others)
        return share

    def training(self) -> list[Gang]:
        """Gangs that train, or hang."""
        return [gang for gang in self._gangs.values() if gang.whole and not gang.broken]

    def _alive(self, run: str) -> list[tuple[int, str]]:
        return sorted(
            (gang.attempt, share.agent.worker)
            for gang in self._gangs.values()
            if gang.job.run == run
            for share in gang.shares
            if share.alive
        )
