"""A healthy job whose loader takes far longer from a step on, for both ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import babysit

SLOW_FROM = 400


class Loader:
    """Batches at once, and later after a second."""

    def __iter__(self) -> Iterator[int]:
        for batch in range(1, 100_000):
            time.sleep(0.005 if batch < SLOW_FROM else 1.0)
            yield batch


def main() -> None:
    """Train without an end."""
    run = babysit.init()
    for _ in run.steps(Loader()):
        time.sleep(0.1)
        run.report(loss=1.0)


if __name__ == "__main__":
    main()
