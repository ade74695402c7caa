"""The loss curve as inline SVG, with restarts, rollbacks and incidents marked. Pure.

It is drawn twice, for a wide page and for a phone: scaled down, the text of the wide one would be
4 px high. Style sheets choose; colours are theirs too (`orchestrator.reports.style`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from orchestrator.core.text import counted
from orchestrator.reports.curve import Curve, Point
from orchestrator.reports.events import RunEvent
from orchestrator.reports.markup import Markup, element
from orchestrator.reports.scales import Scale, loss_scale, number

_BADGE = 9.0
"""Radius of the number of an event."""
_ROWS = 3
"""Rows of numbers above the curve; an event that has no place in any has a short line only."""
_TOP = 6.0
_NAN_HEIGHT = 14.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """The size of a drawing, and its scales."""

    name: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: Scale
    y: Scale


def loss_charts(curve: Curve, events: Sequence[RunEvent], saved: Sequence[int]) -> Markup:
    """The drawings for a wide page and for a phone. `saved`: steps with a checkpoint."""
    drawings = [
        _chart(_frame("wide", 960, 360, curve, events), curve, events, saved),
        _chart(_frame("narrow", 360, 300, curve, events), curve, events, saved),
    ]
    return element("div", drawings, class_="charts")


def described(curve: Curve, events: Sequence[RunEvent]) -> str:
    """The curve in a sentence, for those who do not see it."""
    points = [point for line in curve.lines for point in line]
    if not points:
        return "There is no finite loss."
    (first, begin), (last, end) = points[0], points[-1]
    low = min(curve.values)
    said = (
        f"The loss goes from {begin:.4g} at step {first:,} to {end:.4g} at step {last:,}; its "
        f"lowest is {low:.4g}. {counted(len(events), 'event')} marked."
    )
    if curve.lost:
        many = len(curve.lost)
        said += f" Steps without a finite loss: {many} {'stretch' if many == 1 else 'stretches'}."
    return said


def _frame(
    name: str, width: float, height: float, curve: Curve, events: Sequence[RunEvent]
) -> _Frame:
    left, right = (64.0, width - 16) if name == "wide" else (50.0, width - 8)
    last = max(curve.last_step, curve.first_step + 1)
    x = Scale(curve.first_step, last, left, right)
    rows = 1 + max((row or 0 for _, _, row in _placed(x, events)), default=0)
    top, bottom = _TOP + rows * 2.2 * _BADGE + _NAN_HEIGHT, height - 40
    y = loss_scale(curve.values, bottom, top)
    return _Frame(name, width, height, left, right, top, bottom, x, y)


def _chart(frame: _Frame, curve: Curve, events: Sequence[RunEvent], saved: Sequence[int]) -> Markup:
    name = f"loss-{frame.name}"
    return element(
        "svg",
        element("title", "Loss by step", id=f"{name}-title"),
        element("desc", described(curve, events), id=f"{name}-text"),
        _axes(frame),
        _saves(frame, saved),
        _marks(frame, events),
        element("path", d=_area(frame, curve.band), class_="band") if curve.band else None,
        [_line(frame, line, "undone") for line in curve.undone],
        [_line(frame, line, "loss") for line in curve.lines],
        _lost(frame, curve.lost),
        viewBox=f"0 0 {frame.width:.0f} {frame.height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
        class_=frame.name,
    )


def _axes(frame: _Frame) -> list[Markup]:
    parts = []
    for value in frame.y.ticks(7 if frame.name == "wide" else 5):
        y = frame.y(value)
        parts += [
            element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"),
            element("text", number(value), x=frame.left - 6, y=y + 4, text_anchor="end"),
        ]
    for value in frame.x.ticks(8 if frame.name == "wide" else 4):
        x = frame.x(value)
        anchor = "end" if x > frame.right - 20 else "middle"
        parts += [
            element("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4, class_="axis"),
            element("text", number(value), x=x, y=frame.bottom + 18, text_anchor=anchor),
        ]
    loss = "loss, log scale" if frame.y.log else "loss"
    middle = (frame.left + frame.right) / 2
    return [
        *parts,
        element("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom,
                class_="axis"),
        element("text", loss, x=4, y=_TOP + 12, class_="label"),
        element("text", "step", x=middle, y=frame.height - 6, text_anchor="middle", class_="label"),
    ]  # fmt: skip


def _path(frame: _Frame, points: Iterable[Point]) -> str:
    """Straight lines between points; one point alone becomes a dot, by the round ends of lines."""
    places = [f"{frame.x(step):.1f} {frame.y(loss):.1f}" for step, loss in points]
    return f"M{'L'.join(places)}" + ("h0" if len(places) == 1 else "")


def _line(frame: _Frame, points: Sequence[Point], kind: str) -> Markup:
    return element("path", d=_path(frame, points), class_=kind)


def _area(frame: _Frame, band: Sequence[tuple[int, float, float]]) -> str:
    above = [(step, high) for step, _, high in band]
    below = [(step, low) for step, low, _ in reversed(band)]
    return f"{_path(frame, [*above, *below])}Z"


def _saves(frame: _Frame, saved: Sequence[int]) -> list[Markup]:
    """A tick at the axis for each checkpoint that can be loaded."""
    places = sorted({round(frame.x(step)) for step in saved})
    y = frame.bottom
    return [element("path", d=f"M{x} {y - 7:.0f}v7", class_="save") for x in places]


def _lost(frame: _Frame, stretches: Sequence[tuple[int, int]]) -> list[Markup]:
    """A bar above the curve for each stretch of losses that are not finite."""
    if not stretches:
        return []
    y = frame.top - _NAN_HEIGHT
    bars: list[list[float]] = []
    for first, last in stretches:
        begin, end = frame.x(first), max(frame.x(last), frame.x(first) + 3)
        if bars and begin <= bars[-1][1] + 1:
            bars[-1][1] = max(bars[-1][1], end)
        else:
            bars.append([begin, end])
    label_x = min(bars[-1][1] + 4, frame.right - 28)
    return [
        *(
            element("rect", x=begin, y=y, width=end - begin, height=8.0, class_="nan")
            for begin, end in bars
        ),
        element("text", "NaN", x=label_x, y=y + 8, class_="nan-label"),
    ]


def _marks(frame: _Frame, events: Sequence[RunEvent]) -> list[Markup]:
    return [_mark(frame, event, x, row) for event, x, row in _placed(frame.x, events)]


def _placed(x: Scale, events: Sequence[RunEvent]) -> list[tuple[RunEvent, float, int | None]]:
    """Events with their place, and the row of their number; None: there is no room for it.

    Restarts and rollbacks get their rows first: incidents that stopped nothing may be hundreds.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in range(_ROWS)]
    placed = []
    for event in sorted(events, key=lambda each: (each.restart is None, each.step or 0)):
        if event.step is None:
            continue
        at, half = x(event.step), _half(event) + 1
        row = next(
            (
                r
                for r in range(_ROWS)
                if all(at + half <= low or high <= at - half for low, high in taken[r])
            ),
            None,
        )
        if row is not None:
            taken[row].append((at - half, at + half))
        placed.append((event, at, row))
    return sorted(placed, key=lambda each: each[0].number)


