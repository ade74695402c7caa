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


class Timer(StrEnum):
    """A deadline of a run. Some have a subject: the worker or the incident they are about."""

    RETRY = "retry"  # the back-off before the next attempt ends
    STOP = "stop"  # agents that have not confirmed a stop are ended through the cluster
    FENCE = "fence"  # an attempt that nobody confirmed dead is fenced
    STACKS = "stacks"  # a hang goes on with the stacks that were captured so far
    LAUNCH = "launch"  # subject: a worker that must have joined by then
    CONTACT = "contact"  # subject: a worker that must be back in contact by then
    START = "start"  # every rank must have been launched by then
    SILENT = "silent"  # a script that has not called babysit.init() counts as one that never does
    MAX_RUNTIME = "max_runtime"  # the run has used the time its spec allows
    GROW = "grow"  # an elastic run may take more nodes
    STANDBY = "standby"  # the next standby agent may be launched
    ASK = "ask"  # subject: an incident whose remedy starts unless someone has answered


Timers = Mapping[Timer, Mapping[str, dt.datetime]]
"""Deadlines by timer and subject; the subject is empty for a timer that has none."""
