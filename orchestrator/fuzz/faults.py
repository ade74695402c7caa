"""The faults of the plan, one function each.

A plan says when and of which kind; what a fault falls on is chosen from what is there at its time,
with the chance of its own number. So a plan with fewer faults has the same ones in it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import partial

from monitors.failures import Evidence, Failure, FailureClass
from orchestrator.fuzz import backups, users
from orchestrator.fuzz.agents import Agent
from orchestrator.fuzz.event_loop import WORLD_CONTEXT
from orchestrator.fuzz.servers import Server
from orchestrator.fuzz.training import Gang
from orchestrator.fuzz.world import World

Strike = Callable[[World, random.Random], None]

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
"""Steps of the loop within which an agent is killed: half a minute of training, or one start."""


def later(world: World, seconds: float, work: Callable[..., None], *args: object) -> None:
    """Do something later that belongs to no process, such as the end of a fault."""
    world.loop.call_later(seconds, work, *args, context=WORLD_CONTEXT)


def _leader(world: World, rng: random.Random) -> Server:
    """The leader in most cases, else any server: those that only believe to lead matter too."""
    leading = [server for server in world.servers if server.leads]
    return rng.choice(leading if leading and rng.random() < 0.8 else world.servers)


def server_killed(world: World, rng: random.Random) -> None:
    """A server dies between two of its next steps, and is started again."""
    server = _leader(world, rng)
    server.kill_later(rng.randint(0, 400))
    later(world, rng.uniform(0.2, 20.0), server.kill)
    later(world, rng.uniform(20.5, 30.0), server.boot)


def server_paused(world: World, rng: random.Random) -> None:
    """A server stands still, perhaps for longer than its lease, and then goes on to act."""
    server = _leader(world, rng)
    seconds = rng.uniform(1.0, 25.0)
    if server.process:
        world.loop.interrupt(server.process, rng.randint(0, 400), lambda: server.pause(seconds))


def server_stopped(world: World, rng: random.Random) -> None:
    """An upgrade: a server is stopped in good order, and started again."""
    server = _leader(world, rng)
    server.hand_over()
    later(world, rng.uniform(8.0, 15.0), server.kill)
    later(world, rng.uniform(15.5, 25.0), server.boot)


def _agent(world: World, rng: random.Random) -> Agent | None:
    alive = [agent for agent in world.agents.values() if agent.alive]
    return rng.choice(alive) if alive else None


def agent_killed(world: World, rng: random.Random) -> None:
    """An agent dies between two of its next steps, and its ranks with it; or it no longer obeys."""
    agent = _agent(world, rng)
    if agent is None:
        return
    if rng.random() < 0.25:
        world.trace.add(f"{agent.worker} cannot kill its ranks any more")
        agent.ignores_stops = True
    else:
        world.loop.interrupt(
            agent.worker, rng.randint(0, _STEPS_OF_AN_AGENT), partial(_die, world, agent)
        )


def _die(world: World, agent: Agent) -> None:
    world.trace.add(f"{agent.worker} is killed")
    world.cluster.die(agent.worker)


def node_lost(world: World, rng: random.Random) -> None:
    """A node dies; it may come back."""
    nodes = sorted(world.nodes)
    node = rng.choice(nodes)
    world.lose(node)
    later(world, rng.uniform(2.0, 60.0), world.bring_back, node)


def partition(world: World, rng: random.Random) -> None:
    """A node cannot be reached for a while, and its ranks go on.

    Often another node of its gang fails meanwhile: then no server can know whether the attempt
    is over.
    """
    agent = _agent(world, rng)
    node = agent.node if agent is not None else rng.choice(sorted(world.nodes))
    seconds = rng.choice(
        (rng.uniform(1.0, 20.0), rng.uniform(20.0, 100.0), rng.uniform(130.0, 220.0))
    )
    world.cut_off(node, cluster_too=rng.random() < 0.7)
    later(world, seconds, world.reconnect, node)
    if agent is not None and agent.share is not None and rng.random() < 0.7:
        others = [share for share in agent.share.gang.shares if share.agent.node != node]
        if others:
            later(world, rng.uniform(0.1, 10.0), others[0].fail, _killed())


def _killed() -> Failure:
    reason = "killed by SIGKILL"
    return Failure(failure_class=FailureClass.SIGNAL, reason=reason, signature=reason)


def database_away(world: World, rng: random.Random) -> None:
    """The database does not answer for a while."""
    world.trace.add("the database is away")
    world.database.away = True
    later(world, rng.uniform(0.5, 15.0), setattr, world.database, "away", False)


def cluster_away(world: World, rng: random.Random) -> None:
    """The cluster's API does not answer for a while."""
    world.trace.add("the cluster is away")
    world.cluster.away = True
    later(world, rng.uniform(0.5, 30.0), setattr, world.cluster, "away", False)