def _half(event: RunEvent) -> float:
    """Half the width of a number's badge."""
    return _BADGE + max(0, len(str(event.number)) - 2) * 3.5


def _mark(frame: _Frame, event: RunEvent, x: float, row: int | None) -> Markup:
    title = f"{event.number}: {event.kind} at step {event.step:,}; {event.remedy}"
    y = frame.top - _NAN_HEIGHT - _BADGE - 2 - (row or 0) * 2.2 * _BADGE
    begin = frame.top - 4 if row is None else y + _BADGE
    end = frame.top + 4 if row is None else frame.bottom
    return element(
        "a",
        element("title", title),
        element("line", x1=x, x2=x, y1=begin, y2=end, class_="mark"),
        _back(frame, event, x),
        None if row is None else _badge(event, x, y),
        href=f"#event-{event.number}",
        class_=f"event {event.tone}",
    )


def _badge(event: RunEvent, x: float, y: float) -> list[Markup]:
    """A circle for a restart, a square for a rollback, a hollow circle for what stopped nothing."""
    half = _half(event)
    shape = element(
        "rect",
        x=x - half,
        y=y - _BADGE,
        width=2 * half,
        height=2 * _BADGE,
        rx=2.0 if event.tone == "rollback" else _BADGE,
        class_="badge",
    )
    text = element("text", str(event.number), x=x, y=y + 4, text_anchor="middle", class_="in-badge")
    return [shape, text]


def _back(frame: _Frame, event: RunEvent, x: float) -> Markup | None:
    """An arrow to the step from which the run went on, if that is visibly earlier."""
    restart = event.restart
    if restart is None or restart.resumed_step is None or not restart.lost_steps:
        return None
    to = frame.x(restart.resumed_step)
    if x - to < 8:
        return None
    y = frame.bottom - 12
    return element("path", d=f"M{x:.1f} {y:.1f}H{to:.1f}l6 -4m-6 4l6 4", class_="back")
