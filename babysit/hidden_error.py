"""Finds the exception that `sys.exit(0)` in a `finally:` block hides.

A script that ends so has crashed, prints no traceback and returns 0. In an `except` block the same
call is a decision of its author: it is respected. Only the source tells the two apart; where it
cannot be read, the exit is respected too.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType

log = logging.getLogger("babysit")
_CHARACTERS = 4000
_FRAMES = 50


def hidden_error(frame: FrameType | None) -> tuple[str, str]:
    """The type and traceback of an exception in flight that an exit from a `finally` hides.

    Args:
        frame: The frame that calls `sys.exit`.

    Returns:
        Two empty strings where there is none. Never raises.
    """
    error = sys.exc_info()[1]
    if not isinstance(error, Exception):
        return "", ""
    try:
        if not _leaves_by_finally(frame):
            return "", ""
        import traceback  # noqa: PLC0415  # not needed by scripts that end well

        text = "".join(traceback.format_exception(error))[-_CHARACTERS:]
    except Exception as why:  # noqa: BLE001  # the script's own exit must not fail
        log.warning("cannot tell whether sys.exit hides a %s: %r", type(error).__name__, why)
        return "", ""
    return type(error).__name__, text


def _leaves_by_finally(frame: FrameType | None) -> bool:
    """True if the innermost block around the call, in whichever frame, is a `finally`."""
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if (found := _block(frame.f_code.co_filename, frame.f_lineno)) is not None:
            return found == "finally"
        frame = frame.f_back
    return False


def _block(filename: str, line: int) -> str | None:
    """`finally` or `except`, whichever block of a file holds the line innermost; None: neither."""
    import ast  # noqa: PLC0415
    import linecache  # noqa: PLC0415

    source = "".join(linecache.getlines(filename))
    found, begins = None, 0
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Try | ast.TryStar):
            continue
        blocks = [("finally", node.finalbody), *(("except", h.body) for h in node.handlers)]
        for name, body in blocks:
            if body and begins < body[0].lineno <= line <= (body[-1].end_lineno or 0):
                found, begins = name, body[0].lineno
    return found
