"""How clusters start the agent. The path of its configuration, a JSON file, is appended."""

from __future__ import annotations

import sys

HERE = (sys.executable, "-P", "-m", "babysit.agent")
"""By this process's own interpreter, installed or from a checkout."""
INSTALLED = ("babysit-agent",)
"""In an image where `pip install babysit` was run: the console script, on PATH."""
