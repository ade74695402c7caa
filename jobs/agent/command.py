"""How clusters start the agent. The path of its configuration, a JSON file, is appended."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = (sys.executable, "-P", "-m", "babysit.agent")
"""By this process's own interpreter, installed or from a checkout."""
PROGRAM = "babysit-agent"
"""In an image where `pip install babysit` was run: the console script, on PATH."""
LENT = Path("/opt/babysit")
"""A Python with the agent that another image lends. It appears at the same path, whatever it is
copied through: scripts of an installation name their interpreter by its full path."""
