"""The lives of workers, as the driver's process follows them.

What is known of a worker is in Ray's store (:mod:`.names`) and in its actor. Ray itself tells the
end of an actor at once: a call that waits in the actor fails with it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray import exceptions

from orchestrator.clusters.ray import connection, ends, names
from orchestrator.clusters.ray.connection import ALIVE, DEAD, Store
from orchestrator.clusters.ray.facts import Order, RayFailedError, Snapshot, Tell
from orchestrator.clusters.ray.leftovers import Leftovers

LAUNCH_SECONDS = 100.0
"""How long a launch waits for the actor to start, with its runtime environment: less than the time
that an agent has to join."""
STUCK_LOOKS = 5
"""Looks, one a second, after which an actor without a place counts as stuck."""
ANSWER_SECONDS = 20.0
"""How long an actor may take to answer a stop."""
RETRY_SECONDS = 1.0
_THREADS = 32
_LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", ALIVE, "RESTARTING")


class _Life:
    """A worker that may be alive."""

    def __init__(self, worker: str, run: str, order: Mapping[str, Any]) -> None:
        self.worker, self.run, self.order = worker, run, order
        self.handle: Any = None
        self.lock = threading.Lock()
        """Held while its actor is created, or its end is found out."""
        self.started = False
        self.ended = False
        self.waits = False
        """True: others had its place when its actor was created. Ray itself does not tell an actor
        that has no place from one whose process or environment is starting."""
        self.looks = 0
        """Looks at it while it waited."""
        self.stuck = ""
        self.stops = 0
        """Stops that wait for the end to be told."""

    def key(self, what: str) -> str:
        """The key in the store of one of its facts."""
        return names.key(self.run, self.worker, what)


class Workers:
    """The workers of one installation of babysit."""

    def __init__(self, store: Store, namespace: str, tell: Tell) -> None:
        self._store, self._namespace, self._tell = store, namespace, tell
        self._lives: dict[tuple[str, str], _Life] = {}
        self._pool = ThreadPoolExecutor(_THREADS)
        self._leftovers = Leftovers(store, self._pool, _sweep)

    # --- starting ---------------------------------------------------------------------------

    def launch(self, order: Order) -> None:
        """Create the worker's actor and have it start the agent, unless that happened before.

        Raises:
            RayFailedError: It does not start.
        """
        if self._tell_again(order.worker, order.run):
            return
        life = self._life(order.worker, order.run, _record(order))
        with life.lock:
            if life.ended:
                self._tell_again(order.worker, order.run)
                return
            if life.handle is None and not self._create(life, order):
                return
        self._start(life, order)

    def _create(self, life: _Life, order: Order) -> bool:
        """Find or create the actor; False: it existed, and is dead."""
        handle = connection.find(life.worker, self._namespace)
        if handle is None:
            if self._identity(life) or self._store.get(life.key(names.CLAIM)):
                self._pool.submit(self._bury, life)
                return False
            life.waits = bool(self._room(life, self._snapshot()))
            try:
                handle = connection.create(order, self._namespace)
            except (TypeError, ValueError, exceptions.RuntimeEnvSetupError) as error:
                raise RayFailedError(f"Ray: {ends.words(str(error))}", final=True) from error
        self._follow(life, handle)
        return True

    def _start(self, life: _Life, order: Order) -> None:
        whole = {
            **life.order,
            "config": order.config,
            "environment": order.environment,
            "ca": order.ca,
            "command": order.command,
            "store": self._store.namespace,
            "keys": {what: life.key(what) for what in (names.CLAIM, names.END)},
        }
        where = f"worker {life.worker} on {order.node_name}"
        try:
            # By a call, and not by the constructor: Ray keeps the arguments of that one.
            answer = ray.get(life.handle.start.remote(whole), timeout=LAUNCH_SECONDS)
        except exceptions.RuntimeEnvSetupError as error:
            why = f"Ray cannot set up ray.runtime_env for {where}: {ends.words(str(error))}"
            raise RayFailedError(why, final=True) from error
        except exceptions.GetTimeoutError as error:
            why = life.stuck or f"its actor does not start within {LAUNCH_SECONDS:.0f} s"
            raise RayFailedError(f"{where}: {why}") from error
        except exceptions.RayActorError:
            return  # its end is heard of by another way
        life.started = True
        if "babysit is not installed" in answer:
            raise RayFailedError(f"{where}: {answer}", final=True)

    # --- ending -----------------------------------------------------------------------------

    def stop(self, worker: str, run: str, grace: float) -> None:
        """End a worker. Returns when its actor has begun to, whatever becomes of this process.

        Raises:
            RayFailedError: Its actor cannot be reached now.
        """
        if self._tell_again(worker, run):
            return
        life = self._life(worker, run)
        life.stops += 1
        try:
            self._stop(life, grace)
        except Exception:
            life.stops -= 1  # it is asked again: one end answers both
            raise

    def _stop(self, life: _Life, grace: float) -> None:
        claim = self._store.put(life.key(names.CLAIM), names.STOPPED)
        handle = life.handle or connection.find(life.worker, self._namespace)
        if claim == names.STOPPED:
            if handle is not None:
                ray.kill(handle, no_restart=True)
            self._gone(life, self._store.put(life.key(names.END), ends.NEVER))
        elif handle is None:
            self._pool.submit(self._bury, life)
        else:
            if life.handle is None:
                self._follow(life, handle)
            try:
                ray.get(handle.stop.remote(grace), timeout=ANSWER_SECONDS)
            except exceptions.ActorUnavailableError as error:
                raise RayFailedError(
                    f"worker {life.worker}: its actor cannot be reached now"
                ) from error
            except exceptions.RayActorError:
                return  # it is dead, and its end is heard of
            except exceptions.GetTimeoutError as error:
                raise RayFailedError(f"worker {life.worker}: its actor does not answer") from error

    def acknowledge(self, worker: str, run: str) -> None:
        """Take note that the control plane has stored the end."""
        self._store.put(names.key(run, worker, names.TOLD), "1")

    def keep_runs(self, runs: Collection[str]) -> None:
        """Remove the keys of other runs, unless a worker of theirs may be alive."""
        others: dict[str, set[str]] = {}
        for key in self._store.keys(names.ALL):
            if key.run not in runs:
                others.setdefault(key.run, set()).add(key.worker)
        for run, workers in others.items():
            if all(self.alive(worker, run) is False for worker in workers):
                self._store.remove(names.prefix(run))

    # --- what is known ------------------------------------------------------------------------

    def alive(self, worker: str, run: str) -> bool | None:
        """True if a process of the worker may be alive; None: nobody can tell now."""
        key = _Life(worker, run, {}).key
        claim = self._store.get(key(names.CLAIM))
        if self._store.get(key(names.END)) is not None or claim == names.STOPPED:
            return False
        identity = self._store.get(key(names.ACTOR)) or claim
        if identity is None:
            handle = connection.find(worker, self._namespace)
            identity = connection.identity(handle) if handle else None
        if identity is None:
            return False
        facts = connection.actor(identity)
        if facts is None or facts.state == DEAD:
            return None  # its end is being found out
        if facts.node and connection.death(facts.node) is not None:
            return None
        return True

    def _snapshot(self) -> Snapshot:
        return connection.snapshot(self.held(), pending=False)

    def _room(self, life: _Life, seen: Snapshot) -> str:
        """Why there is no room for a worker on its node; empty: there is."""
        nodes = (node for node in seen.nodes if node.id == life.order["node"])
        return "".join(ends.no_room(life.order["resources"], node) for node in nodes)

    def held(self) -> dict[str, dict[str, float]]:
        """Node -> the resources that workers hold there."""
        held: dict[str, dict[str, float]] = {}
        for life in list(self._lives.values()):
            if life.ended or life.waits or not life.handle:
                continue
            there = held.setdefault(life.order["node"], {})
            for name, amount in life.order["resources"].items():
                there[name] = there.get(name, 0.0) + amount
        return held

    def adopt(self) -> None:
        """Take over what is in the store, and tell the ends that nobody has taken note of."""
        known: dict[tuple[str, str], set[str]] = {}
        for key in self._store.keys(names.ALL):
            known.setdefault((key.run, key.worker), set()).add(key.what)
        for (run, worker), whats in sorted(known.items()):
            if {names.LEFT, names.LAUNCH} <= whats:
                self._left(worker, run)
            if names.TOLD in whats or self._tell_again(worker, run):
                continue
            life = self._life(worker, run)
            if life.handle is not None:
                continue
            if (handle := connection.find(worker, self._namespace)) is not None:
                life.started = names.CLAIM in whats
                self._follow(life, handle)
            elif whats & {names.ACTOR, names.CLAIM}:
                self._pool.submit(self._bury, life)

    def _left(self, worker: str, run: str) -> None:
        host = self._store.get(names.key(run, worker, names.LEFT))
        order = self._store.get(names.key(run, worker, names.LAUNCH))
        if host and order:
            self._leftovers.lost(host, json.loads(order))

    def look(self, seen: Snapshot) -> None:
        """Tell of actors that find no place, and of those that have found one."""
        self._leftovers.look(seen)
        for life in list(self._lives.values()):
            why = ""
            if life.waits:
                life.looks += 1
                why = "" if life.started or life.ended else self._room(life, seen)
                life.waits = bool(why)
            if life.looks <= STUCK_LOOKS:
                why = ""
            if why != life.stuck:
                life.stuck = why
                self._tell("stuck", life.worker, life.run, why)

    # --- following ----------------------------------------------------------------------------

    def _life(self, worker: str, run: str, record: str = "") -> _Life:
        """The life of a worker, followed from now on; its first order counts, if it has one."""
        life = self._lives.get((run, worker))
        if life is None:
            key = names.key(run, worker, names.LAUNCH)
            stored = self._store.put(key, record) if record else self._store.get(key)
            order = json.loads(stored) if stored else {"worker": worker, "run": run}
            life = self._lives.setdefault((run, worker), _Life(worker, run, order))
        return life

    def _identity(self, life: _Life) -> str | None:
        """The id of the worker's actor; None: none is known."""
        if life.handle is not None:
            return connection.identity(life.handle)
        claim = self._store.get(life.key(names.CLAIM))
        return self._store.get(life.key(names.ACTOR)) or (claim if claim != names.STOPPED else None)

    def _tell_again(self, worker: str, run: str) -> bool:
        how = self._store.get(names.key(run, worker, names.END))
        if how is not None:
            self._tell("gone", worker, run, how)
        return how is not None

    def _follow(self, life: _Life, handle: Any) -> None:
        life.handle = handle
        self._store.put(life.key(names.ACTOR), connection.identity(handle))
        self._listen(life)

    def _listen(self, life: _Life) -> None:
        """Be called when the actor ends: at once, by Ray."""
        future = life.handle.wait.remote().future()
        future.add_done_callback(lambda done: self._pool.submit(self._heard, life, done))

    def _heard(self, life: _Life, done: Future[str]) -> None:
        try:
            how = done.result()
        except exceptions.ActorUnavailableError:
            _pause()
            self._listen(life)
        except exceptions.RayError:
            self._bury(life)
        else:
            self._gone(life, how)

    def _bury(self, life: _Life) -> None:
        """Find out how a worker ended whose actor did not say so, until it is certain."""
        with life.lock:
            while not life.ended:
                try:
                    how = self._find_end(life)
                except Exception as error:  # noqa: BLE001 - Ray is away: the next try may tell
                    sys.stderr.write(f"{life.worker}: its end is not known: {error}\n")
                    how = None
                if how is not None:
                    self._gone(life, self._store.put(life.key(names.END), how))
                    return
                _pause()

    def _find_end(self, life: _Life) -> str | None:
        """How the worker ended; None: it may be alive."""
        if (how := self._store.get(life.key(names.END))) is not None:
            return how
        identity = self._identity(life)
        facts = connection.actor(identity) if identity else None
        if facts is not None and facts.state in _LIVING:
            return None
        node = facts.node if facts and facts.node else life.order.get("node", "")
        said = facts.words if facts else ""
        if node and (lost := connection.death(node)) is not None:
            if lost.host:
                self._leftovers.lost(lost.host, life.order)
            return ends.node_lost(life.order.get("node_name", node), lost.words)
        if self._store.put(life.key(names.CLAIM), names.STOPPED) == names.STOPPED:
            return ends.actor_died(said, started=False)
        _sweep(life.order, node)
        return ends.actor_died(said, started=True)

    def _gone(self, life: _Life, how: str) -> None:
        if not life.ended:
            life.ended = True
            self._lives.pop((life.run, life.worker), None)
            for _ in range(max(1, life.stops)):
                self._tell("gone", life.worker, life.run, how)


def _sweep(order: Mapping[str, Any], node: str) -> None:
    ray.get(connection.sweep(order, node, order.get("runtime_env", {})))


def _record(order: Order) -> str:
    """The part of an order that is kept: enough to find its worker again, and nothing secret."""
    resources = {"CPU": order.cpus, "GPU": float(order.gpus), "memory": float(order.memory)}
    return json.dumps(
        {
            "worker": order.worker,
            "run": order.run,
            "node": order.node,
            "node_name": order.node_name,
            "directory": order.directory,
            "runtime_env": dict(order.runtime_env),
            "resources": resources,
        }
    )


def _pause() -> None:
    threading.Event().wait(RETRY_SECONDS)
