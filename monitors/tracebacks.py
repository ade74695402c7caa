"""Finds the tracebacks of a log: what was raised, where, and what led to it.

The problem: several tracebacks stand in one log. Some were survived, some are chained ("During
handling of …", "… was the direct cause of …"), some are the members of an exception group, some
belong to other ranks that died of the first. Those that Python ignores (in a `__del__`, in an exit
handler) come last and ended nothing. The design: each traceback is one `Raised` with the
lines that belong to it; chained ones and members of a group form one `Death`. Limits: the messages
of two ranks that were printed into each other without a prefix may be taken for one another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from monitors.log_lines import LogLevel, LogLine

WRAPPERS = frozenset(
    {
        "ChildFailedError",
        "CalledProcessError",
        "SystemExit",
        "ProcessExitedException",
        "ProcessRaisedException",
        "ExceptionGroup",
        "BaseExceptionGroup",
        "RayTaskError",
        "TrainingFailedError",
        "RemoteError",
        "CancelledError",
    }
)
"""Exceptions by which a launcher, a parent or a group repeats that something else was raised."""
_GROUP = re.compile(r"^\s*(?:\+-\+-+.*|\+-[-+]*\s*\d*[-\s]*|(?:\|\s?)+(?=\s|\S))")
_HEADER = re.compile(r"Traceback \(most recent call last\)|Current thread 0x\w+ \(most recent")
_HEADER_GROUP = re.compile(r"Exception Group Traceback")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+(?:,? in (?P<function>\S+))?')
_BOX = re.compile(r"^\s*[│╭╰┃┏┗]")
_INSIDE = re.compile(r"^\s*[│┃].*\w")
_ARROW = re.compile(r"^\s*(?:-+>|❱)?\s*\d+\s|^-{20,}$")
_MARKS = re.compile(r"^\s*[~^]+[~^ ]*$")
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python\d|<frozen|torch/")
_DIRECT = re.compile(r"^The above exception was the direct cause")
_DURING = re.compile(r"^During handling of the above exception")
_STRICT = re.compile(
    r"^(?P<path>(?:[A-Za-z_]\w*\.)*)(?P<name>[A-Z]\w*(?:Error|Exception|Interrupt|Iteration|Exit|Violation|Failure"
    r"|NotFound|OutOfMemory|Timeout|Warning|Group|InvalidHeader|Empty|Expired|Pool|ZipFile|Invalid)|Exception)"
    r"(?:\((?P<inner>\w+)\))?(?::(?:\s(?P<message>.*))?)?$"
)
_LOOSE = re.compile(
    r"^(?P<path>(?:[A-Za-z_]\w*\.)*)(?P<name>[A-Za-z_]\w*)(?:\((?P<inner>\w+)\))?(?::\s(?P<message>.*))?$"
)
"""Inside a traceback any name may be an exception."""
_IGNORED = re.compile(r"^(?:Exception ignored (?:in|on|while)\b|Error in atexit\._run_exitfuncs:)")
"""Lines before an exception that ends no program."""
_CONTINUED = re.compile(
    r"^(?:\s+\S|\.\.\.|nccl\w+Error|Last error|what\(\)"
    r"|Cannot access|ErrorCode|\t|Failed to bind|This is usually)"
)
_MESSAGE_LINES = 12


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception that ended a traceback (or stands alone on a line)."""

    name: str
    text: str
    """The line that names it; with the first line of the message where that line has none."""
    frame: str
    """`train.py in main`: the innermost frame of the user's own code."""
    lines: tuple[int, ...]
    """Indices of the lines that hold its message."""
    start: int
    """Index of its traceback's first line."""
    rank: str


@dataclass(slots=True)
class Death:
    """Exceptions that belong together: a chain, or the members of a group."""

    chain: list[Raised] = field(default_factory=list)
    is_direct: bool = False
    """True if the first is the declared cause of the last (or all are members of a group)."""

    @property
    def start(self) -> int:
        """Index of the first line."""
        return min(raised.start for raised in self.chain)

    @property
    def end(self) -> int:
        """Index of the last line of a message."""
        return max(max(raised.lines) for raised in self.chain)

    @property
    def last(self) -> Raised:
        """The exception raised in the end, wrappers aside."""
        real = [raised for raised in self.chain if raised.name not in WRAPPERS]
        return real[-1] if real else self.chain[-1]


@dataclass(frozen=True, slots=True)
class Tracebacks:
    """All tracebacks of a log."""

    deaths: tuple[Death, ...]
    """In the order in which they end."""
    source_lines: frozenset[int]
    """Indices of frames, source lines and drawings, and of exceptions that were ignored: they hold
    no messages."""
    boxed_lines: frozenset[int] = frozenset()
    """Lines inside a box other than a traceback, such as the error of a command line."""


def find_tracebacks(lines: Sequence[LogLine]) -> Tracebacks:
    """Every traceback of a log."""
    return _Finder(lines).find()


