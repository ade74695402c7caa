"""The report of a scenario: its figures as plain, deterministic data.

GPU time is weighted by the GPUs of each run. ETTR (effective training time ratio) is productive
over allocated GPU time, from the core's own ledger.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.views.phases import PHASES
from orchestrator.simulation.scenario.metrics import FIRST_START, LOSSES, SAVES, RunTally
from orchestrator.simulation.scenario.model import DAY, Delay, Mishap, SimulatedRun
from orchestrator.simulation.scenario.random_streams import expected_failures, lemons
from orchestrator.simulation.scenario.world import World

Data = dict[str, Any]
_MAX_RUNS, _MAX_MARKS = 50, 1_000
"""Limits of the lists of runs and of disturbances in a report."""


def report(world: World) -> Data:
    """All figures, as `babysit simulate -o json` prints them."""
    scenario, tally = world.scenario, world.tally
    runs = list(tally.runs.values())
    book = _book(world, runs)
    allocated = sum(book.values()) - book[Bucket.QUEUED]
    losses = _losses(runs, allocated)
    return {
        "scenario": scenario.name,
        "description": scenario.description,
        "seed": scenario.seed,
        "days": scenario.days,
        "nodes": scenario.cluster.size,
        "gpus": scenario.cluster.size * scenario.cluster.gpus_per_node,
        "ettr": _ratio(book[Bucket.PRODUCTIVE], allocated),
        "expected_ettr": _expected(world, runs),
        "gpu_days": {bucket: _days(seconds) for bucket, seconds in book.items()},
        "slow_share": _slow(world, runs, allocated),
        "losses": losses,
        "failures": _failures(world),
        "interruptions": sum(hit for name, hit in _hits(world).items() if _interrupts(world, name)),
        "expected_interruptions": sum(
            entry["expected"] for entry in _failures(world) if entry["interrupts"]
        ),
        "restarts": _restarts(tally.restarts.values()),
        "recovery": recovery_seconds(tally.restarts.values()),
        "incidents": dict(sorted(tally.incidents.items())),
        "runs": dict(sorted(Counter(str(known.run.state) for known in runs).items())),
        "queue": _queue(runs),
        "node_use": _node_use(world, allocated, book[Bucket.PRODUCTIVE]),
        "freezes": [{"begin_seconds": b, "end_seconds": e} for b, e in tally.freezes],
        "lemons": _lemons(world),
        "refused": world.engine.refusals[:20],
        "run_list": [_run(world, known) for known in runs[:_MAX_RUNS]],
        "disturbances": [
            {"at_seconds": at, "run": run, "by": by} for at, run, by in tally.marks[:_MAX_MARKS]
        ],
        "over_time": [
            {
                "day": sample.day,
                "ettr": _ratio(sample.productive, sample.allocated),
                "busy_nodes": sample.busy_nodes,
                "queued": sample.queued,
                "running": sample.running,
                "recovering": sample.recovering,
            }
            for sample in tally.samples
        ],
        "events": world.engine.turns,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _days(seconds: float) -> float:
    return seconds / DAY


def _book(world: World, runs: Iterable[RunTally]) -> dict[str, float]:
    """GPU seconds by bucket; `queued` is waiting time and not allocated."""
    book: dict[str, float] = {str(bucket): 0.0 for bucket in Bucket}
    for known in runs:
        seconds = time_ledger.totals(known.run.ledger, known.run.ended_at or world.engine.moment())
        for bucket in book:
            book[bucket] += seconds[bucket] * known.gpus
    return book


def _losses(runs: Iterable[RunTally], allocated: float) -> list[Data]:
    """Lost share of the allocated GPU time by cause, the largest first."""
    by_cause: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for known in runs:
        for (cause, bucket), seconds in known.losses.items():
            by_cause[cause][bucket] += seconds * known.gpus
    rows: list[Data] = [
        {
            "cause": cause,
            "gpu_days": _days(sum(parts.values())),
            "share": _ratio(sum(parts.values()), allocated) or 0.0,
            "by_bucket": {
                str(bucket): _ratio(parts[bucket], allocated) or 0.0
                for bucket in LOSSES
                if bucket in parts
            },
        }
        for cause, parts in by_cause.items()
    ]
    return sorted(rows, key=lambda row: (-row["share"], row["cause"]))


def _slow(world: World, runs: Iterable[RunTally], allocated: float) -> float:
    """Share of the allocated GPU time lost to a pace below the undisturbed one."""
    slow = sum(world.slow_seconds.get(known.run.id, 0.0) * known.gpus for known in runs)
    return _ratio(slow, allocated) or 0.0


# failures and restarts


def _hits(world: World) -> dict[str, int]:
    return {name: hit for name, (_, hit) in world.happened.items()}


def _interrupts(world: World, name: str) -> bool:
    """True if the failure ends an attempt unexpectedly, unlike recorded and planned ones."""
    [model] = [model for model in world.scenario.failures if model.name == name]
    harmless = {Mishap.LOSS_BLIP, Mishap.STRAGGLER, Mishap.SLOW_STORAGE, Mishap.PREEMPTION}
    return model.does not in harmless


def _failures(world: World) -> list[Data]:
    scenario = world.scenario
    rows = []
    for model in scenario.failures:
        happened, hit = world.happened[model.name]
        rows.append(
            {
                "name": model.name,
                "does": str(model.does),
                "expected": expected_failures(model, scenario),
                "happened": happened,
                "disturbed": hit,
                "interrupts": _interrupts(world, model.name),
            }
        )
    return rows


def _restarts(restarts: Iterable[Restart]) -> list[Data]:
    counts = Counter((str(r.failure_class), str(r.cause), r.remedy.value) for r in restarts)
    return [
        {"class": class_, "cause": cause, "remedy": remedy, "count": count}
        for (class_, cause, remedy), count in sorted(
            counts.items(), key=lambda item: (-item[1], item[0])
        )
    ]


def recovery_seconds(restarts: Iterable[Restart]) -> Data:
    """Count, mean, median and 99th percentile of each recovery phase and in all, in seconds."""
    by_phase: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "total")}
    for restart in restarts:
        seconds = restart.seconds
        for phase, value in seconds.items():
            by_phase[phase].append(value)
        if restart.recovered_at is not None:
            by_phase["total"].append((restart.recovered_at - restart.failed_at).total_seconds())
    return {phase: spread(values) for phase, values in by_phase.items()}


def spread(values: Sequence[float]) -> Data:
    """Count, mean and percentiles (the value at index floor(q n) in ascending order)."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0, "mean": None, "p50": None, "p99": None}
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "p50": ordered[int(0.5 * len(ordered))],
        "p99": ordered[int(0.99 * len(ordered))],
    }


