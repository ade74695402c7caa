"""Classifies failures of processes that another engine started, from its driver's words. Pure.

The engine knows whether a process is gone, and whether its node or the memory of the node took it;
a text of the engine that lists possible causes is never searched for words. Everything here is
testimony of the driver: it takes no node from other runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.engine_events import ProcessFailure
from monitors.exits import classify
from monitors.failures import Failure, FailureClass

_LOST: Mapping[str, tuple[FailureClass, str]] = {
    "process": (FailureClass.SIGNAL, "its process died"),
    "node": (FailureClass.WORKER_LOST, "its node is gone"),
    "memory": (FailureClass.HOST_OOM, "the memory of its node was exhausted"),
    "preempted": (FailureClass.PREEMPTION, "its node was preempted"),
}
"""Class and reason, by the word of the engine."""
_LINE, _REASON = 2000, 200
"""Characters that are kept of the engine's text, and of a reason."""


def failure_of_process(said: Mapping[str, Any]) -> ProcessFailure:
    """The failure of one process, as the note `engine_failed` describes it.

    Raises:
        KeyError, TypeError, ValueError: The description is not valid.
    """
    text = str(said["text"])[-_LINE:]
    lost = _LOST.get(said.get("lost") or "")
    if lost is None:
        failure = _of_exception(text)
    else:
        failure_class, reason = lost
        failure = Failure(
            failure_class=failure_class,
            reason=reason,
            signature=f"{failure_class.value}:{said['lost']}",
            evidence=tuple(text.splitlines()[-8:]),
        )
    return ProcessFailure(rank=said["rank"], node=str(said.get("node") or ""), failure=failure)


def _of_exception(text: str) -> Failure:
    """The class of an exception of the training loop, of which the engine passes on the text."""
    raised = text if "Traceback (most recent call last)" in text else _HEADED.format(text)
    found = classify(raised, 1)
    if found is None:  # not for code 1
        raise ValueError(f"no failure in {text!r}")
    lines = text.strip().splitlines()
    changes: dict[str, Any] = {"evidence": tuple(lines[-8:])}
    if found.failure_class is FailureClass.UNKNOWN:
        last = lines[-1] if lines else "an exception without words"
        changes |= {"failure_class": FailureClass.USER_CODE, "reason": last[:_REASON]}
    return found.model_copy(update=changes)


_HEADED = """Traceback (most recent call last):
  File "train_loop", line 1, in train_loop
{}
"""