def clock_jump(world: World, rng: random.Random) -> None:
    """A wall clock jumps, of a server or of a node."""
    seconds = rng.choice((-1.0, 1.0)) * rng.choice((0.5, 5.0, 90.0, 3600.0))
    world.invariants.right_clocks = False
    agent = _agent(world, rng)
    if agent is not None and rng.random() < 0.4:
        world.trace.add(f"the clock of {agent.worker} jumps by {seconds:.1f} s")
        agent.clock.ahead += seconds
    else:
        server = _leader(world, rng)
        world.trace.add(f"the clock of {server.name} jumps by {seconds:.1f} s")
        server.clock.ahead += seconds


def rank_killed(world: World, rng: random.Random) -> None:
    """A rank dies, of one thing or another."""
    agent = _agent(world, rng)
    if agent is None or agent.share is None:
        return
    kind, reason = rng.choice(_DEATHS)
    rank = rng.choice(agent.share.ranks)
    world.trace.add(f"rank {rank} of {agent.run} dies on {agent.node}: {reason}")
    source = Evidence.KERNEL if kind is FailureClass.GPU_HARDWARE else Evidence.LOG
    failure = Failure(failure_class=kind, reason=reason, signature=reason, source=source)
    agent.share.fail(failure, rank)


def _gang(world: World, rng: random.Random) -> Gang | None:
    training = world.gangs.training()
    return rng.choice(training) if training else None


def hang(world: World, rng: random.Random) -> None:
    """A collective never comes back."""
    gang = _gang(world, rng)
    if gang is not None:
        world.trace.add(f"attempt {gang.attempt} of {gang.job.run} hangs")
        gang.hung = True


def bad_data(world: World, rng: random.Random) -> None:
    """Batches to come that spoil the loss, every time or once; or a bug in the script."""
    job = world.jobs[rng.choice(sorted(world.jobs))]
    spoilt = rng.choice((math.nan, math.inf, 60.0))
    where = rng.randint(1, job.steps)
    match rng.choice(("always", "once", "bug")):
        case "always":
            job.bad.update((batch, spoilt) for batch in range(where, where + rng.randint(1, 5)))
        case "once":
            job.glitches += [spoilt] * rng.randint(1, 5)
        case "bug":
            job.bug = (where, rng.randint(1, 3))
    world.trace.add(f"bad data or a bug waits for {job.run} around step {where}")


def bad_save(world: World, rng: random.Random) -> None:
    """A saved shard is spoilt; or saves to come fail; or one rank loads something else."""
    job = world.jobs[rng.choice(sorted(world.jobs))]
    shards = [
        shard for _, ranks in sorted(world.storage.shards.items()) for shard in ranks.values()
    ]
    match rng.choice(("spoilt", "spoilt", "failing", "split")):
        case "spoilt" if shards:
            shard = rng.choice(shards)
            world.trace.add(f"a shard of step {shard.step} is spoilt")
            shard.sound = False
        case "split":
            job.split += 1
        case _:
            job.failing += rng.randint(1, 3)


def disk_full(world: World, rng: random.Random) -> None:
    """No room for a while: for checkpoints, in an agent's home, or for the database."""
    seconds = rng.uniform(2.0, 40.0)
    match rng.choice(("checkpoints", "checkpoints", "home", "database")):
        case "checkpoints":
            world.trace.add("there is no room for checkpoints")
            world.storage.room = rng.randint(0, 3)
            world.storage.busy += rng.randint(0, 2)
            later(world, seconds, setattr, world.storage, "room", None)
        case "home" if (agent := _agent(world, rng)) is not None:
            world.trace.add(f"the home of {agent.worker} is full")
            world.loop.spawn(agent.worker, agent.have_full_home(seconds))
        case _:
            world.trace.add("the database is full")
            world.database.full = True
            later(world, min(seconds, 15.0), setattr, world.database, "full", False)


def memory_lost(world: World, rng: random.Random) -> None:
    """A person clears /dev/shm of a node under an agent and its ranks."""
    agent = _agent(world, rng)
    if agent is not None:
        world.trace.add(f"the tmpfs of {agent.worker} is cleared")
        agent.lose_memory()


def failing_log(world: World, rng: random.Random) -> None:
    """No line of any log can be written for a while."""
    world.trace.add("the log cannot be written")
    world.log.fails = True
    later(world, rng.uniform(1.0, 30.0), setattr, world.log, "fails", False)


def old_agent(world: World, rng: random.Random) -> None:
    """An agent turns out to be of another version: fields are missing, and others are unknown."""
    agent = _agent(world, rng)
    if agent is not None:
        world.trace.add(f"{agent.worker} is of another version")
        agent.hand.another_version = True


def unreadable_report(world: World, rng: random.Random) -> None:
    """Parts of the next reports of an agent cannot be read, however often they are sent."""
    agent = _agent(world, rng)
    if agent is not None:
        world.trace.add(f"reports of {agent.worker} are damaged")
        agent.hand.damages += rng.randint(1, 4)


STRIKES: Mapping[str, Strike] = {
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
    "disk_full": disk_full,
    "memory_lost": memory_lost,
    "failing_log": failing_log,
    "old_agent": old_agent,
    "unreadable_report": unreadable_report,
    "backup_restored": backups.lose_transactions,
    "operator": users.ask_for_something,
    "administrator": users.change_cluster,
}
"""The effect of each kind of fault of the plan (see :data:`orchestrator.fuzz.plan.PLANNED`)."""
