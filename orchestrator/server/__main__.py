"""One server process: `python -P -m babysit.server [--embedded]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys

from jobs.clock import SystemClock
from jobs.log_output import configure
from orchestrator.errors import BabysitError, DatabaseUnavailableError, InvalidError
from orchestrator.garbage_collection import collect_rarely
from orchestrator.open_files import raise_limit
from orchestrator.private_home import keep_files_private
from orchestrator.server.process import serve
from orchestrator.settings import Settings

CODES: tuple[tuple[type[BabysitError], int], ...] = (
    (InvalidError, 2),  # a setting is wrong
    (DatabaseUnavailableError, 6),
    (BabysitError, 4),  # refused in this state
)
"""The exit codes of the command line; the first that fits."""


def main() -> int:
    """Serve; the exit code. 1 is that of a run that failed, never a server's."""
    parser = argparse.ArgumentParser(prog="babysit.server", description=__doc__)
    parser.add_argument("--embedded", action="store_true", help="leave when idle")
    embedded = parser.parse_args().embedded
    collect_rarely()
    keep_files_private()
    raise_limit()
    settings = Settings()
    configure(sys.stderr, level=logging.getLevelName(settings.log_level.upper()))
    try:
        asyncio.run(serve(settings, SystemClock(), embedded=embedded))
    except BabysitError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"babysit server: {error}\n")
        return next(code for kind, code in CODES if isinstance(error, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
