"""`python -P -m orchestrator.server [--embedded]`: one server process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import structlog

from jobs.clock import SystemClock
from orchestrator.errors import BabysitError
from orchestrator.server.process import serve
from orchestrator.settings import Settings


def main() -> int:
    """Serve; the exit code."""
    parser = argparse.ArgumentParser(prog="orchestrator.server", description=__doc__)
    parser.add_argument("--embedded", action="store_true", help="leave when idle")
    embedded = parser.parse_args().embedded
    settings = Settings()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelName(settings.log_level.upper())
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        asyncio.run(serve(settings, SystemClock(), embedded=embedded))
    except BabysitError as error:
        sys.stderr.write(f"babysit server: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
