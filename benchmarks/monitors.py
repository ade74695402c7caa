"""Score the monitors on labelled public curves and failure logs.

`python benchmarks/monitors.py --data DIR` prints a table for each file and ends with one JSON
object. Without the data it prints a hint and exits with 0.

An *alarm* is a spike or a blip; an *act* is a finding that automation acts on (a spike or
non-finite numbers). A label counts as found if the stretch of a finding (onset to detection)
touches it, with a tolerance of two logged points. A false alarm lies outside every label, after the
first 100 points. The columns `mad` are a reference on the same points: detrended median/MAD, k = 8,
3 % floor, clipped buffer. The rules of other trainers (`benchmarks/support/loss_rules.py`) are
scored on the same curves, and on made series (`benchmarks/support/loss_series.py`) on which a rise
may be healthy: each series is right if its events were acted on in time, with their onset, and
nothing else was.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.support import public_data  # noqa: E402 (the script runs without installation)
from benchmarks.support.advice import advice_of, advice_of_class  # noqa: E402
from benchmarks.support.loss_rules import RULES  # noqa: E402
from benchmarks.support.loss_scores import OURS, print_scores, score_series  # noqa: E402
from monitors.exits import classify  # noqa: E402
from monitors.failures import CAUSE_OF, Advice, Cause, FailureClass  # noqa: E402
from monitors.loss import LossMonitor  # noqa: E402
from monitors.types import Finding, FindingKind, Sample  # noqa: E402

COLLECTED = ROOT / "tests" / "data" / "failure_logs.jsonl"
HEARSAY = Cause.INFRASTRUCTURE
"""The budget that pays for a preemption of which only a log tells."""
IGNORED_POINTS = 100
SLACK_POINTS = 2
ACTS = (FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE)
ALARMS = (*ACTS, FindingKind.LOSS_BLIP)


@dataclass(frozen=True)
class Stretch:
    """Consecutive points of a curve, as indices, both ends included."""

    start: int
    end: int

    def touches(self, other: Stretch) -> bool:
        """True if the two meet, with a tolerance of `SLACK_POINTS`."""
        return self.start <= other.end + SLACK_POINTS and other.start - SLACK_POINTS <= self.end


@dataclass
class Curve:
    """One series with its labels."""

    name: str
    samples: list[Sample]
    majors: list[Stretch] = field(default_factory=list)
    blips: list[Stretch] = field(default_factory=list)
    labels: list[Stretch] = field(default_factory=list)


def load_curves(directory: Path) -> Iterator[Curve]:
    labels = json.loads((directory / "labels.json").read_text())
    for path in sorted(directory.glob("*.csv")):
        with path.open() as lines:
            rows = list(csv.DictReader(lines))
        curve = Curve(path.stem, [to_sample(i, row) for i, row in enumerate(rows)])
        steps = [sample.step for sample in curve.samples]
        for label in labels.get(path.name, []):
            if label["severity"] == "none":
                continue
            stretch = Stretch(bisect_left(steps, label["start"]), bisect_left(steps, label["end"]))
            curve.labels.append(stretch)
            if label["severity"] == "major":
                curve.majors.append(stretch)
            elif label["severity"] == "blip":
                curve.blips.append(stretch)
        yield curve


def to_sample(index: int, row: dict[str, str]) -> Sample:
    step = int(row["step"])
    return Sample(
        attempt=1,
        rank=0,
        step=step,
        batch=step,
        time=float(index),
        loss=float(row["loss"]),
        grad_norm=float(row.get("grad_norm") or -1.0),
    )


def group_of(name: str) -> str:
    if "__vit" in name:
        return "noise control"
    if name.startswith("datablations"):
        return "LUMI (13-39 points)"
    return "AlgoPerf" if name.startswith("algoperf") else "LLM"


def run_monitor(curve: Curve) -> tuple[list[Finding], float]:
    monitor = LossMonitor()
    began = time.perf_counter()
    findings = [finding for sample in curve.samples for finding in monitor.observe(sample)]
    return findings, time.perf_counter() - began


def run_mad(curve: Curve, window: int = 128) -> list[Stretch]:
    """The reference detector: stretches of anomalous points."""
    buffer: list[float] = []
    found: list[Stretch] = []
    for i, sample in enumerate(curve.samples):
        value = sample.loss
        if not np.isfinite(value):
            found.append(Stretch(i, i))
            continue
        if len(buffer) >= 20:
            points = np.array(buffer)
            half = len(points) // 2
            rise = np.median(points[half:]) - np.median(points[:half])
            level = points - rise / (len(points) / 2) * (np.arange(len(points)) - len(points))
            center = float(np.median(level))
            spread = 1.4826 * float(np.median(np.abs(level - center)))
            limit = center + max(8 * spread, 0.03 * abs(center))
            if value > limit:
                found.append(Stretch(i, i))
                value = limit
        buffer = [*buffer[-window + 1 :], value]
    return merge(found)


def merge(points: Sequence[Stretch], gap: int = 5) -> list[Stretch]:
    merged: list[Stretch] = []
    for point in points:
        if merged and point.start - merged[-1].end <= gap:
            merged[-1] = Stretch(merged[-1].start, point.end)
        else:
            merged.append(point)
    return merged


def hits(labels: Sequence[Stretch], stretches: Sequence[Stretch]) -> int:
    return sum(any(s.touches(label) for s in stretches) for label in labels)


def false_alarms(curve: Curve, stretches: Sequence[Stretch]) -> int:
    late = [s for s in stretches if s.start >= IGNORED_POINTS]
    return sum(not any(s.touches(label) for label in curve.labels) for s in late)


def score(curve: Curve) -> tuple[Counter[str], list[int]]:
    findings, seconds = run_monitor(curve)
    steps = [sample.step for sample in curve.samples]

    def stretches(kinds: Sequence[FindingKind]) -> list[Stretch]:
        return [
            Stretch(bisect_left(steps, f.onset_step), bisect_left(steps, f.detected_step))
            for f in findings
            if f.kind in kinds
        ]

    alarms, acts = stretches(ALARMS), stretches(ACTS)
    mad = run_mad(curve)
    figures = Counter(
        majors=len(curve.majors),
        majors_alarmed=hits(curve.majors, alarms),
        majors_acted_on=hits(curve.majors, acts),
        blips=len(curve.blips),
        blips_recorded=hits(curve.blips, alarms),
        blips_acted_on=hits(curve.blips, acts),
        false_alarms=false_alarms(curve, alarms),
        false_acts=false_alarms(curve, acts),
        false_grad_norm_warnings=false_alarms(curve, stretches([FindingKind.GRAD_NORM_SPIKE])),
        mad_majors_alarmed=hits(curve.majors, mad),
        mad_blips_fired=hits(curve.blips, mad),
        mad_false_alarms=false_alarms(curve, mad),
        points=len(curve.samples),
        nanoseconds=int(seconds * 1e9),
    )
    delays = [
        max(0, min(act.end - label.start for act in touching))
        for label in curve.majors
        if (touching := [act for act in acts if act.touches(label)])
    ]
    return figures, delays


COLUMNS = {
    "majors": "major",
    "majors_alarmed": "alarm",
    "majors_acted_on": "act",
    "blips": "blips",
    "blips_recorded": "rec.",
    "blips_acted_on": "act",
    "false_alarms": "FP",
    "false_acts": "FP act",
    "false_grad_norm_warnings": "FP grad",
    "mad_majors_alarmed": "mad",
    "mad_blips_fired": "m.blip",
    "mad_false_alarms": "m.FP",
}


def row(name: str, figures: Counter[str]) -> str:
    return f"{name[:44]:<44} " + " ".join(f"{figures[key]:>7}" for key in COLUMNS)


def bench_curves(directory: Path) -> dict[str, Any]:
    print(f"{'curve':<44} " + " ".join(f"{title:>7}" for title in COLUMNS.values()))
    groups: dict[str, Counter[str]] = {}
    delays: list[int] = []
    for curve in load_curves(directory):
        figures, late = score(curve)
        print(row(curve.name, figures))
        groups.setdefault(group_of(curve.name), Counter()).update(figures)
        delays += late
    total: Counter[str] = Counter()
    print()
    for name, figures in sorted(groups.items()):
        print(row(f"all {name}", figures))
        total.update(figures)
    print(row("all", total))
    peers = bench_peers(directory)
    return {
        **peers,
        **{f"{key}_count": total[key] for key in COLUMNS},
        "act_delay_points_median": median(delays) if delays else None,
        "microseconds_per_sample": round(total["nanoseconds"] / 1e3 / max(1, total["points"]), 2),
    }


def bench_peers(directory: Path) -> dict[str, Any]:
    """The rules of other trainers on the same curves; each firing is an act."""
    scores = {name: Counter[str]() for name in RULES}
    for curve in load_curves(directory):
        losses = [sample.loss for sample in curve.samples]
        norms = [sample.grad_norm for sample in curve.samples]
        reported = norms if any(norm > 0 for norm in norms) else []
        for name, rule in RULES.items():
            stretches = merge([Stretch(i, i) for i in rule(losses, reported)])
            scores[name].update(
                majors_acted_on=hits(curve.majors, stretches),
                blips_acted_on=hits(curve.blips, stretches),
                false_acts=false_alarms(curve, stretches),
            )
    print(f"\n{'rule':<18} {'majors':>8} {'blips':>8} {'false':>8}   acted on")
    for name, score_ in scores.items():
        row_ = (score_["majors_acted_on"], score_["blips_acted_on"], score_["false_acts"])
        print(f"{name:<18} " + " ".join(f"{value:>8}" for value in row_))
    return {
        f"{name}_{what}_count": value
        for name, score_ in scores.items()
        for what, value in score_.items()
    }


def bench_series(draws: int) -> dict[str, Any]:
    """Made series: right, harm and missed, by rule."""
    if not draws:
        return {}
    scores = score_series(draws)
    print()
    print_scores(scores, print)
    return {
        "series_count": scores[OURS]["series"],
        **{
            f"series_{name}_{what}_count": score_[what]
            for name, score_ in scores.items()
            for what in ("right", "harm", "missed")
        },
    }


def read_logs(path: Path) -> list[dict[str, str]]:
    """Logs with `log`, `class` and `action`, under the names of either file."""
    logs = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {
            **log,
            "class": log.get("class") or log["label"],
            "action": log.get("action") or log.get("retryable", ""),
        }
        for log in logs
    ]


def bench_logs(logs: list[dict[str, str]], name: str) -> dict[str, Any]:
    """Class, budget and action of each log; to wait and to retry are one action here.

    The exit code is 1 for all: the words alone are judged.
    """
    right: Counter[str] = Counter()
    confused = []
    for log in logs:
        failure = classify(log["log"], 1)
        assert failure is not None, log["id"]
        label = FailureClass(log["class"])
        action = log["action"].replace("wait", Advice.RETRY) or advice_of_class(label)
        found_action = advice_of(failure)
        right["class"] += failure.failure_class is label
        right["action"] += found_action == action
        cause = CAUSE_OF[label]
        right["cause"] += failure.cause is (HEARSAY if cause is Cause.PREEMPTION else cause)
        if failure.failure_class is not label or found_action != action:
            found = f"{failure.failure_class}, {found_action}"
            confused.append(f"{log['id']}: {label}, {action} classified as {found}")
    print(
        f"\n{name.replace('_', ' ')}: {right['class']} classes and {right['action']} actions"
        f" of {len(logs)} right"
    )
    for line in confused:
        print(f"  {line}")
    return {
        f"{name}_count": len(logs),
        **{
            f"{name}_{what}_accuracy_ratio": round(right[what] / max(1, len(logs)), 3)
            for what in ("class", "cause", "action")
        },
    }


def bench_collected() -> dict[str, Any]:
    """The logs of this repository's tests, by the time at which they were collected."""
    logs = read_logs(COLLECTED)
    return {
        key: value
        for part in dict.fromkeys(log["set"] for log in logs)
        for key, value in bench_logs(
            [log for log in logs if log["set"] == part], f"collected_{part}"
        ).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the monitors on labelled public data.")
    parser.add_argument("--data", type=Path, default=public_data.default(), help=public_data.HELP)
    parser.add_argument(
        "--series", type=int, default=3, help="made series of each maker (default: 3)"
    )
    given = parser.parse_args()
    data = given.data
    figures: dict[str, Any] = {}
    for name, needed, bench in (
        ("loss_curves", "labels.json", lambda path: bench_curves(path.parent)),
        (
            "failure_logs",
            "failure_logs.jsonl",
            lambda path: bench_logs(read_logs(path), "failure_logs"),
        ),
    ):
        path = data / name / needed
        if problem := public_data.missing(path):
            print(f"{name} not scored: {problem}")
            figures[f"{name}_missing"] = True
        else:
            figures |= bench(path)
    figures |= bench_series(given.series)
    figures |= bench_collected()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
