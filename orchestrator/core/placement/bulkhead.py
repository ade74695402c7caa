"""Tells over which run a scheduling pass fails, so that the others can be scheduled without it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator

from orchestrator.core.scheduling import Plan, Snapshot, plan
from orchestrator.errors import PassFailedError


@contextlib.contextmanager
def on_behalf_of(run: str) -> Iterator[None]:
    """Whatever fails inside fails over this run.

    Raises:
        PassFailedError: Something failed; it names the run, and chains the error.
    """
    try:
        yield
    except PassFailedError:
        raise
    except Exception as error:
        raise PassFailedError(run, error) from error


def plan_or_name(taken: Snapshot, now: dt.datetime) -> Plan:
    """The plan for a snapshot; where planning fails, the run without which it does not.

    Raises:
        PassFailedError: Without this run there is a plan.
        Exception: What planning raised, where no single run makes the difference.
    """
    try:
        return plan(taken, now)
    except Exception as error:
        run = _culprit(taken, now)
        if run is None:
            raise
        raise PassFailedError(run, error) from error


def _culprit(taken: Snapshot, now: dt.datetime) -> str | None:
    runs = dict.fromkeys((*(d.run for d in taken.demands), *(h.run for h in taken.holdings)))
    for run in runs:
        without = dataclasses.replace(
            taken,
            demands=[demand for demand in taken.demands if demand.run != run],
            holdings=[holding for holding in taken.holdings if holding.run != run],
        )
        with contextlib.suppress(Exception):
            plan(without, now)
            return run
    return None
