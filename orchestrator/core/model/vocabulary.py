"""Words that are stored and shown: remedies, kinds of incident, timers.

Each word is an enum member, so that a misspelt one fails when it is read or type-checked rather
than when someone waits for it. The values are what the database, the journal and JSON hold; the
comments are the meanings in docs/vocabulary.md. Sentences for people are made in
:mod:`orchestrator.core.views`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum

from monitors.failures import FailureClass
from monitors.types import FindingKind


class Timer(StrEnum):
    """A deadline of a run. Some have a subject: the worker or the incident they are about."""

    RETRY = "retry"  # the back-off before the next attempt ends
    STOP = "stop"  # agents that have not confirmed a stop are ended through the cluster
    FENCE = "fence"  # an attempt that nobody confirmed dead is fenced
    SUSPECT = "suspect"  # a silent run is looked at again
    STACKS = "stacks"  # a hang goes on with the stacks that were captured so far
    LAUNCH = "launch"  # a worker (the subject) must have joined by then
    CONTACT = "contact"  # a worker (the subject) must be back in contact by then
    LOOK = "look"  # a worker (the subject) must have looked for checkpoints on disk by then
    START = "start"  # every rank must have been launched by then
    SILENT = "silent"  # a script that has not called babysit.init() counts as one without it
    MAX_RUNTIME = "max_runtime"  # the run has used the time its spec allows
    GROW = "grow"  # an elastic run may take more nodes
    OVERDUE = "overdue"  # a checkpoint that is overdue is an incident unless it has come by then
    STANDBY = "standby"  # the next standby agent may be launched
    RECHECK = "recheck"  # a scheduling pass looks again: time alone may change what it decides
    COMPARE = "compare"  # agents of an attempt that the database lacks have shown their ranks
    ASK = "ask"  # the remedy of an incident (the subject) starts without an answer


Timers = Mapping[Timer, Mapping[str, dt.datetime]]
"""Deadlines by timer and subject; the subject is empty for a timer that has none."""


class Remedy(StrEnum):
    """The remedies for a failure, a finding or a request."""

    RETRY = "retry"  # a new attempt on the same nodes, from the newest checkpoint that loads
    REPLACE_NODE = "replace node"  # a new attempt that avoids the node that failed
    ROLL_BACK = "roll back"  # a new attempt from the newest good checkpoint before the onset
    ROLL_BACK_AND_SKIP = "roll back and skip batches"  # the same, and the batches are quarantined
    HOLD = "hold"  # the run is held and people are paged: the next step cannot be undone
    STOP = "stop"  # the run ends as failed and people are paged
    AS_ASKED = "as asked"  # a restart or a rollback that a person asked for
    PREEMPTED = "preempted"  # the run saves and leaves all its nodes to another run
    SHRINK = "shrink"  # an elastic run saves, leaves some nodes and goes on with the rest
    GROW = "grow"  # an elastic run saves and starts again on more nodes
    MOVE_AWAY = "move away"  # the run saves and leaves a node that is drained
    SWAP_NODE = "swap the node at the next checkpoint"  # of a straggler: saved, then elsewhere
    RESTART = "restart"  # of a hang: the attempt is stopped, then judged
    WAIT = "wait"  # of a slow run: the ranks are looked at now and then; a restart at its limit
    RECORD = "recorded"  # the incident is recorded; nothing else is done
    FALL_BACK = "fall back to an older one"  # a corrupt checkpoint is never offered again
    NEXT_SAVE = "training goes on; the next save tries again"  # a save failed; no restart
    ENGINE = "left to its engine"  # Ray Train, say, restarts the processes that it started itself
    NEW_AGENT = "another agent"  # a standby agent is launched again after a pause
    CORDON = "cordon the node"  # no new work is placed on it; its runs stay
    DRAIN = "drain the node"  # its runs save and leave
    RESET_DEVICE = "drain the node, then reset the device"  # a person resets it: see the notice
    REBOOT = "drain the node, then reboot it"  # a person reboots it: see the notice
    NEVER_USE = "drain the node for good"  # only an operator takes it back
    PAGE = "a person looks"  # nothing is done to the node


class Response(StrEnum):
    """How far babysit went with the remedy of an incident."""

    ACTED = "acted"  # the remedy was started, or nothing had to be started
    OBSERVED = "observed"  # the spec says `observe`: the incident only says what would be done
    HELD = "held"  # a hold applies: the remedy waits for the release
    ASKED = "asked"  # people were asked; without an answer the remedy starts by itself


class SaveTrouble(StrEnum):
    """Kinds of trouble with saving, besides a checkpoint that is corrupt."""

    CHECKPOINT_FAILED = "checkpoint_failed"  # a save failed; training goes on without it
    CHECKPOINTS_OVERDUE = "checkpoints_overdue"  # due checkpoints do not come, three in a row
    DISK_FULL = "disk_full"  # a file system that the run needs is full; training goes on
    STORAGE_LOST = "storage_lost"  # files that an agent needs have vanished, such as /dev/shm


class NodeTrouble(StrEnum):
    """Kinds of trouble with nodes; such an incident belongs to no run."""

    NODE_FAULT = "node_fault"  # a machine says that something is wrong with it
    CHECK_FAILED = "check_failed"  # a node measured something wrong, or is slower than its like
    CORRELATED_FAULTS = "correlated_faults"  # many machines at once: a switch, a rack, the storage


IncidentKind = FindingKind | FailureClass | SaveTrouble | NodeTrouble
"""The subject of an incident.

A union rather than an enum of its own, so that a new monitor adds its word in one place. `hang` is
a finding and a failure class, and means the same as either: compare kinds with `==`, never `is`.
"""
