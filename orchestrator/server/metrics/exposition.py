"""The text of a scrape, in the format 0.0.4 of Prometheus.

The problem: a thousand runs are ten thousand lines, for which a general client library takes a
tenth of a second. The design: the text of a metric is a template that is kept from scrape to scrape
while its labels stay the same, and is filled in with all values at once. Limits: labels are
escaped, names are trusted, as they come from the catalogue.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.server.metrics.catalogue import METRICS

_PIECE = 1 << 18
"""Bytes sent at once: more would be copied into buffers on the way to the socket."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def label(value: str) -> str:
    """A label's value, escaped."""
    if "\\" in value or '"' in value or "\n" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


def labels_text(names: Iterable[str], values: Iterable[str]) -> str:
    """`run="tiny",run_id="01J"`."""
    return ",".join(f'{n}="{label(v)}"' for n, v in zip(names, values, strict=True))


def number(value: float) -> str:
    """A value as Prometheus reads it: `1`, `0.5`, `NaN`, `+Inf`."""
    text = repr(value)
    if text[-1] in "fn":
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[text]
    return text


class Templates:
    """Lines of metrics without their values, from scrape to scrape."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[str, ...], bytes]] = {}

    def fill(self, name: str, labels: tuple[str, ...], values: Sequence[float]) -> bytes:
        """The lines of a metric: texts of labels, and a value for each of them."""
        # To sum is the cheapest look at all of them, and what is not finite is rare.
        if not math.isfinite(sum(values)):
            pairs = zip(labels, values, strict=True)
            return "".join([f"{name}{{{of}}} {number(value)}\n" for of, value in pairs]).encode()
        known = self._known.get(name)
        if known is None or known[0] != labels:
            safe = [each.replace("%", "%%") for each in labels]
            known = labels, "".join([f"{name}{{{of}}} %a\n" for of in safe]).encode()
            self._known[name] = known
        return known[1] % tuple(values)


class Page:
    """A scrape under construction.

    Args:
        templates: Of the scrapes before.
    """

    def __init__(self, templates: Templates | None = None) -> None:
        self._parts: list[bytes | memoryview] = []
        self._templates = templates or Templates()

    def header(self, name: str) -> None:
        """Begin a metric of the catalogue; KeyError: there is none of that name."""
        metric = METRICS[name]
        text = metric.text.replace("`", "").replace("\\", "\\\\")
        self._parts.append(f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n".encode())

    def one(self, name: str, value: float) -> None:
        """A metric without labels."""
        self.header(name)
        self._parts.append(f"{name} {number(value)}\n".encode())

    def by_label(self, name: str, values: Mapping[str, float]) -> None:
        """A metric with one label, by its value."""
        (only,) = METRICS[name].labels
        self.series(name, ((f'{only}="{label(each)}"', values[each]) for each in values))

    def series(self, name: str, samples: Iterable[tuple[str, float]]) -> None:
        """A metric with labels, each sample as text of its labels and value."""
        self.header(name)
        pairs = list(samples)
        labels, values = zip(*pairs, strict=True) if pairs else ((), ())
        self._parts.append(self._templates.fill(name, labels, values))

    def histograms(
        self,
        name: str,
        bounds: Sequence[float],
        series: Iterable[tuple[str, Sequence[int], float]],
    ) -> None:
        """A histogram: text of labels, counts (not accumulated, one more than bounds), and sum."""
        self.header(name)
        for labels, counts, total in series:
            self._parts.append(fill(histogram_template(name, labels, bounds), counts, total))

    def lines(self, text: memoryview) -> None:
        """Lines that are ready."""
        self._parts.append(text)

    def encode(self) -> bytes:
        """All of it, as the body of the answer."""
        return b"".join(self._parts)

    @property
    def parts(self) -> Iterator[memoryview]:
        """All of it, in pieces to be sent one after the other; it is copied nowhere."""
        rest: list[bytes | memoryview] = []
        for part in self._parts:
            if len(part) < _PIECE:
                rest.append(part)
                continue
            yield memoryview(b"".join(rest))
            rest = []
            view = memoryview(part)
            yield from (view[at : at + _PIECE] for at in range(0, len(part), _PIECE))
        yield memoryview(b"".join(rest))


def histogram_template(name: str, labels: str, bounds: Sequence[float]) -> bytes:
    """The lines of one histogram, to be filled in by `fill`."""
    safe = labels.replace("%", "%%")
    before, alone = (f"{safe},", f"{{{safe}}}") if safe else ("", "")
    titles = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    lines = [f'{name}_bucket{{{before}le="{title}"}} %d\n' for title in titles]
    end = f"{name}_count{alone} %d\n{name}_sum{alone} %a\n"
    return "".join([*lines, end]).encode()


def fill(template: bytes, counts: Sequence[int], total: float) -> bytes:
    """The lines of one histogram with its values."""
    steps = tuple(itertools.accumulate(counts))
    return template % (*steps, steps[-1], total)
