"""Corrects the class of a rank's death by the run's spec and its other ranks. Pure.

A classifier sees one rank. The owner may know what an exit code of the program means
(`recovery.stop_on`, `recovery.retry_on`), and the core knows which ranks had ended before: a rank
that lost its peer died of that peer's end.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from jobs.spec import RunSpec
from monitors.failures import Advice, Evidence, Failure, FailureClass

_LOST_A_PEER = frozenset(
    {
        FailureClass.CASCADE,
        FailureClass.NETWORK,
        FailureClass.COLLECTIVE_TIMEOUT,
        FailureClass.RENDEZVOUS,
    }
)
"""Classes of ranks that found a peer gone, or waited for one in vain."""
_OWN_CODES = 128
"""Exit codes up to here are a program's own; a shell adds the number of a signal to it."""


def by_exit_code(spec: RunSpec, code: int, failure: Failure) -> Failure:
    """The failure as the spec wants it judged, by the exit code of the program.

    Args:
        spec: `recovery.stop_on` ends the run at once; `recovery.retry_on` charges the budget of
            infrastructure. Exit codes that neither names change nothing.
        code: The exit code; negative for a signal.
        failure: What was classified.
    """
    if code in spec.recovery.stop_on:
        reason = f"{failure.reason} (exit code {code} is in recovery.stop_on)"
        return failure.model_copy(update={"reason": reason, "advice": Advice.STOP, "final": True})
    if code in spec.recovery.retry_on:
        return failure.model_copy(update={"advice": Advice.RETRY})
    return failure


def by_ended_peers(failure: Failure, ended: AbstractSet[int], step: int) -> Failure:
    """Name the ranks that had ended well, where a rank died of their absence.

    Ranks whose data ends early leave the others waiting in a collective: that is the script's
    failure, whatever the network says about the closed connection.

    Args:
        failure: What a rank died of.
        ended: Ranks that had exited with code 0.
        step: The last step of the attempt.
    """
    if not ended or failure.failure_class not in _LOST_A_PEER:
        return failure
    several = len(ended) > 1
    who = f"{'ranks' if several else 'rank'} {', '.join(map(str, sorted(ended)[:8]))}"
    return Failure(
        failure_class=FailureClass.USER_CODE,
        reason=f"{who} had ended with exit code 0 while other ranks went on, by step {step}:"
        f" uneven data, or an early return; then {failure.reason}",
        signature=f"{FailureClass.USER_CODE.value}:ended early",
        evidence=failure.evidence,
        source=Evidence.EXIT,
    )


def by_engine(engine: str, code: int, failure: Failure) -> Failure:
    """End a run whose engine has given up: its driver ended itself.

    A driver that is killed is started again, since no engine outlives its driver; a word of the
    spec about the exit code comes first.

    Args:
        engine: The engine that restarts the processes of the run; empty: none does.
        code: The exit code of the driver; negative, or above 128: a signal.
        failure: What was classified.
    """
    if not engine or not 0 < code <= _OWN_CODES or failure.advice is not None or failure.final:
        return failure
    reason = f"{failure.reason}; {engine} restarts its own processes, and its driver gave up"
    return failure.model_copy(update={"reason": reason, "final": True})
