"""Stacks that ranks write by themselves where nobody may trace them; nobody is harmed by it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from babysit.stack_signal import HANDLER, READY_FILE, SIGNAL, SIGNAL_IN_C, STACKS_FILE
from jobs.agent import stack_dump, stacks
from jobs.clock import SystemClock
from jobs.commands import CaptureStacks
from jobs.events import RankStack, StacksCaptured
from monitors.hang_verdict import Doing, _doing
from tests.agent_helpers import playground, start
from tests.integration.test_agent_looks import READY, SCRIPTS, process

REGISTER = """
import os, sys
sys.path.insert(0, {root!r})
from babysit import stack_signal
stack_signal.register({directory!r})
"""
ROOT = str(Path(__file__).parents[2])
TRIES = 5
LOOKS = 1000
ALIKE = (
    "sleeps",
    "computes",
    "waits for a lock",
    "waits for a thread that reads a socket",
    "waits for a thread that waits for a lock",
    "waits for a lock beside the threads of gloo",
)


@pytest.fixture(autouse=True)
def _no_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stacks.PY_SPY, "")


def registered(code: str, directory: Path) -> str:
    """A script that writes its stacks into a directory on the signal."""
    return REGISTER.format(root=ROOT, directory=str(directory)) + code


async def look(pid: int, directory: Path) -> RankStack:
    """Two looks at one process."""
    [stack] = await stacks.capture({0: pid}, SystemClock(), {0: directory})
    return stack


@pytest.mark.parametrize("name", ALIKE)
async def test_a_rank_is_judged_as_with_py_spy(tmp_path: Path, name: str) -> None:
    code, doing = SCRIPTS[name]
    with process(registered(code, tmp_path), tmp_path) as pid:
        stack = await look(pid, tmp_path)
        for _ in range(TRIES):  # it has said that it is ready, and may still be on its way
            if _doing(stack, "training") is not doing:
                stack = await look(pid, tmp_path)
        assert stack.error == ""
        assert stack.frames[-1].startswith("<module> (script.py:")
        assert _doing(stack, "training") is doing, stack


async def test_a_loop_in_c_that_holds_the_interpreter_is_seen(tmp_path: Path) -> None:
    """No Python code runs then: the handler must be the kernel's and C's business alone."""
    code = READY + "def stuck():\n    sum(range(10**12))\nstuck()\n"
    with process(registered(code, tmp_path), tmp_path) as pid:
        stack = await look(pid, tmp_path)
        for _ in range(TRIES):
            if not stack.frames[0].startswith("stuck"):
                stack = await look(pid, tmp_path)
        assert stack.frames[0].startswith("stuck (script.py:")
        assert _doing(stack, "training") is Doing.MOVING


ANOTHER = READY + "import time; time.sleep(1000)"
HARMLESS = {
    "a script that has not registered": (ANOTHER, ""),
    "a script with a handler of its own": (
        "import signal, sys\n"
        f"signal.signal({int(SIGNAL)}, lambda *_: print('disturbed', flush=True))\n"
        + READY
        + "while True: signal.pause()",
        "before",
    ),
    "a script that sets its handler later": (
        "import signal, sys\n"
        f"signal.signal({int(SIGNAL)}, lambda *_: print('disturbed', flush=True))\n"
        + READY
        + "while True: signal.pause()",
        "after",
    ),
    "a script that executes another": (
        f"import os\nos.execvp(sys.executable, [sys.executable, '-c', {ANOTHER!r}])",
        "after",
    ),
}


@pytest.mark.parametrize("kind", list(HARMLESS))
async def test_a_process_that_would_be_harmed_is_left_alone(tmp_path: Path, kind: str) -> None:
    code, when = HARMLESS[kind]
    if when == "after":
        code = registered(code, tmp_path)
    elif when == "before":
        setting, _, rest = code.partition(READY)
        code = setting + registered(READY + rest, tmp_path)
    with process(code, tmp_path) as pid:
        stack = await look(pid, tmp_path)
        assert "does not write its stacks" in stack.error
        assert stack.frames == ()
        assert stacks.process_state(pid) in {"S", "R"}, "it lives"
        assert not (tmp_path / STACKS_FILE).exists() or not (tmp_path / STACKS_FILE).read_bytes()


async def test_a_marker_of_another_process_of_this_number_counts_for_nothing(
    tmp_path: Path,
) -> None:
    with process(READY + "import time; time.sleep(1000)", tmp_path) as pid:
        (tmp_path / READY_FILE).write_text(f'{{"pid": {pid}, "start": 1}}')
        assert "does not write" in (await look(pid, tmp_path)).error
        assert stacks.process_state(pid) == "S"


STUCK = """
    import os, signal, threading, babysit
    run = babysit.init() if os.environ["RANK"] != "2" else None
    def wait_for_a_lock():
        lock = threading.Lock()
        lock.acquire()
        if run is not None:
            run.report(step=1, loss=1.0)
        lock.acquire()
    wait_for_a_lock()
