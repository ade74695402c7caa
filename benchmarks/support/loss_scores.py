"""Scores of rules on made series of losses: what each did, against what should happen."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from benchmarks.support.loss_rules import RULES
from benchmarks.support.loss_series import KINDS
from benchmarks.support.loss_verdicts import Act, Made, acts_of, judged

OURS = "ours"
_GAP_POINTS = 5
"""Points closer than this are one act."""


def score_series(draws: int) -> dict[str, Counter[str]]:
    """Series right, harmed and missed, by rule; keys of a kind are `KIND right` and `KIND series`.

    Args:
        draws: Series of each maker.
    """
    scores: dict[str, Counter[str]] = {name: Counter() for name in (OURS, *RULES)}
    for kind, makers in KINDS.items():
        for maker in makers:
            for draw in range(draws):
                rng = np.random.default_rng([draw, zlib.crc32(maker.__name__.encode())])
                made = maker(rng)
                for name, score in scores.items():
                    verdict = judged(made, _acts(name, made))
                    score[verdict] += 1
                    score[f"{kind} right"] += verdict == "right"
                    score[f"{kind} series"] += 1
                    score["series"] += 1
    return scores


def _acts(name: str, made: Made) -> list[Act]:
    if name == OURS:
        return acts_of(made)
    sign = 1.0 if made.direction == "down" else -1.0
    norms = [] if made.grad_norms is None else made.grad_norms.tolist()
    return merged(RULES[name]((sign * made.losses).tolist(), norms))


def merged(points: list[int]) -> list[Act]:
    """Indices of points as acts, those close together as one. These rules name no onset."""
    acts: list[Act] = []
    last = -_GAP_POINTS - 1
    for point in points:
        if point - last > _GAP_POINTS:
            acts.append(Act(point + 1, point + 1))
        last = point
    return acts


def print_scores(scores: dict[str, Counter[str]], show: Callable[[str], None]) -> None:
    """A table: series right by kind, then in all, harmed and missed."""
    names = list(scores)
    show(f"{'made series':<24} " + " ".join(f"{name[:15]:>15}" for name in names))
    for kind in KINDS:
        total = scores[OURS][f"{kind} series"]
        cells = (f"{scores[name][f'{kind} right']} of {total}" for name in names)
        show(f"{kind:<24} " + " ".join(f"{cell:>15}" for cell in cells))
    for row in ("right", "harm", "missed"):
        cells = (str(scores[name][row]) for name in names)
        show(f"{'all ' + row:<24} " + " ".join(f"{cell:>15}" for cell in cells))
