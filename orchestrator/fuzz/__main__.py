"""`python -m orchestrator.fuzz FIRST:LAST`: run the control plane among the faults of these seeds.

Ends with 0 when no invariant was broken. Ends with 1 at the first that was, and prints it, what
happened before it, and the smallest command that shows it again.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
from collections.abc import Iterator, Sequence

from jobs.clock import Clock, SystemClock
from orchestrator.fuzz.plan import FAULT_KINDS, Choice, draw, parse_kinds
from orchestrator.fuzz.shrink import Shrinker, command
from orchestrator.fuzz.simulation import Outcome, run_seed

_LINES_SHOWN = 60
_SEEDS_A_LINE = 500
"""Seeds after which a line on stderr tells how far it is."""


def main(arguments: Sequence[str] | None = None, clock: Clock | None = None) -> int:
    """Run the seeds; the exit code."""
    given = _parser().parse_args(arguments)
    clock = clock or SystemClock()
    choice = Choice(given.faults, given.only)
    begun = clock.monotonic()
    done = 0
    for seed, outcome in _outcomes(given.seeds, choice, given.jobs):
        done += 1
        if given.trace:
            _say("\n".join(outcome.trace))
        if outcome.broken:
            _report(seed, _smallest(seed, choice, outcome, clock, given.shrink), given.lines)
            return 1
        if done % _SEEDS_A_LINE == 0:
            sys.stderr.write(f"{done} of {len(given.seeds)} seeds, none broke an invariant\n")
        if clock.monotonic() - begun > given.seconds:
            break
    seconds = clock.monotonic() - begun
    last = given.seeds[done - 1]
    _say(
        f"seeds {given.seeds[0]} to {last}: no invariant broken;"
        f" {done} in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} seeds per second"
    )
    return 0


def _outcomes(seeds: range, choice: Choice, jobs: int) -> Iterator[tuple[int, Outcome]]:
    """The outcomes in the order of their seeds, worked out by `jobs` processes."""
    if jobs == 1:
        yield from ((seed, run_seed(seed, choice)) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from zip(
            seeds, pool.imap(functools.partial(run_seed, choice=choice), seeds), strict=True
        )


def _smallest(
    seed: int, choice: Choice, outcome: Outcome, clock: Clock, seconds: float
) -> tuple[Choice, Outcome]:
    _say(f"seed {seed}: {outcome.broken}")
    end = clock.monotonic() + seconds
    shrinker = Shrinker(draw(seed), choice, outcome, lambda: clock.monotonic() < end)
    shrinker.shrink()
    return shrinker.choice, shrinker.outcome


def _report(seed: int, found: tuple[Choice, Outcome], lines: int) -> None:
    choice, outcome = found
    _say("\n".join(outcome.trace[-lines:]))
    faults = ", ".join(f"{fault.number} {fault.kind}" for fault in outcome.faults) or "none"
    _say(f"\nBroken: {outcome.broken}")
    _say(f"Faults of the plan that it takes: {faults}")
    _say(f"Again: {command(seed, choice)}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.fuzz",
        description="Run the control plane among faults, and check its invariants all the time.",
    )
    parser.add_argument("seeds", type=_seeds, help="one seed, or FIRST:LAST (LAST not included)")
    parser.add_argument(
        "--faults",
        type=_faults,
        default=frozenset(FAULT_KINDS),
        metavar="KIND,…",
        help=f"kinds of fault that may come: {', '.join(FAULT_KINDS)}; or none",
    )
    parser.add_argument(
        "--only", type=_numbers, metavar="N,…", help="only these faults of the plan; or none"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this many seconds"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes to use (default: 1)")
    parser.add_argument(
        "--shrink", type=float, default=60.0, help="seconds to make a failure small (default: 60)"
    )
    parser.add_argument("--trace", action="store_true", help="print everything that happened")
    parser.add_argument(
        "--lines", type=int, default=_LINES_SHOWN, help="lines of a failure's trace to print"
    )
    return parser


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    seeds = range(int(first), int(last) if colon else int(first) + 1)
    if not seeds:
        raise argparse.ArgumentTypeError(f"invalid seeds {text}: expected FIRST:LAST")
    return seeds


def _faults(text: str) -> frozenset[str]:
    try:
        return parse_kinds([] if text == "none" else text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers(text: str) -> frozenset[int]:
    return frozenset(int(number) for number in text.split(",")) if text != "none" else frozenset()


if __name__ == "__main__":
    sys.exit(main())
