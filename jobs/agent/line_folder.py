"""Folds lines that a program rewrites in place, such as progress bars. Pure.

A bar that moves 20 times a second would fill a log in hours. The folder passes whole lines on at
once, with only the last state of what was rewritten before the newline. Of a line that has not
ended yet it passes on a state now and then, after a carriage return: readers see that it moves.

What counts as rewriting: a carriage return, backspaces, codes that erase the line or move the
cursor to its start, and codes that move the cursor up (several bars below each other). Other escape
codes are passed on as they are: the command line makes them visible.
"""

from __future__ import annotations

import re

FIRST_SECONDS = 0.2
"""Age at which a line without an end is passed on for the first time."""
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 5.0
"""Time between two states of a line: 1 s at first, then 1/30 of its age, at most 5 s."""
_LINE_BYTES = 65536
"""A longer line is passed on in pieces."""
_REWRITES = re.compile(rb"\r|\x1b\[(?:2K|[01]?G)")
_UP = re.compile(rb"\x1b\[\d*[AF]")
_TO_END = re.compile(rb"\x1b\[0?K")
_BACKSPACES = re.compile(rb"\x08+")


class LineFolder:
    """Folds the output of one rank."""

    def __init__(self) -> None:
        self._line = b""
        """The unfinished line, folded."""
        self._shown = b""
        """The part of the unfinished line that was passed on since its last carriage return."""
        self._row = b""
        """Newest state of several bars that rewrite each other, not passed on yet."""
        self._moved_up = False
        """True if the cursor has moved up since the last newline: the next one writes no row."""
        self._since = self._last = 0.0
        """When the unfinished line began, and when a state was last passed on."""

    @property
    def pending(self) -> bool:
        """True if something is held back that :meth:`due` passes on later."""
        return bool(self._row) or self._line.rstrip(b"\r") != self._shown

    @property
    def unfinished(self) -> bytes:
        """The current state of the line without an end."""
        return self._line.rstrip(b"\r") or self._row

    def feed(self, data: bytes, now: float) -> bytes:
        """Take output; returns what belongs in the log now.

        Args:
            data: Output of the rank, cut anywhere.
            now: Monotonic seconds.
        """
        *whole, rest = data.split(b"\n")
        out = b"".join([self._end_line(line, now) for line in whole])
        if rest:
            self._extend(rest, now)
            if len(self._line) > _LINE_BYTES:
                out += self._state()
                self._line = self._shown = b""
        return out + self.due(now)

    def due(self, now: float) -> bytes:
        """A state of what is held back, if it is time for one; else nothing."""
        if not self.pending:
            return b""
        first = not self._shown and not self._row
        pause = min(LONGEST_SECONDS, max(SHORTEST_SECONDS, (now - self._since) / 30))
        if now - self._last < (FIRST_SECONDS if first else pause):
            return b""
        return self.rest(now)

    def rest(self, now: float) -> bytes:
        """All that is held back: the rank has ended, or a state is due."""
        self._last = now
        return self._end_row() + self._state()

    def _end_row(self) -> bytes:
        row, self._row = self._row, b""
        return row + b"\n" if row else b""

    def _extend(self, text: bytes, now: float) -> None:
        """Add text without a newline to the unfinished line."""
        if not self._line and not self._shown and not self._row:
            self._since = self._last = now
        line = self._line + text
        if b"\x1b" in line:
            *above, line = _UP.split(line)
            self._row = next((r for r in map(_folded, reversed(above)) if r.strip()), self._row)
            self._moved_up = self._moved_up or bool(above)
        self._line = _folded(line)

    def _end_line(self, text: bytes, now: float) -> bytes:
        self._extend(text, now)
        moved_up, self._moved_up = self._moved_up, False
        if moved_up and not self._shown:
            self._row = self._line.rstrip(b"\r") or self._row
            self._line = b""
            return b""
        out = self._end_row() + self._state() + b"\n"
        self._line = self._shown = b""
        self._since = self._last = now
        return out

    def _state(self) -> bytes:
        """The unfinished line as far as it was not passed on."""
        line = self._line.rstrip(b"\r")
        shown, self._shown = self._shown, line
        return line[len(shown) :] if line.startswith(shown) else b"\r" + line


def _folded(line: bytes) -> bytes:
    """The line as a terminal would show it. A return at its end waits for more text."""
    if b"\x1b" not in line and b"\r" not in line and b"\x08" not in line:
        return line
    end = b"\r" if line.endswith(b"\r") else b""
    states = [state for state in _REWRITES.split(line) if state.strip()]
    return _TO_END.sub(b"", _without_backspaces(states[-1] if states else b"")) + end


def _without_backspaces(state: bytes) -> bytes:
    """Take away what backspaces delete."""
    if b"\x08" not in state:
        return state
    out = b""
    for text, back in zip(
        _BACKSPACES.split(state), [*map(len, _BACKSPACES.findall(state)), 0], strict=True
    ):
        out += text
        out = out[: max(0, len(out) - back)] if back else out
    return out
