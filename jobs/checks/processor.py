"""The processor and its memory: an exact product of matrices, and copies of a large block.

The problem: a core or a DIMM that computes wrong results raises no error. The design: the entries
are small whole numbers, so the product is exact in any order of additions, and Freivalds' test
(A(Bx) = Cx for a random x) finds a wrong entry with a probability of at least 1/2 each time; ten
vectors leave 1 in 1,000.

Limits: pure Python exercises one core, and not the vector units; where the node has a GPU,
:mod:`jobs.checks.gpu` does the same there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from jobs.checks.measurement import Measurement, Stopwatch, Task

Matrix = Sequence[Sequence[int]]
SIZE = 96
"""Rows of a matrix: some 50 ms in pure Python."""
VECTORS = 10
_LARGEST = 1 << 20
_BLOCK_BYTES = 32 * 2**20
"""Beyond the caches of one core, so that memory is measured."""
_MEGA = 1e6
_GIGA = 1e9


def multiply(a: Matrix, b: Matrix) -> list[list[int]]:
    """The product of two square matrices."""
    columns = [*zip(*b, strict=True)]
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a
    ]


def is_product(a: Matrix, b: Matrix, c: Matrix, chance: random.Random) -> bool:
    """True if C = AB, as far as ten random vectors tell."""
    for _ in range(VECTORS):
        vector = [chance.randrange(2) for _ in range(len(a))]
        if _applied(a, _applied(b, vector)) != _applied(c, vector):
            return False
    return True


def _applied(matrix: Matrix, vector: Sequence[int]) -> list[int]:
    return [sum(x * y for x, y in zip(row, vector, strict=True)) for row in matrix]


def matmul(task: Task, product: Callable[[Matrix, Matrix], Matrix] = multiply) -> list[Measurement]:
    """Multiply matrices for a while; the rate of the best of them, and whether all were right."""
    chance = random.Random(15)
    best, wrong = 0.0, ""
    for _ in range(12 if task.thorough else 2):
        a, b = (_matrix(chance) for _ in range(2))
        watch = Stopwatch()
        c = product(a, b)
        best = max(best, 2 * SIZE**3 / watch.seconds / _MEGA)
        if not is_product(a, b, c, chance):
            wrong = "the processor computed a wrong product of two matrices of whole numbers"
    return [Measurement(check="matmul", figure=best, unit="MOP/s", device="CPU", problem=wrong)]


def _matrix(chance: random.Random) -> list[list[int]]:
    return [[chance.randrange(_LARGEST) for _ in range(SIZE)] for _ in range(SIZE)]


def memory(task: Task) -> list[Measurement]:
    """Copy a block of memory to another; the rate of the best copy, and whether it is the same."""
    source = bytearray(random.Random(15).randbytes(2**20)) * (_BLOCK_BYTES // 2**20)
    target = bytearray(_BLOCK_BYTES)
    best, wrong = 0.0, ""
    for _ in range(16 if task.thorough else 4):
        watch = Stopwatch()
        target[:] = source
        best = max(best, 2 * _BLOCK_BYTES / watch.seconds / _GIGA)  # read and written
        if target != source:
            wrong = "a copy of a block of memory differs from the block"
    return [Measurement(check="memory", figure=best, unit="GB/s", device="CPU", problem=wrong)]
