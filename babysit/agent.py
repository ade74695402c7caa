"""The program that a cluster starts for each worker: `babysit-agent CONFIG.json`.

`python -P -m babysit.agent CONFIG.json` is the same. Exit code: 0 in good order, 2 for a bad
configuration or an installation without the agent's dependencies.
"""

from __future__ import annotations

import sys

from babysit import installation


def main() -> int:
    """Entry point of `babysit-agent`."""
    return installation.start(_main, server=False)


def _main() -> int:
    from jobs.agent.__main__ import main as agent  # noqa: PLC0415 - importable from here on

    return agent(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