"""


async def test_every_python_rank_of_an_agent_writes_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2 does not call `init()`: the fork server has seen to it."""
    async with playground(tmp_path, STUCK) as (server, agent):
        await agent.kill()
        agent.environment |= {stacks.PY_SPY: ""}
        agent.start()
        await server.until(lambda: len(server.hellos) == 2)
        await server.send(start(ranks=(0, 1, 2)))
        await server.until(lambda: server.steps(0) and server.steps(1))
        os.kill(agent.ranks()[1].pid, signal.SIGSTOP)
        await server.send(CaptureStacks(id="look", attempt=1))
        captured = (await server.event(StacksCaptured)).stacks
        assert [stack.rank for stack in captured] == [0, 1, 2]
        for stack in (captured[0], captured[2]):
            assert stack.error == ""
            assert stack.frames[0].startswith("wait_for_a_lock (train.py:")
            assert stack.frames[-1].startswith("<module> (train.py:")
            assert stack.line == "lock.acquire()"
        assert captured[1].process_state == "T"
        assert "it is stopped" in captured[1].error


BUSY = """
import json, threading, time
def work(depth=0):
    while depth or not time.sleep(0.0005):
        json.loads(json.dumps({"a": [1, {"b": list(range(50))}]}))
        if depth == 20:
            return
        work(depth + 1)
        if depth:
            return
"""
WORKS = {
    "its threads": "threading.Thread(target=work).start()\n"
    "lock = threading.Lock(); lock.acquire()\n" + READY + "lock.acquire()",
    "its main thread": READY + "while True:\n    json.loads(json.dumps(list(range(50))))",
}


@pytest.mark.parametrize("who", list(WORKS))
async def test_a_rank_that_works_survives_all_looks(tmp_path: Path, who: str) -> None:
    """A slow run is looked at again and again; reading the frames of running code would end it."""
    with process(registered(BUSY + WORKS[who], tmp_path), tmp_path) as pid:
        for _ in range(LOOKS):
            os.kill(pid, SIGNAL)
            if who == "its threads":
                os.kill(pid, SIGNAL_IN_C)
            await SystemClock().sleep(0.001)
        dump = await stack_dump.take(pid, tmp_path, SystemClock())
        assert dump.error == ""
        assert dump.threads[0]["frames"][-1]["name"] == "<module>"
        assert all(HANDLER not in frame["name"] for frame in dump.threads[0]["frames"])


async def test_a_file_that_got_the_number_of_the_closed_one_is_not_written_to(
    tmp_path: Path,
) -> None:
    code = (
        "import os, time\n"
        "os.closerange(3, 100)\n"
        f"files = [open({str(tmp_path / 'model')!r}, 'w') for _ in range(8)]\n"
    )
    sleep = READY + "time.sleep(1000)"
    with process(registered(code + sleep, tmp_path), tmp_path) as pid:
        assert "closed the file" in (await look(pid, tmp_path)).error
        assert (tmp_path / "model").read_bytes() == b""


async def test_a_fork_of_a_rank_that_joins_itself_has_its_own_marker(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        f"stack_signal.register({str(tmp_path)!r})\n" + READY + "time.sleep(1000)"
    )
    with process(registered(code, tmp_path), tmp_path) as parent:
        child = json.loads((tmp_path / READY_FILE).read_text())["pid"]
        assert child != parent
        assert (await look(child, tmp_path)).error == ""
        assert "does not write" in (await look(parent, tmp_path)).error


def test_a_dump_is_read_whatever_is_in_it() -> None:
    late = 'Stack (most recent call first):\n  File "late.py", line 1 in old\n\n'
    text = late + (
        "Stack (most recent call first):\n"
        f'  File "/x/babysit/stack_signal.py", line 90 in {HANDLER}\n'
        '  File "/a b/in, line 2 in x.py", line 7 in f\n'
        '  File "/a b/x.py", line ??? in g\n'
        "  ...\n"
        '  File "/a b/x.py", line 1 in <module>\n\n'
    )
    [main] = stack_dump.parse(text, 77)
    assert (main["thread_name"], main["os_thread_id"]) == ("MainThread", 77)
    assert [(f["name"], f["short_filename"], f["line"]) for f in main["frames"]] == [
        ("f", "in, line 2 in x.py", 7),
        ("<module>", "x.py", 1),
    ]
    assert stack_dump.parse("torn", 1) == []
    assert stack_dump.parse("Stack (most recent call first):\n  <no Python frame>\n", 1) == []