def _expected(world: World, runs: Sequence[RunTally]) -> float | None:
    """The closed-form ETTR of the largest run, as a cross-check (Kokolis et al., Meta 2024).

    `E = (1 - N r (u0 + dt/2)) / (1 + w/dt)`: N r is the observed disturbances per second, u0 the
    mean recovery from the ledger (with the longer first step, without recomputed steps), dt the
    seconds between saves, w the blocking seconds of a save.
    """
    if not runs:
        return None
    largest = max(runs, key=lambda known: (known.gpus, known.run.id))
    simulated = world.simulated(largest.run.id)
    restarts = [r for (run, _), r in world.tally.restarts.items() if run == largest.run.id]
    seconds = time_ledger.totals(largest.run.ledger, world.engine.moment())
    allocated = sum(seconds.values()) - seconds[Bucket.QUEUED]
    if allocated <= 0:
        return None
    overhead = sum(
        lost
        for (cause, bucket), lost in largest.losses.items()
        if cause not in {FIRST_START, SAVES} and bucket != Bucket.LOST
    )
    u0 = overhead / max(1, len(restarts)) + _typical(world.scenario.recovery.first_step)
    interval = simulated.spec.checkpoint.every_steps * simulated.step_seconds
    lost = len(restarts) / allocated * (u0 + interval / 2)
    return max(0.0, 1.0 - lost) / (1.0 + _blocked_each(simulated) / interval)


def _blocked_each(run: SimulatedRun) -> float:
    """Seconds for which saves block training in one interval of the directory tier."""
    checkpoint = run.spec.checkpoint
    memory = checkpoint.memory_every_steps
    more = checkpoint.every_steps / memory * run.memory_save_seconds if memory else 0.0
    return run.save_seconds + more


def _typical(delay: Delay) -> float:
    return delay if isinstance(delay, float) else delay.median


# the fleet


def _queue(runs: Iterable[RunTally]) -> Data:
    """Seconds from submission to the first nodes."""
    listed = list(runs)
    return {
        **spread([each.first_wait for each in listed if each.first_wait is not None]),
        "never_placed": sum(each.first_wait is None for each in listed),
    }


def _node_use(world: World, allocated: float, productive: float) -> Data:
    scenario, samples = world.scenario, world.tally.samples
    gpus = scenario.cluster.size * max(1, scenario.cluster.gpus_per_node) * scenario.seconds
    busy = sum(sample.busy_nodes for sample in samples) / max(1, len(samples))
    return {
        "busy_nodes_share": busy / scenario.cluster.size,
        "allocated_share": allocated / gpus,
        "productive_share": productive / gpus,
    }


def _lemons(world: World) -> Data | None:
    """How many of the failing nodes automation has found, by avoiding or cordoning them."""
    truth = lemons(world.scenario, list(world.site.hosts))
    if not truth:
        return None
    avoided = {node for known in world.tally.runs.values() for node in known.run.avoid}
    suspects = avoided | world.tally.cordoned
    return {
        "there": sorted(truth),
        "found": sorted(truth & suspects),
        "others_suspected": len(suspects - truth),
    }


def _run(world: World, known: RunTally) -> Data:
    run = known.run
    now = run.ended_at or world.engine.moment()
    begin = world.scenario.begin
    return {
        "name": run.id,
        "state": str(run.state),
        "reason": run.reason,
        "gpus": known.gpus,
        "attempts": run.attempt,
        "step": run.best_step,
        "ettr": time_ledger.ettr(run.ledger, now),
        "submitted_seconds": (run.submitted_at - begin).total_seconds(),
        "ended_seconds": (run.ended_at - begin).total_seconds() if run.ended_at else None,
        "first_wait_seconds": known.first_wait,
        "seconds": time_ledger.totals(run.ledger, now),
    }
