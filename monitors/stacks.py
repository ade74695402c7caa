"""Stacks of all ranks, clustered: who waits, and who is being waited for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

_FRAME = re.compile(r"^(?P<function>.*?) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)$")
_DEPTH = 12
"""Innermost frames compared; below them, stacks of one program are alike anyway."""
_COLLECTIVE = re.compile(
    r"""
    (?: all_?reduce | all_?gather | reduce_?scatter | all_?to_?all | monitored_barrier
      | batch_isend_irecv | wait_for_unshard | wait_tensor | ncclGroupEnd | c10d:: | gloo:: )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Names that only a collective bears."""
_COLLECTIVE_FILE = re.compile(
    r"distributed_c10d\.py|_functional_collectives\.py|_fsdp_collectives\.py|_collective_utils\.py"
)
"""Files in which every function is a collective.

Bare names such as `recv` prove nothing elsewhere.
"""
_LIBRARY = re.compile(
    r"""
    site-packages | dist-packages | /lib/python\d | <frozen | ^torch/ | ^contextlib\.py |
    ^threading\.py | ^selectors\.py | ^socket\.py | ^ssl\.py | ^queue\.py | ^subprocess\.py |
    ^multiprocessing/ | ^concurrent/ | \.(?: so | cpp | cc | c | cu )\b
    """,
    re.VERBOSE,
)
"""Files not of the user's making; py-spy names them in full or from the root of the import path."""
_STATES = {
    "T": "stopped",
    "t": "stopped by a debugger",
    "D": "blocked in the kernel",
    "Z": "a zombie",
    "X": "dead",
}
"""States of /proc in which a process is not merely waiting; see proc(5)."""


class Stack(Protocol):
    """The stack of one rank; `jobs.events.RankStack` is one."""

    @property
    def rank(self) -> int:
        """Rank in the run."""

    @property
    def process_state(self) -> str:
        """Letter from /proc."""

    @property
    def frames(self) -> tuple[str, ...]:
        """Innermost first: `function (file:line)`."""

    @property
    def error(self) -> str:
        """Why there are no frames; empty when there are."""


class Look(Stack, Protocol):
    """Two looks at one rank; `jobs.events.RankStack` is one (see there)."""

    @property
    def frames_later(self) -> tuple[str, ...]:
        """See there."""

    @property
    def line(self) -> str:
        """See there."""

    @property
    def wait_channel(self) -> str:
        """See there."""

    @property
    def deadline(self) -> bool:
        """See there."""

    @property
    def traced(self) -> bool:
        """See there."""

    @property
    def on_gpu(self) -> bool:
        """See there."""

    @property
    def cpu_seconds(self) -> float:
        """See there."""

    @property
    def helpers(self) -> tuple[str, ...]:
        """See there."""

    @property
    def dead_children(self) -> tuple[str, ...]:
        """See there."""

    @property
    def raised(self) -> str:
        """See there."""

    @property
    def waits_for(self) -> str:
        """See there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """Ranks that were doing the same."""

    ranks: tuple[int, ...]
    state: str
    """Letter from /proc of an abnormal state, empty for running and sleeping alike."""
    frames: tuple[str, ...]
    """`function (file)`, innermost first: line numbers left out, paths cut to the file's name."""
    waiting: str
    """The collective that these ranks wait in; empty: none."""
    where: str
    """Innermost frame of the user's own making, or the innermost at all; for people."""


def cluster(stacks: Iterable[Stack]) -> list[Cluster]:
    """Group ranks by what they were doing, the largest group first (ties: lowest rank first)."""
    groups: dict[tuple[str, tuple[str, ...]], list[Stack]] = {}
    for stack in stacks:
        state = stack.process_state if stack.process_state in _STATES else ""
        frames = tuple(_normalised(frame) for frame in stack.frames[:_DEPTH])
        groups.setdefault((state, frames), []).append(stack)
    clusters = [
        Cluster(
            ranks=tuple(sorted(stack.rank for stack in members)),
            state=state,
            frames=frames,
            waiting=collective_of(members[0].frames),
            where=_where(members[0]),
        )
        for (state, frames), members in groups.items()
    ]
    return sorted(clusters, key=lambda c: (-len(c.ranks), c.ranks))


def _normalised(frame: str) -> str:
    match = _FRAME.match(frame.strip())
    if match is None:
        return re.sub(r"0x[0-9a-fA-F]+", "0x", frame.strip())
    return f"{match['function']} ({match['file'].rsplit('/', 1)[-1]})"


def is_library(file: str) -> bool:
    """True for a file that is not of the user's making."""
    return not file or _LIBRARY.search(file) is not None


def short_name(file: str) -> str:
    """A file without its directory."""
    return file.rsplit("/", 1)[-1]


def parts_of(frame: str) -> tuple[str, str]:
    """Function and file of a frame; the file is empty for a native frame."""
    match = _FRAME.match(frame.strip())
    return (match["function"], match["file"]) if match else (frame.strip(), "")


def collective_of(frames: Sequence[str]) -> str:
    """The collective that a rank waits in, as the innermost frame that is surely one names it.

    Only frames below the user's own code count: wrappers of a whole model (FSDP, DDP) are on every
    stack.
    """
    within = ""
    for frame in frames:
        function, file = parts_of(frame)
        if _COLLECTIVE.search(function):
            return function
        if _COLLECTIVE_FILE.search(file):
            within = within or function
        elif file and not is_library(file):
            break
    return within


def place_of(frames: Sequence[str]) -> str:
    """Innermost frame of the user's own making, or the innermost at all; for people."""
    for frame in frames:
        file = parts_of(frame)[1]
        if not is_library(file):
            return _short(frame)
    return _short(frames[0]) if frames else "an unknown place"


def _where(stack: Stack) -> str:
    return place_of(stack.frames) if stack.frames else stack.error or "an unknown place"


def _short(frame: str) -> str:
    match = _FRAME.match(frame.strip())
    if match is None:
        return frame.strip()
    line = f":{match['line']}" if match["line"] else ""
    return f"{match['function']} ({match['file'].rsplit('/', 1)[-1]}{line})"
