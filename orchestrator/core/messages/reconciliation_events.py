"""Events about agents that know more than the database: it is older than what they run.

A restore of a backup, and a failover that loses the last second, take transactions back. The agents
have gone on with what those had decided.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from jobs.events import Event


class AgentAhead(Event):
    """The hello of an agent, which may know more than the database has."""

    kind: Literal["agent_ahead"] = "agent_ahead"
    run: str
    worker: str
    node: str
    attempt: int
    """The newest attempt that the agent has been told of; 0: none."""
    reports_lost: bool = False
    """True if reports of the agent were stored, as it knows, that the database has not."""
    address: str = ""
    """Host at which other nodes reach this node; empty: its agent does not say."""


class RanksSeen(BaseModel):
    """The ranks of one agent, from its newest heartbeat."""

    model_config = ConfigDict(frozen=True)

    worker: str
    attempt: int
    """The attempt that runs there, or ran there last."""
    ranks: tuple[int, ...] = ()
    """Ranks of that attempt, dead ones among them."""
    dead: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()
    """Ranks that have reported progress in the attempt. What others print does not count here."""


class AttemptCompared(Event):
    """The ranks of all agents in contact, to be compared with an attempt that is in doubt."""

    kind: Literal["attempt_compared"] = "attempt_compared"
    run: str
    attempt: int
    seen: tuple[RanksSeen, ...]
    first_step: int = 0
    """The first step that one of its ranks ended in the attempt; 0: not known."""
    last: bool = False
    """True: nothing more is waited for."""
