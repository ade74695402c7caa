"""The faults of the plan, one function each: they fall on whatever is there at their time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from monitors.failures import Evidence, Failure, FailureClass
from orchestrator.fuzz import users
from orchestrator.fuzz.event_loop import WORLD_CONTEXT

if TYPE_CHECKING:
    from orchestrator.fuzz.agents import Agent
    from orchestrator.fuzz.servers import Server
    from orchestrator.fuzz.training import Gang
    from orchestrator.fuzz.world import World

Strike = Callable[["World", random.Random], None]

_DEATHS = (
    (FailureClass.SIGNAL, "killed by SIGKILL"),
    (FailureClass.USER_CODE, "ValueError: x"),
    (FailureClass.GPU_HARDWARE, "Xid 79: fell off the bus"),
    (FailureClass.NETWORK, "NCCL: connection reset"),
    (FailureClass.UNKNOWN, "exit code 3"),
    (FailureClass.CUDA_OOM, "CUDA out of memory"),
    (FailureClass.CHECKPOINT_CORRUPT, "cannot unpickle"),
)

_STEPS_OF_AN_AGENT = 40
"""Within which one that is to be killed is: half a minute of training, or one start."""


def later(room: World, seconds: float, work: Callable[..., None], *args: object) -> None:
    """Something that ends a fault again."""
    room.loop.call_later(seconds, work, *args, context=WORLD_CONTEXT)


def _leader(room: World, chance: random.Random) -> Server:
    """The leader, most of the time."""
    leading = [server for server in room.servers if server.leads]
    return chance.choice(leading if leading and chance.random() < 0.8 else room.servers)


def server_killed(room: World, chance: random.Random) -> None:
    """A server dies between two of its next steps, and is started again."""
    server = _leader(room, chance)
    server.kill_later(chance.randint(0, 400))
    later(room, chance.uniform(0.2, 20.0), server.kill)
    later(room, chance.uniform(20.5, 30.0), server.boot)


def server_paused(room: World, chance: random.Random) -> None:
    """A server stands still, perhaps for longer than its lease, and goes on."""
    server = _leader(room, chance)
    seconds = chance.uniform(1.0, 25.0)
    if server.process:
        room.loop.doom(server.process, chance.randint(0, 400), lambda: server.pause(seconds))


def server_stopped(room: World, chance: random.Random) -> None:
    """An upgrade: a server is stopped in good order, and started again."""
    server = _leader(room, chance)
    server.hand_over()
    later(room, chance.uniform(8.0, 15.0), server.kill)
    later(room, chance.uniform(15.5, 25.0), server.boot)


def _agent(room: World, chance: random.Random) -> Agent | None:
    alive = [agent for agent in room.agents.values() if agent.alive]
    return chance.choice(alive) if alive else None


def agent_killed(room: World, chance: random.Random) -> None:
    """An agent dies between two of its next steps, and its ranks with it; or it no longer obeys."""
    agent = _agent(room, chance)
    if agent is None:
        return
    if chance.random() < 0.25:
        room.story.tell(f"{agent.worker} cannot kill its ranks any more")
        agent.deaf = True
    else:
        room.loop.doom(
            agent.worker, chance.randint(0, _STEPS_OF_AN_AGENT), partial(_die, room, agent)
        )


def _die(room: World, agent: Agent) -> None:
    room.story.tell(f"{agent.worker} is killed")
    room.site.die(agent.worker)


def node_lost(room: World, chance: random.Random) -> None:
    """A node dies; it may come back."""
    nodes = sorted(room.nodes)
    node = chance.choice(nodes)
    room.lose(node)
    later(room, chance.uniform(2.0, 60.0), room.bring_back, node)


def partition(room: World, chance: random.Random) -> None:
    """Nobody can reach a node for a while, and its ranks go on.

    Often another node of its gang fails meanwhile: then nobody can say whether the attempt is over.
    """
    agent = _agent(room, chance)
    node = agent.node if agent is not None else chance.choice(sorted(room.nodes))
    seconds = chance.choice(
        (chance.uniform(1.0, 20.0), chance.uniform(20.0, 100.0), chance.uniform(130.0, 220.0))
    )
    room.cut_off(node, cluster_too=chance.random() < 0.7)
    later(room, seconds, room.reconnect, node)
    if agent is not None and agent.share is not None and chance.random() < 0.7:
        others = [share for share in agent.share.gang.shares if share.agent.node != node]
        if others:
            later(room, chance.uniform(0.1, 10.0), others[0].fail, _killed())


def _killed() -> Failure:
    reason = "killed by SIGKILL"
    return Failure(failure_class=FailureClass.SIGNAL, reason=reason, signature=reason)


def database_away(room: World, chance: random.Random) -> None:
    """The database does not answer for a while."""
    room.story.tell("the database is away")
    room.disk.away = True
    later(room, chance.uniform(0.5, 15.0), setattr, room.disk, "away", False)


def cluster_away(room: World, chance: random.Random) -> None:
    """The cluster's API does not answer for a while."""
    room.story.tell("the cluster is away")
    room.site.away = True
    later(room, chance.uniform(0.5, 30.0), setattr, room.site, "away", False)


