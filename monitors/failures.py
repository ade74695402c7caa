"""Failure classes.

What a dead rank died of. The table is shared by the classifier, the policy and the docs.
"""

from __future__ import annotations

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

    GPU_HARDWARE = "gpu_hardware"
    GPU_INTERCONNECT = "gpu_interconnect"
    NETWORK = "network"
    COLLECTIVE_TIMEOUT = "collective_timeout"
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    CUDA_USER_BUG = "cuda_user_bug"
    DRIVER_OR_SETUP = "driver_or_setup"
    STORAGE = "storage"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    DATA_LOADER = "data_loader"
    NUMERICS = "numerics"
    PREEMPTION = "preemption"
    RENDEZVOUS = "rendezvous"
    USER_CODE = "user_code"
    CASCADE = "cascade"  # died only because another rank did
    SIGNAL = "signal"  # killed from outside, sender unknown
    HANG = "hang"
    WORKER_LOST = "worker_lost"
    UNKNOWN = "unknown"


CAUSE_OF: dict[FailureClass, Cause] = {
    FailureClass.CUDA_OOM: Cause.USER,
    FailureClass.CUDA_USER_BUG: Cause.USER,
    FailureClass.DATA_LOADER: Cause.USER,
    FailureClass.USER_CODE: Cause.USER,
    FailureClass.HOST_OOM: Cause.USER,
    FailureClass.DRIVER_OR_SETUP: Cause.USER,
    FailureClass.NUMERICS: Cause.ANOMALY,
    FailureClass.PREEMPTION: Cause.PREEMPTION,
}
"""Classes not named here are infrastructure."""
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
        return CAUSE_OF.get(self.failure_class, Cause.INFRASTRUCTURE)
