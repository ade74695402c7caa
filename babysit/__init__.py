"""The training script's side of babysit. Its import loads the standard library only.

The names below load at their first use: the command line and the agent are modules of this package
too (an installed wheel has nothing else at its top), and need none of them.
"""

import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 11):  # noqa: UP036 - the agent may put it on the path of an older one
    raise ImportError(
        f"babysit needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}:"
        " put a newer `python` first on PATH, such as that of a venv"
    )

__all__ = ["Phase", "Run", "__version__", "auto", "init"]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from babysit.auto_hooks import auto
    from babysit.entry import init
    from babysit.run import Run
    from babysit.wire import Phase
else:  # a checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Load the public names together, once."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from babysit import auto_hooks, entry, run, wire  # noqa: PLC0415 - see above

        globals().update(auto=auto_hooks.auto, init=entry.init, Run=run.Run, Phase=wire.Phase)
        return globals()[name]


def __dir__() -> list[str]:
    """Names for completion in a shell, loaded or not."""
    return sorted({*globals(), *__all__})
