"""Says what others use of a node: Pods and jobs of the cluster that are not babysit's."""

from __future__ import annotations

_GIB = 2**30


def in_words(gpus: int, cpus: float, memory: int) -> str:
    """`3 GPUs, 1.5 CPUs, 2.0 GiB`; empty: nothing is used. Memory is in bytes."""
    parts = []
    for amount, one in ((gpus, "GPU"), (cpus, "CPU")):
        if amount > 0:
            parts.append(f"{amount:g} {one}{'' if amount == 1 else 's'}")
    if memory > 0:
        parts.append(f"{memory / _GIB:.1f} GiB")
    return ", ".join(parts)
