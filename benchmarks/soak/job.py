"""The training script of every run of the soak."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.soak.kinds import KINDS
from benchmarks.soak.training import Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--until", type=float, required=True, help="when to end, Unix seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    kind = KINDS[options.kind]
    if kind.last_rank_late and os.environ.get("RANK", "0") == str(kind.ranks - 1):
        time.sleep(kind.last_rank_late)  # imports from a slow disk
    kind.train(Training(options.until, options.seed, options.scratch))


if __name__ == "__main__":
    main()
