"""Reads a log as lines: without what launchers and loggers put before them, with their severity.

The problem: the same message arrives as `RuntimeError: x`, as `[default3]:[rank3]: RuntimeError:
x`, as `2026-01-01T00:00:00Z stderr F …`, in colour, behind a progress bar that never ended its
line. The design: prefixes are taken off one after another until none is left; a severity that a
prefix names is kept. What remains of indentation is kept too, because tracebacks need it. Limits:
a prefix nobody has seen stays; then the line still matches rules, but begins no traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

LINE_CHARACTERS = 1_000
"""Of a longer line the rest is not read."""


class LogLevel(IntEnum):
    """The severity that a line states."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    PLAIN = 35  # says nothing about it
    ERROR = 40


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log."""

    text: str
    """Without prefixes; indentation is kept."""
    raw: str
    """As printed, without colour."""
    level: LogLevel
    rank: str
    """The rank in a launcher's prefix; empty without one."""
    is_machine: bool
    """Printed by a kernel, a driver, a resource manager or a communication library (its form says
    so; nothing proves it)."""
    is_progress: bool
    """A step, a bar, a number of an epoch: training went on after all lines above."""


_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")
_BAR_END = re.compile(r"((?:\d+:)?\d+:\d+<[^\]\n]{0,60}\])(?=[^\s,\]])")
_GLUED = re.compile(r"(?<=[^\s|(│─])(?=Traceback \(most recent call last\):)")
_BAR = re.compile(
    r"\d+%\s?\||\d+(?:\.\d+)?\s?(?:it|s|examples|tok\w*|B)/(?:s|it|example)\b|\[=+>?\.*\]"
)

_TIME = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_DAY = r"(?:\d{4}|\d\d)[-/]\d\d[-/]\d\d(?:\d\d)?|\d\d[-/]\d\d"
_WEEKDAY = r"Mon|Tue|Wed|Thu|Fri|Sat|Sun"
_MONTH = r"Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_SITE = r"[\w./-]+\.(?:cpp|cc|cu|py|h|hpp|c|rs|go)\w*:\d+"
_GLOG = r"(?P<glog>[IWEF])(?:\d{4})? ?(?:\d\d-\d\d )?(?:\d\d:\d\d:\d\d(?:\.\d+)?)?(?: +\d+)?"
_LEVELS = r"TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|ERR|SEVERE|CRITICAL|FATAL"
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?:{_DAY})T{_TIME}(?:Z|[+-]\d\d:?\d\d)?:? ?(?:(?:stdout|stderr) [FP] )?",  # CRI, ISO
        rf"\[?(?:{_DAY})[ :]{_TIME}(?: ?[+-]\d\d:?\d\d|Z| UTC)?\]?(?:\s?[:|-])* ?",
        rf"(?:{_WEEKDAY})? ?(?:{_MONTH}) +\d+ {_TIME} (?:\d{{4}} )?",
        rf"\[?{_TIME}\]? ",
        r"\[pod/[\w./-]+\] ?",  # kubectl --prefix
        r"\[(?:default|trainer|worker|node|actor|train)-?\d*(?:\|\d+)?\]: ?",  # torchrun --tee
        r"\[(?:[Rr]ank|RANK):? ?\d+\]:? ?",
        r"(?:\| ?)?[Rr]ank ?\d+ ?[:|] ?",
        r"\[\d+, ?\d+\](?:<\w+>)?: ?",  # mpirun --tag-output
        r"\[[\w.-]+:\d+\] (?=\S)",  # mpirun, [host:pid]
        r"\((?:[\w.<>-]+ )?pid=\d+(?:, ip=[\d.a-fA-F:]+)?\) ?",  # Ray
        r"\((?:raylet|autoscaler|gcs_server)[^)]*\) ?",
        r" *\d+: (?=\D)",  # srun --label
        r"(?:[a-z][\w.]*-\d[\w.-]*|(?:ip|node|gpu|worker|host|algo)[\w.-]*\d[\w.-]*): ",  # pdsh
        rf"\[?{_GLOG} ?{_SITE}\] ?",
        rf"\[?\b(?P<level>{_LEVELS})\b(?:\]|\s*\|)(?:\s?[:-])* ?",
        rf"(?:- )?(?:[\w.]+ - )?(?P<dashed>{_LEVELS}) - ",
        rf"(?P<rooted>{_LEVELS}):[\w.]+:(?:\d+:)?",
        rf"(?P<sited>{_LEVELS})\s+(?:{_DAY}\s{_TIME}\s)?(?:\S+:\d+\]|[\w.]+:\d+[\]:]|-|:)\s?",
        rf"\[(?P<filed>{_LEVELS})\|[^\]]*\](?: ?{_DAY} {_TIME})? ?>> ",
        r"\[[\w./-]+\.py:\d+(?::\w+)?\] ?",
        r"\[deepspeed\] ?",
        r"[\w.:/<>-]+:\d+ - ",  # loguru
    )
)
_NAMED_LEVEL = re.compile(
    rf"(?:^|[\s\[|(:])(?P<level>{_LEVELS})(?=[\s\]|):,])|\blevel=(?P<logfmt>\w+)"
    r"|\bNCCL (?P<nccl>INFO|WARN|TRACE)\b|(?:^|: )(?P<warning>\w*Warning): "
)
_LEVEL = {
    "TRACE": LogLevel.DEBUG,
    "DEBUG": LogLevel.DEBUG,
    "INFO": LogLevel.INFO,
    "I": LogLevel.INFO,
    "NOTICE": LogLevel.INFO,
    "W": LogLevel.WARNING,
    "WARN": LogLevel.WARNING,
    "WARNING": LogLevel.WARNING,
}
_RANK = re.compile(
    r"\[(?:[Rr]ank|RANK):? ?(\d+)\]|\[(?:default|trainer|worker)-?(\d+)(?:\|\d+)?\]:"
    r"|\b[Rr]ank ?(\d+)[: |]"
    r"|^\[\d+, ?(\d+)\]|\(\w+ pid=(\d+)|^ *(\d+): "
)
_MACHINE = re.compile(
    r"\bNVRM:|\bkernel: |\[drm:\w+ |\bamdgpu [0-9a-f]{4}:|^\[\s*\d+\.\d+\] |\bslurmstepd"
    r"|\bsrun: error|\bkubelet\b|\bkube\w*-?\w*:"
    r"|\bNCCL WARN\b|\bUCX\s+(?:ERROR|FATAL)|\bib_mlx5_log|\blibfabric:|\bLustreError|\bnfs: server"
    r"|\boom[-_ ]kill|Out of memory: Kill|\bSXid\b|\bXid\b|\bmmfs\w*:|-scheduler\b|-controller\b"
    r"|\[[EF](?:\d{4})?[ \d:.]*\w*(?:ProcessGroup|socket|TCPStore|HeartbeatMonitor)\w*\.c"
)
_PROGRESS = re.compile(
    r"(?:^|[\s\[|{'\"(])(?:global[_ ]?)?(?:step|iter(?:ation)?|epoch|batch|ep|update)s?['\"]?"
    r"[\s:=\[#]{0,4}\d+|\b(?:train(?:ing)?_)?loss['\"]?\s?[:=]?\s?-?\d|^\[\d{4,}\]",
    re.IGNORECASE,
)
_NO_PROGRESS = re.compile(
    r"error|fail|exception|\bnan\b|\binf\b|abort|fatal|kill|cancel|corrupt|assert|timed? ?out|rror:"
    r"|rerun|traceback|preempt|invocation|sav(?:e|ing)|load",
    re.IGNORECASE,
)


