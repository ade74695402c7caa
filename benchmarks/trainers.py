"""Which trainers start, recover, and are seen under babysit: real scripts, faults, and ranks.

    python benchmarks/trainers.py [--unmodified] [--trainers sdk,fsdp2] [--keep DIRECTORY]
    python benchmarks/trainers.py --overhead [--steps N] [--trainers sdk,fsdp2]

Two ranks on two virtual nodes of one core, models of a few thousand parameters, no GPU. Each
trainer has a run that is left alone, and one that is killed, stopped, preempted and spoiled
(`benchmarks/support/trainer_story.py`). With `--unmodified`, the scripts have no line of babysit,
and `babysit run --` replaces their launcher (`benchmarks/support/trainer_unmodified.py`). With
`--overhead`, each script trains beside the same one without babysit, in turns, and the last line
has microseconds of a step and of a save (`benchmarks/support/trainer_overhead.py`). A row
whose library is not installed says which one. The last line is JSON: true, false, or null where a
column does not apply here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support import trainer_overhead, trainer_story, trainer_unmodified
from benchmarks.support.harness import control_plane, last_line, table, workplace
from benchmarks.support.trainer_rows import ROWS
from benchmarks.support.trainer_run import RANKS, Verdict

WORDS = {True: "yes", False: "NO", None: "-"}
IDLE_SECONDS = 60.0
"""Time without a run between two trainers."""


def show(verdicts: dict[str, Verdict]) -> None:
    """Print the table, and below it the reasons and figures."""
    rows = [
        (name, *(WORDS[found] for found in verdict.columns.values()))
        for name, verdict in verdicts.items()
    ]
    columns = next(iter(verdicts.values())).columns
    table(("trainer", *columns), rows)
    print()
    for name, verdict in verdicts.items():
        for column, text in verdict.notes.items():
            print(f"{name}, {column}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainers", default=",".join(ROWS), help="names with commas between")
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, not removed")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--unmodified", action="store_true", help="without a line of babysit")
    how.add_argument("--overhead", action="store_true", help="what a step and a save cost")
    steps = trainer_overhead.STEPS
    parser.add_argument("--steps", type=int, default=steps, help="of --overhead: steps of a script")
    options = parser.parse_args()
    story = trainer_unmodified if options.unmodified else trainer_story
    names = options.trainers.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no trainer {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    os.environ["BABYSIT_LOCAL_CPUS_PER_NODE"] = "1"
    keep = options.keep and options.keep.absolute()
    kept = contextlib.nullcontext(keep) if keep else workplace("trainers")
    measure = functools.partial(trainer_overhead.measure, steps=options.steps)
    if not options.overhead:
        measure = story.judge
    found: dict[str, Any] = {}
    with (
        kept as directory,
        control_plane(directory, nodes=RANKS, idle_seconds=IDLE_SECONDS) as session,
    ):
        for name in names:
            begun = time.monotonic()
            found[name] = measure(session, ROWS[name], directory)
            seconds = time.monotonic() - begun
            print(f"{name}, {seconds:.0f} s: {found[name]}", file=sys.stderr, flush=True)
    if options.overhead:
        table(trainer_overhead.HEAD, trainer_overhead.rows_of(found))
        last_line({name: cost and cost.as_json() for name, cost in found.items()})
    else:
        show(found)
        last_line({name: verdict.columns for name, verdict in found.items()})


if __name__ == "__main__":
    main()
