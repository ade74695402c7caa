"""The training script's side of babysit. Its import loads the standard library only."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the agent may put it on the path of an older one
    raise ImportError(
        f"babysit needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}:"
        " put a newer `python` first on PATH, such as that of a venv"
    )

from babysit.entry import init
from babysit.run import Run
from babysit.wire import Phase

__all__ = ["Phase", "Run", "__version__", "init"]

__version__ = "0.1.0"
