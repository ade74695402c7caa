"""The command line: `babysit`, or `python -P -m babysit`."""

from __future__ import annotations

import sys

from babysit import installation


def main() -> int:
    """Entry point of `babysit`. The command line mostly ends by SystemExit, with its code."""
    return installation.start(_main, server=True)


def _main() -> int:
    from orchestrator.cli.main import main as command_line  # noqa: PLC0415 - as in babysit.agent

    command_line()
    return 0


if __name__ == "__main__":
    sys.exit(main())
