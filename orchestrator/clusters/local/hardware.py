"""CPUs and GPUs of this machine (Linux; GPUs by nvidia-smi)."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from orchestrator.clusters.errors import ClusterError

_NVIDIA_SMI_SECONDS = 30.0
"""A healthy nvidia-smi answers in under two seconds; with the driver unloaded it may take ten."""


def cpus() -> int:
    """Number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def gpu_uuids() -> tuple[str, ...]:
    """UUIDs of the GPUs of this machine that CUDA_VISIBLE_DEVICES leaves.

    UUIDs, since CUDA and nvidia-smi number the GPUs in different orders. Blocks while nvidia-smi
    runs, for 30 s at most.

    Raises:
        ClusterError: nvidia-smi is installed but fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        result = subprocess.run(  # noqa: S603 - a fixed command
            [program, "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _broken(f"does not answer: {error}") from error
    if result.returncode != 0:
        if "No devices were found" in result.stdout:
            return ()
        raise _broken(f"fails: {(result.stdout + result.stderr).strip()}")
    return visible(result.stdout.split(), os.environ)


def _broken(what: str) -> ClusterError:
    return ClusterError(f"nvidia-smi {what}; repair the driver, or set the GPUs of nodes to 0")


def visible(uuids: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by index or by a prefix of the UUID, in its order.

    As in CUDA, the list ends at the first entry that names no GPU.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(uuids)
    found = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.isdigit() and int(word) < len(uuids):
            found.append(uuids[int(word)])
        elif word and (named := [uuid for uuid in uuids if uuid.startswith(word)]):
            found.append(named[0])
        else:
            break
    return tuple(found)


def deal(items: Sequence[str], hands: int) -> list[tuple[str, ...]]:
    """Split into `hands` contiguous parts of sizes that differ by one at most."""
    size, extra = divmod(len(items), hands)
    starts = [hand * size + min(hand, extra) for hand in range(hands + 1)]
    return [tuple(items[a:b]) for a, b in itertools.pairwise(starts)]
