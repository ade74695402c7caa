"""Two ranks with gloo; in the first attempt, rank 1 waits for a lock that nobody releases.

`deadlock_job.py STEP`: the step of the deadlock; the run ends ten steps later.
"""

from __future__ import annotations

import sys
import threading
import time

import torch.distributed as dist

import babysit


def deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def main() -> None:
    fatal = int(sys.argv[1])
    run = babysit.init()
    dist.init_process_group("gloo")
    for step, _ in run.steps(range(fatal + 10)):
        time.sleep(0.02)
        run.report(loss=1.0)
        if step == fatal and run.rank == 1 and run.plan.attempt == 1:
            deadlock()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