def read_lines(log: str) -> list[LogLine]:
    """The lines of a log, in order; states of progress bars that were overwritten are dropped."""
    lines = [as_line(raw) for raw in _split(_ANSI.sub("", log))]
    prefixes = _learned([line.text for line in lines])
    if not prefixes:
        return lines
    return [
        replace(line, text=line.text[found.end() :])
        if (found := prefixes.match(line.text))
        else line
        for line in lines
    ]


_UNKNOWN_PREFIX = re.compile(
    r"(?P<prefix>(?=[^\n]*\w)[^\"'│\n]{1,60}?)"
    r"(?:Traceback \(most recent|  File \"[^\"]+\", line \d)"
)


def _learned(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Prefixes that nobody described: what stands before tracebacks and frames, numbers aside."""
    found = {match["prefix"] for text in texts if (match := _UNKNOWN_PREFIX.match(text))}
    shapes = {
        re.sub(r"\d+", r"\\d+", re.escape(prefix))
        for prefix in found
        if not _OWN_WORDS.search(prefix)
    }
    return re.compile("|".join(sorted(shapes, key=len, reverse=True))) if shapes else None


_OWN_WORDS = re.compile(
    r"Original |Exception Group |\b(?:in|the|of|following|error|Python)\b ", re.IGNORECASE
)
"""Words before `Traceback` that come from the interpreter or a library, not from a launcher."""


def _split(log: str) -> Iterator[str]:
    for line in _GLUED.sub("\n", _BAR_END.sub("\\1\n", log)).split("\n"):
        parts = [part for part in re.split(r"[\r\x0b\x0c\x85\u2028\u2029]", line) if part.strip()]
        for part in parts[:-1]:
            if not _BAR.search(part):
                yield part[:LINE_CHARACTERS]
        yield parts[-1][:LINE_CHARACTERS] if parts else ""


def as_line(raw: str) -> LogLine:
    """One line by itself, read."""
    text, level = strip_prefixes(raw.rstrip())
    if level is LogLevel.PLAIN:
        level = _level_named(raw)
    rank = _RANK.search(raw[:120])
    return LogLine(
        text=text,
        raw=raw.strip(),
        level=level,
        rank=next(filter(None, rank.groups()), "") if rank else "",
        is_machine=_MACHINE.search(raw) is not None,
        is_progress=bool(_BAR.search(raw) or _PROGRESS.search(text))
        and not _NO_PROGRESS.search(text),
    )


def strip_prefixes(line: str) -> tuple[str, LogLevel]:
    """The line without what launchers and loggers put before it, and the level they name."""
    level = LogLevel.PLAIN
    for _ in range(8):
        for prefix in _PREFIXES:
            found = prefix.match(line)
            if found is None or not found[0]:
                continue
            named = next((name for name in found.groupdict().values() if name), None)
            if named is not None:
                level = _LEVEL.get(named, LogLevel.ERROR)
            line = line[found.end() :]
            break
        else:
            break
    return line, level


def _level_named(raw: str) -> LogLevel:
    """The level that a line names somewhere in its first 160 characters."""
    found = _NAMED_LEVEL.search(raw[:160])
    if found is None:
        return LogLevel.PLAIN
    if found["nccl"]:
        # NCCL prints its errors at WARN: there is no higher level.
        return LogLevel.ERROR if found["nccl"] == "WARN" else LogLevel.INFO
    if found["warning"]:
        return LogLevel.WARNING
    return _LEVEL.get((found["level"] or found["logfmt"]).upper(), LogLevel.ERROR)
