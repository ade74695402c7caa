"""The scripts of docs/trainers/: started as their page says, they survive a SIGKILL and print that.

Skipped where the page's library is not installed (`pip install 'babysit[trainers]'`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.server.server_file import is_alive, read_record
from tests.agent_helpers import children, command_line
from tests.trainer_pages import Script, scripts

ROOT = Path(__file__).parents[2]
NEEDS = {
    "deepspeed": ("deepspeed",),
    "lightning": ("lightning",),
    "accelerate": ("accelerate",),
    "transformers": ("transformers", "accelerate"),
    "trl": ("trl", "datasets"),
}
PATIENCE = 900.0
"""Most seconds to wait: DeepSpeed compiles at its first start."""
# Lines that come only if the command looks at the right moment.
_PASSING = re.compile(r"step #, loss #|running: |recovering: killed|starting: placed")
_LOOK = re.compile(r"babysit (show|explain|checkpoints ls) ")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Laptop:
    """A directory with one script, and a control plane of its own."""

    def __init__(self, root: Path, script: Script) -> None:
        self.name = script.name
        self._home = root / "home"
        self._root = root
        (root / "train.py").write_text(script.text)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BABYSIT_")}
        self._environment = {
            **inherited,
            "BABYSIT_HOME": str(self._home),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "110",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of babysit, as a person does in that directory."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.cli.main", *words],
            cwd=self._root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self, *words: str) -> str:
        """What a command prints."""
        return self.start(*words).communicate(timeout=120)[0]

    @property
    def shown(self) -> dict[str, Any]:
        """The run, as a program sees it; empty before it is submitted."""
        found = self.said("show", self.name, "-o", "json")
        shown: dict[str, Any] = json.loads(found) if found.startswith("{") else {}
        assert shown.get("state") not in {"failed", "cancelled"}, shown["reason"]
        return shown

    @property
    def has_saved(self) -> bool:
        """True once there is a checkpoint; a look at it is quicker than a command."""
        return any((self._root / "ck").glob("step-*"))

    def newest_rank(self) -> int:
        """What `pgrep -n -f fork_server.py` prints where no other run is."""
        run = self.shown["id"]
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        (agent,) = [
            pid
            for pid in pids
            if f"{self._home}/runs/{run}/" in (line := command_line(pid))
            and "babysit.agent" in line
        ]
        (server,) = [pid for pid in children(agent) if "fork_server.py" in command_line(pid)]
        return max(children(server))

    def end(self) -> None:
        """Leave no process behind."""
        record = read_record(self._home / "server.json")
        if record is not None and is_alive(record):
            self.said("cancel", self.name, "--reason", "the test is over")
            self.said("server", "stop")


def _until(ready: Any, what: str) -> None:
    ends = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < ends, f"waited for {what}"
        time.sleep(0.3)


@pytest.fixture
def laptop(tmp_path: Path, script: Script) -> Iterator[Laptop]:
    for module in NEEDS.get(script.name, NEEDS.get(script.page, ("torch",))):
        pytest.importorskip(module, exc_type=ImportError)
    here = Laptop(tmp_path, script)
    yield here
    here.end()


def _forms(text: str) -> set[str]:
    """Lines without figures, ids, the width of columns, and what the moment decides."""
    plain = re.sub(r"\b(\d+ min )?\d[\d.:%-]*( s| min| h| KiB| MiB)?\b%?", "#", text)
    plain = re.sub(r"\b[0-9A-Z]{26}\b|\b\w+\.#", "ID", plain)
    plain = re.sub(r"(?m)^time: .*", "time:", plain)
    plain = re.sub(r"\b(verified|good)\b", "TRUST", plain)
    return {" ".join(line.split()) for line in plain.splitlines()}


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.name)
def test_a_script_of_a_page_does_what_the_page_says(script: Script, laptop: Laptop) -> None:
    followed = laptop.start(*shlex.split(script.start)[1:])
    _until(lambda: laptop.has_saved or followed.poll() is not None, "a checkpoint")
    assert followed.poll() is None, followed.communicate()[0]
    os.kill(laptop.newest_rank(), signal.SIGKILL)
    _until(lambda: any(restart["recovered_at"] for restart in laptop.shown["restarts"]), "recovery")
    looked = {line: laptop.said(*line.split()[1:]) for line in script.session if _LOOK.match(line)}
    out, _ = followed.communicate(timeout=PATIENCE)
    assert followed.returncode == 0, out
    assert len(looked) >= 2, "the page shows what `show` and `explain` print"
    for line, printed in looked.items():
        assert _forms("\n".join(script.printed(line))) <= _forms(printed), printed
    told = _forms("\n".join(script.printed(script.start)))
    assert {line for line in told if not _PASSING.search(line)} - _forms(out) == set(), out
    restart = laptop.shown["restarts"][0]
    assert restart["class"] == "signal"
    assert restart["resumed_step"] > 0, "it goes on, and does not begin again"
