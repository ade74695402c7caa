"""The training script's side of babysit. Its import loads the standard library only."""

from babysit.entry import init
from babysit.run import Run
from babysit.wire import Phase

__all__ = ["Phase", "Run", "__version__", "init"]

__version__ = "0.1.0"