def clock_jump(room: World, chance: random.Random) -> None:
    """A wall clock jumps, of a server or of a node."""
    seconds = chance.choice((-1.0, 1.0)) * chance.choice((0.5, 5.0, 30.0, 90.0))
    room.promises.right_clocks = False
    agent = _agent(room, chance)
    if agent is not None and chance.random() < 0.4:
        room.story.tell(f"the clock of {agent.worker} jumps by {seconds:.1f} s")
        agent.clock.ahead += seconds
    else:
        server = _leader(room, chance)
        room.story.tell(f"the clock of {server.name} jumps by {seconds:.1f} s")
        server.clock.ahead += seconds


def rank_killed(room: World, chance: random.Random) -> None:
    """A rank dies, of one thing or another."""
    agent = _agent(room, chance)
    if agent is None or agent.share is None:
        return
    kind, reason = chance.choice(_DEATHS)
    rank = chance.choice(agent.share.ranks)
    room.story.tell(f"rank {rank} of {agent.run} dies on {agent.node}: {reason}")
    source = Evidence.KERNEL if kind is FailureClass.GPU_HARDWARE else Evidence.LOG
    failure = Failure(failure_class=kind, reason=reason, signature=reason, source=source)
    agent.share.fail(failure, rank)


def _gang(room: World, chance: random.Random) -> Gang | None:
    training = [gang for gang in room.gangs.values() if gang.whole and not gang.broken]
    return chance.choice(training) if training else None


def hang(room: World, chance: random.Random) -> None:
    """A collective never comes back."""
    gang = _gang(room, chance)
    if gang is not None:
        room.story.tell(f"attempt {gang.attempt} of {gang.job.run} hangs")
        gang.hung = True


def bad_data(room: World, chance: random.Random) -> None:
    """Batches to come that spoil the loss, every time or once; or a bug in the script."""
    job = room.jobs[chance.choice(sorted(room.jobs))]
    spoilt = chance.choice((math.nan, math.inf, 60.0))
    where = chance.randint(1, job.steps)
    match chance.choice(("always", "once", "bug")):
        case "always":
            job.bad.update((batch, spoilt) for batch in range(where, where + chance.randint(1, 5)))
        case "once":
            job.glitches += [spoilt] * chance.randint(1, 5)
        case "bug":
            job.bug = (where, chance.randint(1, 3))
    room.story.tell(f"bad data or a bug waits for {job.run} around step {where}")


def bad_save(room: World, chance: random.Random) -> None:
    """A saved shard is spoilt; or saves to come fail; or one rank loads something else."""
    job = room.jobs[chance.choice(sorted(room.jobs))]
    shards = [shard for _, ranks in sorted(room.storage.shards.items()) for shard in ranks.values()]
    match chance.choice(("spoilt", "spoilt", "failing", "split")):
        case "spoilt" if shards:
            shard = chance.choice(shards)
            room.story.tell(f"a shard of step {shard.step} is spoilt")
            shard.sound = False
        case "split":
            job.split += 1
        case _:
            job.failing += chance.randint(1, 3)


BLOWS: Mapping[str, Strike] = {
    "server_killed": server_killed,
    "server_paused": server_paused,
    "server_stopped": server_stopped,
    "agent_killed": agent_killed,
    "node_lost": node_lost,
    "partition": partition,
    "database_away": database_away,
    "cluster_away": cluster_away,
    "clock_jump": clock_jump,
    "rank_killed": rank_killed,
    "hang": hang,
    "bad_data": bad_data,
    "bad_save": bad_save,
    "operator": users.ask_for_something,
    "steward": users.look_after_cluster,
}
