"""Failure classes.

What a dead rank died of. The table is shared by the classifier, the policy and the docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Cause(StrEnum):
    """The budget that pays for a restart: each cause has one of its own."""

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
    COLLECTIVE_TIMEOUT = "collective_timeout"  # a collective did not end in time
    CUDA_OOM = "cuda_oom"  # the GPU ran out of memory
    HOST_OOM = "host_oom"  # the host ran out of memory
    CUDA_USER_BUG = "cuda_user_bug"  # a kernel failed an assertion or a bounds check
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
    SILENT_CORRUPTION = "silent_corruption"  # a node computed wrongly, as its replicas show
    HANG = "hang"  # no rank makes progress
    WORKER_LOST = "worker_lost"  # the agent of a node is gone
    UNKNOWN = "unknown"  # nothing in the log says why; the user's if the program ended itself


class Evidence(StrEnum):
    """The source of a class. Output of a process is testimony; a machine's own word is proof."""

    LOG = "log"  # what the rank printed
    EXIT = "exit"  # its exit code, or what the agent saw of its end
    BABYSIT = "babysit"  # its monitors and the controller
    KERNEL = "kernel"  # of the node
    DRIVER = "driver"  # of the GPU
    CLUSTER = "cluster"  # the resource manager


_PROOF = frozenset({Evidence.KERNEL, Evidence.DRIVER, Evidence.CLUSTER})


@dataclass(frozen=True, slots=True)
class Proof:
    """A machine's own word. Only who holds one can take a node from every run.

    Raises:
        ValueError: the source is not the kernel, the driver or the cluster.
    """

    source: Evidence
    reason: str

    def __post_init__(self) -> None:
        if self.source not in _PROOF:
            raise ValueError(f"{self.source} proves nothing about a node: {self.reason}")


class Advice(StrEnum):
    """The remedy that a failure suggests."""

    RETRY = "retry"
    REPLACE_NODE = "replace_node"  # this run goes elsewhere
    STOP = "stop"  # somebody must change something; tried once more, to confirm
    ROLLBACK = "rollback"  # an older checkpoint


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
    FailureClass.SILENT_CORRUPTION: Cause.INFRASTRUCTURE,
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
    final: bool = False
    """The run must not be started again for it: the work may be done."""
    code: int | None = None
    """The exit code, where nothing else speaks: of a program, or of a shell for a signal."""

    source: Evidence = Evidence.LOG
    """The source of the class. Only a proof may take a node from every run."""
    advice: Advice | None = None
    """The action that a rule names; None: the class alone decides."""

    @property
    def proof(self) -> Proof | None:
        """The machine's own word; None for what a process printed, or babysit concluded."""
        return Proof(self.source, self.reason) if self.source in _PROOF else None

    @property
    def cause(self) -> Cause:
        """The budget that pays. A program that ended itself, for any reason, costs its owner's.

        A preemption that only a log tells of is charged like a fault of the machines: a cache that
        prints "evicted" must not restart a run for ever.
        """
        if self.advice is Advice.STOP or (self._ended_itself and self.advice is None):
            return Cause.USER
        cause = CAUSE_OF[self.failure_class]
        is_hearsay = cause is Cause.PREEMPTION and self.source is Evidence.LOG
        is_overruled = cause is Cause.USER and self.advice is not None
        return Cause.INFRASTRUCTURE if is_hearsay or is_overruled else cause

    @property
    def _ended_itself(self) -> bool:
        return self.failure_class is FailureClass.UNKNOWN and (self.code or 0) > 0
