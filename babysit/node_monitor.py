"""The program that reads the hardware of a node: `babysit-node-monitor`.

`python -P -m babysit.node_monitor` is the same. Exit code: 0 in good order, 2 for bad settings,
or for an installation without the agent's dependencies.
"""

from __future__ import annotations

import sys

from babysit import installation


def main() -> int:
    """Entry point of `babysit-node-monitor`."""
    return installation.start(_main, server=False)


def _main() -> int:
    from jobs.node_monitor import main as monitor  # noqa: PLC0415 - importable from here on

    return monitor(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