class _Finder:
    def __init__(self, lines: Sequence[LogLine]) -> None:
        self._lines = lines
        self._source: set[int] = set()
        self._deaths: list[Death] = []
        self._open: int | None = None
        """First line of the traceback that is being read."""
        self._frame = ""
        self._link = ""
        self._in_group = False
        self._boxed: set[int] = set()
        self._ignores: int | None = None
        """The line that says that the next exception is ignored, or the newest of its traceback."""

    def find(self) -> Tracebacks:
        index = 0
        while index < len(self._lines):
            index = self._read(index)
        return Tracebacks(tuple(self._deaths), frozenset(self._source), frozenset(self._boxed))

    def _text(self, index: int) -> str:
        text = self._lines[index].text
        stripped = _GROUP.sub("", text)
        return stripped if stripped != text and (stripped == "" or "|" in text) else text

    def _read(self, index: int) -> int:
        text = self._text(index)
        bare = text.strip()
        located = _FRAME.match(text)
        if _IGNORED.match(bare):
            self._source.add(index)
            self._open, self._ignores = None, index
            return index + 1
        if self._ignores is not None and self._open is None and index > self._ignores + 1:
            self._ignores = None
        if _HEADER.search(text):
            self._begin(index, text)
        elif located is not None:
            self._enter(index, located)
        elif _DIRECT.match(bare) or _DURING.match(bare):
            self._link = "direct" if _DIRECT.match(bare) else "during"
            self._source.add(index)
        elif self._is_drawing(text):
            self._source.add(index)
            if self._open is None and _INSIDE.match(text):
                self._boxed.add(index)
        else:
            return self._maybe_raised(index, text)
        return index + 1

    def _is_drawing(self, text: str) -> bool:
        """Blank lines, markers and boxes; inside a traceback also source lines."""
        if not text.strip() or _MARKS.match(text) or _BOX.match(text):
            return True
        return self._open is not None and (text[:1].isspace() or _ARROW.match(text) is not None)

    def _begin(self, index: int, text: str) -> None:
        self._source.add(index)
        self._open, self._frame = index, ""
        if _HEADER_GROUP.search(text):
            self._in_group = True

    def _enter(self, index: int, located: re.Match[str]) -> None:
        self._source.add(index)
        if self._open is None:
            self._open, self._frame = index, ""
        if not self._frame or not _LIBRARY.search(located["file"]):
            file = located["file"].rsplit("/", 1)[-1]
            self._frame = f"{file} in {located['function'] or '<module>'}"

    def _maybe_raised(self, index: int, text: str) -> int:
        pattern = _STRICT if self._open is None else _LOOSE
        found = _STRICT.match(text.strip()) or pattern.match(text.strip())
        if found is None or not _is_name(found) or self._is_warning(found["name"]):
            if self._open is not None and index - self._open > 200:
                self._open = None
            return index + 1
        is_quiet = self._lines[index].level < LogLevel.PLAIN
        if is_quiet and not found["name"].endswith("Warning"):  # one that was raised is an error
            return index + 1
        name = found["name"]
        if found["inner"] and name in WRAPPERS:
            self._open, self._frame = index, ""
        members = self._message(index, found["message"] or "")
        head = text.strip()
        if len(members) > 1 and not found["message"]:
            head = f"{head.rstrip(': ')}: {self._text(members[1]).strip()}"
        start = self._open if self._open is not None else index
        if self._ignores is not None:
            self._source.update(members)
            self._open = self._ignores = None
            return members[-1] + 1
        raised = Raised(name, head, self._frame, tuple(members), start, self._lines[index].rank)
        self._add(raised)
        self._source.difference_update(members)
        if not (found["inner"] and name in WRAPPERS):
            self._open = None
        return members[-1] + 1

    def _is_warning(self, name: str) -> bool:
        return self._open is None and name.endswith("Warning")

    def _message(self, index: int, message: str) -> list[int]:
        """The lines of a message: the first, and those that continue it."""
        members = [index]
        wants_more = not message.strip() or message.rstrip().endswith((":", ","))
        for number in range(index + 1, min(index + _MESSAGE_LINES, len(self._lines))):
            line, text = self._lines[number], self._text(number)
            blank = not text.strip()
            if _HEADER.search(text) or _FRAME.match(text) or line.level != LogLevel.PLAIN:
                break
            if blank or line.is_progress or _STRICT.match(text.strip()):
                break
            if not (wants_more or _CONTINUED.match(text)):
                break
            members.append(number)
            wants_more = text.rstrip().endswith(":")
        return members

    def _add(self, raised: Raised) -> None:
        follows = self._deaths and (self._link or self._in_group or self._is_repeated(raised))
        if follows and (raised.rank == self._deaths[-1].chain[-1].rank):
            self._deaths[-1].chain.append(raised)
            if self._link == "direct" or self._in_group or not self._link:
                self._deaths[-1].is_direct = True
        else:
            self._deaths.append(Death([raised]))
        self._link = ""
        if self._in_group and raised.name not in WRAPPERS and self._group_ends(raised):
            self._in_group = False

    def _group_ends(self, raised: Raised) -> bool:
        last = max(raised.lines)
        rest = self._lines[last + 1 : last + 3]
        return not any("|" in line.text[:8] or line.text.strip().startswith("+-") for line in rest)

    def _is_repeated(self, raised: Raised) -> bool:
        """True if the last exception only announced this one ("Caught … in worker process")."""
        last = self._deaths[-1].chain[-1]
        announced = (
            last.name in WRAPPERS or "Caught " in last.text or "following error" in last.text
        )
        return announced and raised.start - max(last.lines) <= 8


def _is_name(found: re.Match[str]) -> bool:
    """True if the name may be an exception: a class, or a name with its module (`_queue.Empty`)."""
    return found["name"][0].isupper() or bool(found["path"])
