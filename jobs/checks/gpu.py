"""GPUs: their number, an exact product, memory bandwidth, PCIe and NVLink. Needs torch with CUDA.

Written against `torch.cuda`. On a node without GPUs, or for a worker that asks for none, each check
is skipped and says why. ROCm builds of torch serve AMD GPUs under the same names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.checks.measurement import Measurement, Stopwatch, Task

Program = Callable[[Task], list[Measurement]]
Measure = Callable[[Any, Task], Measurement]
NONE_ASKED = "no GPU is asked of this node"
_DRIVER = Path("/proc/driver/nvidia/gpus")
_SIZE = {False: 4096, True: 8192}
_REPEATS = {False: 10, True: 50}
_COPY_BYTES = {False: 256 * 2**20, True: 1024 * 2**20}
_GIGA, _TERA = 1e9, 1e12


def present(task: Task) -> list[Measurement]:
    """Count the GPUs that a process here can use."""
    if task.gpus == 0:
        return [Measurement(check="gpu-count", skipped=NONE_ASKED)]
    torch = _torch()
    if torch is not None:
        found, how = torch.cuda.device_count(), "torch"
    elif _DRIVER.is_dir():
        found, how = len([*_DRIVER.iterdir()]), "the NVIDIA driver"
    else:
        why = "neither a torch for GPUs nor the files of the NVIDIA driver are here"
        return [Measurement(check="gpu-count", skipped=why)]
    short = f"{how} sees {found} of {task.gpus} GPUs" if found < task.gpus else ""
    return [Measurement(check="gpu-count", figure=found, unit="GPUs", problem=short)]


def _torch() -> Any:
    """The module torch if it is there and built for GPUs; else None."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")  # seconds; absent from the control plane
    return torch if torch.version.cuda or torch.version.hip else None


def _program(check: str) -> Callable[[Measure], Program]:
    """Make a check program of a function of torch and a task; what torch raises is a result.

    A GPU out of memory says nothing of the node: another process may use it.
    """

    def decorate(measure: Measure) -> Program:
        @functools.wraps(measure)
        def program(task: Task) -> list[Measurement]:
            torch = None if task.gpus == 0 else _torch()
            if torch is None:
                why = NONE_ASKED if task.gpus == 0 else "no torch for GPUs is installed here"
                return [Measurement(check=check, skipped=why)]
            try:
                return [dataclasses.replace(measure(torch, task), check=check)]
            except torch.cuda.OutOfMemoryError as error:
                return [Measurement(check=check, skipped=_first_line(error))]
            except RuntimeError as error:
                return [Measurement(check=check, problem=_first_line(error))]

        return program

    return decorate


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@_program("gpu-matmul")
def matmul(torch: Any, task: Task) -> Measurement:
    """Multiply matrices on each GPU in bfloat16; the rate of the slowest GPU.

    The entries are -1, 0 and 1, and sums stay below 2**24, so that the product is exact in float32,
    which tensor cores accumulate in, whatever the order; its test is Freivalds', in whole numbers.
    """
    rates, wrong = [], ""
    for device in range(torch.cuda.device_count()):
        rate, right = _product(torch, device, thorough=task.thorough)
        rates.append(rate)
        if not right:
            wrong = f"GPU {device} computed a wrong product of two matrices of whole numbers"
    return _slowest(torch, rates, "TFLOP/s", wrong)


def _product(torch: Any, device: int, *, thorough: bool) -> tuple[float, bool]:
    """The rate of one GPU, and whether its product is right."""
    size, repeats = _SIZE[thorough], _REPEATS[thorough]
    chance = torch.Generator(device="cpu").manual_seed(15)
    a, b = (
        torch.randint(-1, 2, (size, size), generator=chance).to(device, torch.bfloat16)
        for _ in range(2)
    )
    vector = torch.randint(0, 2, (size, 1), generator=chance).to(device, torch.float64)
    product = a @ b
    torch.cuda.synchronize(device)
    watch = Stopwatch()
    for _ in range(repeats):
        product = a @ b
    torch.cuda.synchronize(device)
    rate = 2 * size**3 * repeats / watch.seconds / _TERA
    # The result is rounded to bfloat16 (8 bits), so the exact one is rounded alike.
    exact = (a.float() @ b.float()).to(torch.bfloat16)
    same = bool(torch.equal(product, exact))
    left = a.double() @ (b.double() @ vector)
    right = (a.float() @ b.float()).double() @ vector
    return rate, same and bool(torch.equal(left, right))


@_program("gpu-memory")
def memory(torch: Any, task: Task) -> Measurement:
    """Copy a block within each GPU's memory; the rate of the slowest GPU, read and written."""
    rates = []
    for device in range(torch.cuda.device_count()):
        block = torch.empty(_COPY_BYTES[task.thorough], dtype=torch.uint8, device=device)
        rates.append(2 * _copied(torch, device, torch.empty_like(block), block, task))
    return _slowest(torch, rates, "GB/s")


@_program("pcie")
def pcie(torch: Any, task: Task) -> Measurement:
    """Copy from pinned memory of the host to each GPU; the rate of the slowest link."""
    rates = []
    for device in range(torch.cuda.device_count()):
        host = torch.empty(_COPY_BYTES[task.thorough], dtype=torch.uint8, pin_memory=True)
        rates.append(_copied(torch, device, torch.empty_like(host, device=device), host, task))
    return _slowest(torch, rates, "GB/s")


@_program("nvlink")
def nvlink(torch: Any, task: Task) -> Measurement:
    """Copy from each GPU to the next; the rate of the slowest pair. Without NVLink: of PCIe."""
    count = torch.cuda.device_count()
    if count < 2:
        return Measurement(check="nvlink", skipped="one GPU has no other to talk to")
    rates = []
    for device in range(count):
        source = torch.empty(_COPY_BYTES[task.thorough], dtype=torch.uint8, device=device)
        target = torch.empty_like(source, device=(device + 1) % count)
        rates.append(_copied(torch, device, target, source, task))
    return _slowest(torch, rates, "GB/s")


def _copied(torch: Any, device: int, target: Any, source: Any, task: Task) -> float:
    """GB/s of copies from `source` to `target`."""
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    repeats = _REPEATS[task.thorough]
    watch = Stopwatch()
    for _ in range(repeats):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    torch.cuda.synchronize(target.device)
    return float(source.numel()) * repeats / watch.seconds / _GIGA


def _slowest(torch: Any, rates: list[float], unit: str, wrong: str = "") -> Measurement:
    name = torch.cuda.get_device_name(0)
    return Measurement(check="", figure=min(rates), unit=unit, device=name, problem=wrong)
