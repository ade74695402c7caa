"""A training script that knows nothing of babysit: it prints its losses and saves by itself.

Its rank 0 saves every ten steps to `out/checkpoint-N`. It trains until `finish` exists, and its
loss is high while `spike` holds the number of the attempt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--resume", type=Path)
resume = parser.parse_args().resume
rank, attempt = os.environ["RANK"], os.environ["BABYSIT_ATTEMPT"]
step = 0
if resume is not None:
    step = json.loads((resume / "state.json").read_text())["step"]
    sys.stdout.write(f"resumed from {resume.name}\n")
Path(f"pid-{rank}").write_text(str(os.getpid()))
while not Path("finish").exists():
    step += 1
    time.sleep(0.05)
    spikes = Path("spike").exists() and Path("spike").read_text() == attempt
    loss = 9.0 if spikes else 2.0 / (1 + step / 50)
    sys.stdout.write(f"step: {step} loss: {loss:.4f}\n")
    if rank == "0" and step % 10 == 0:
        place = Path("out", f"checkpoint-{step}")
        place.mkdir(parents=True, exist_ok=True)
        (place / "state.json").write_text(json.dumps({"step": step}))
        (place / "done").touch()
