"""A stand-in for the agent, for tests of how clusters start and end one.

It takes a config, like the agent. The spec's command says how it behaves; `spec.env.READY` names a
FIFO to which it says that it is up.
"""

import json
import os
import signal
import sys
from pathlib import Path


def become_orphan() -> bool:
    """Fork twice, with a session of its own: True in the grandchild, which init has adopted."""
    if os.fork():
        os.wait()
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs of a shell's background inherit: ignored
    spec = json.loads(Path(sys.argv[1]).read_text())["spec"]
    behaviour = spec["command"][0]
    if behaviour == "exit":
        sys.exit(int(spec["command"][1]))
    if behaviour in {"stubborn", "orphans"}:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if behaviour == "graceful":
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    ready = os.open(spec["env"]["READY"], os.O_WRONLY)
    if behaviour == "orphans":
        for _ in range(3):
            if become_orphan():
                break
    os.write(ready, b".")  # each process of it one byte
    os.close(ready)
    while True:
        signal.pause()


main()
