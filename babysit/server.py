"""The program of one server process: `python -P -m babysit.server [--embedded]`."""

from __future__ import annotations

import sys

from babysit import installation


def main() -> int:
    """Entry point of the server; see `babysit server` for people."""
    return installation.start(_main, server=True)


def _main() -> int:
    from orchestrator.server.__main__ import main as server  # noqa: PLC0415 - as in babysit.agent

    return server()


if __name__ == "__main__":
    sys.exit(main())
