"""Failure classes.

What a dead rank died of. The table is shared by the classifier, the policy and the docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Cause(StrEnum):
    """Who pays for a restart: each cause has a budget of its own."""

    INFRASTRUCTURE = "infrastructure"
    PREEMPTION = "preemption"  # costs nothing
    USER = "user"
    ANOMALY = "anomaly"
    OPERATOR = "operator"  # a person asked


class FailureClass(StrEnum):
    """The root cause a careful person would name."""

    GPU_HARDWARE = "gpu_hardware"  # a GPU reports a fault of its own
    GPU_INTERCONNECT = "gpu_interconnect"  # NVLink or NVSwitch reports a fault
    NETWORK = "network"  # a connection to a peer failed
    COLLECTIVE_TIMEOUT = (
        "collective_timeout"  # a collective did not end in time; the culprit is unknown
    )
    CUDA_OOM = "cuda_oom"  # the GPU ran out of memory
    HOST_OOM = "host_oom"  # the host ran out of memory
    CUDA_USER_BUG = (
        "cuda_user_bug"  # a kernel failed an assertion or touched memory that is not its own
    )
    DRIVER_OR_SETUP = "driver_or_setup"  # driver, library or image do not fit together
    STORAGE = "storage"  # a file system failed, is full or is read-only
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"  # a checkpoint does not read back as it was written
    DATA_LOADER = "data_loader"  # a worker of the data loader died or timed out
    NUMERICS = "numerics"  # NaN, infinity or divergence
    PREEMPTION = "preemption"  # the run was stopped for another run or for maintenance
    RENDEZVOUS = "rendezvous"  # the ranks could not find each other, or were not started in time
    USER_CODE = "user_code"  # an exception in the user's own code
    CASCADE = "cascade"  # died only because another rank did
    SIGNAL = "signal"  # killed from outside, sender unknown
    HANG = "hang"  # no rank makes progress
    WORKER_LOST = "worker_lost"  # the agent of a node is gone
    UNKNOWN = "unknown"  # nothing in the log says why


CAUSE_OF: Mapping[FailureClass, Cause] = {
    FailureClass.GPU_HARDWARE: Cause.INFRASTRUCTURE,
    FailureClass.GPU_INTERCONNECT: Cause.INFRASTRUCTURE,
    FailureClass.NETWORK: Cause.INFRASTRUCTURE,
    FailureClass.COLLECTIVE_TIMEOUT: Cause.INFRASTRUCTURE,
    FailureClass.STORAGE: Cause.INFRASTRUCTURE,
    FailureClass.CHECKPOINT_CORRUPT: Cause.INFRASTRUCTURE,
    FailureClass.RENDEZVOUS: Cause.INFRASTRUCTURE,
    FailureClass.CASCADE: Cause.INFRASTRUCTURE,
    FailureClass.SIGNAL: Cause.INFRASTRUCTURE,
    FailureClass.HANG: Cause.INFRASTRUCTURE,
    FailureClass.WORKER_LOST: Cause.INFRASTRUCTURE,
    FailureClass.UNKNOWN: Cause.INFRASTRUCTURE,
    FailureClass.CUDA_OOM: Cause.USER,
    FailureClass.CUDA_USER_BUG: Cause.USER,
    FailureClass.DATA_LOADER: Cause.USER,
    FailureClass.USER_CODE: Cause.USER,
    FailureClass.HOST_OOM: Cause.USER,
    FailureClass.DRIVER_OR_SETUP: Cause.USER,
    FailureClass.NUMERICS: Cause.ANOMALY,
    FailureClass.PREEMPTION: Cause.PREEMPTION,
}
"""Every class has a cause; `unknown` is the user's when the exit code is the program's own."""
_OWN_EXIT_CODES = range(1, 128)
"""Codes with which a program ends itself; negative and above are those of signals."""


class Failure(BaseModel):
    """Why one rank died."""

    model_config = ConfigDict(frozen=True)

    failure_class: FailureClass
    reason: str
    """One line: the last line of the traceback, or the signal's name and what is known of it."""
    signature: str
    """Equal for equal failures: class and where it arose, without addresses, numbers and times."""
    evidence: tuple[str, ...] = ()
    """Log lines that led here."""
    code: int | None = None
    """The exit code, where nothing else speaks."""

    @property
    def cause(self) -> Cause:
        """Whose budget pays. A program that ended itself, whatever its reasons, is its owner's."""
        if self.failure_class is FailureClass.UNKNOWN and self.code in _OWN_EXIT_CODES:
            return Cause.USER
        return CAUSE_OF[self.failure_class]
