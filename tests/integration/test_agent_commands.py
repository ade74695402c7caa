"""How the user's command is run: as python would, whatever it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs.events import RankExited
from tests.agent_helpers import playground, start

CONFESS = """
import json, multiprocessing, os, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "file": os.path.realpath(__file__), "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(), "ours": sorted(m for m in sys.modules if
    m.split(".")[0] in ("monitors", "orchestrator", "jobs")), "process":
    multiprocessing.current_process().name, "env": {k: os.environ.get(k) for k in (
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK",
        "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "FLAVOUR", "BABYSIT_RUN",
        "BABYSIT_ATTEMPT")},
    "session": os.getsid(0) == os.getpid(),
    "cwd": os.getcwd(),
}), flush=True)
"""


async def run(root: Path, code: int = 0, **spec) -> str:
    """Run one rank (1 of 2, on the second node) of the command to its end; returns its log."""
    async with playground(root, (root / "train.py").read_text(), **spec) as (server, agent):
        await server.send(start(ranks=(1,), world_size=2, node_rank=1, nodes=2))
        exited = await server.event(RankExited)
        assert exited.code == code, agent.log(1, 1)
        return agent.log(1, 1)


async def test_script_sees_what_python_would_show_it(tmp_path: Path):
    (tmp_path / "train.py").write_text(CONFESS)
    command = ("python", "-u", "train.py", "--steps", "5")
    said = json.loads(await run(tmp_path, command=command, env={"FLAVOUR": "mint"}))
    assert said["argv"] == ["train.py", "--steps", "5"]
    assert said["path"] == said["cwd"] == str(tmp_path)
    assert said["file"] == str(tmp_path / "train.py")
    assert (said["name"], said["main"], said["process"]) == ("__main__", True, "MainProcess")
    assert said["ours"] == []
    assert said["session"]
    assert said["env"] == {
        "RANK": "1",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "1",
        "NODE_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29999",
        "OMP_NUM_THREADS": "1",
        "FLAVOUR": "mint",
        "BABYSIT_RUN": "run-1",
        "BABYSIT_ATTEMPT": "1",
    }


async def test_module_is_run_as_python_dash_m_would(tmp_path: Path):
    package = tmp_path / "recipes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pretrain.py").write_text(CONFESS)
    (tmp_path / "train.py").write_text("")
    said = json.loads(await run(tmp_path, command=("python3", "-m", "recipes.pretrain", "x")))
    assert said["argv"] == [str(package / "pretrain.py"), "x"]
    assert (said["path"], said["name"], said["main"]) == (str(tmp_path), "__main__", True)


async def test_users_own_jobs_module_is_not_shadowed(tmp_path: Path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (tmp_path / "train.py").write_text("")
    (scripts / "jobs.py").write_text("whose = 'the user'")
    (scripts / "monitors.py").write_text("whose = 'the user'")
    (scripts / "go.py").write_text(
        "import sys; warm = 'babysit.entry' in sys.modules\n"
        "import jobs, monitors, babysit; print(jobs.whose, monitors.whose, warm)"
    )
    log = await run(tmp_path, command=("python", "scripts/go.py"), preload=("babysit",))
    assert log == "the user the user True\n"


async def test_other_programs_are_executed(tmp_path: Path):
    (tmp_path / "train.py").write_text("")
    command = ("sh", "-c", "echo rank $RANK of $WORLD_SIZE in $(pwd); exit 7")
    assert await run(tmp_path, code=7, command=command) == f"rank 1 of 2 in {tmp_path}\n"


async def test_python_with_other_options_gets_an_interpreter_of_its_own(tmp_path: Path):
    (tmp_path / "train.py").write_text("import sys; print(sys.flags.optimize, sys.executable)")
    log = await run(tmp_path, command=("python", "-O", "train.py"))
    assert log == f"1 {sys.executable}\n"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no such data set')", 1, "no such data set"),
        ("sys.exit()", 0, ""),
        (
            "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()",
            0,
            "thread",
        ),
        ("os.kill(os.getpid(), 15)", -15, None),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
async def test_program_ends_as_under_python(tmp_path: Path, ending, code, said):
    (tmp_path / "train.py").write_text(
        f"import atexit, os, sys, threading, time\natexit.register(print, 'good-bye')\n{ending}\n"
    )
    log = await run(tmp_path, code=code)
    if said is None:
        assert log == ""  # a signal runs no handlers
    else:
        assert [line for line in log.splitlines() if line in {said, "good-bye"}] == [
            *filter(None, [said]),
            "good-bye",
        ]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("python", "missing.py"), 1, "No such file or directory"),
        (("python", "-m", "no_such_module"), 1, "No module named"),
        (("no-such-program",), 127, "cannot start no-such-program: no such program on PATH"),
        (("./nowhere/train.sh",), 127, "cannot start ./nowhere/train.sh: no such file"),
        (("./train.py",), 126, "is not executable: `chmod +x` it"),
        (("./typo.sh",), 127, "the interpreter in its first line, #!/bin/basch, is not there"),
        (("./empty.sh",), 126, "cannot be executed: Exec format error"),
    ],
)
async def test_commands_that_cannot_run_say_why_in_the_log(
    tmp_path: Path, command: tuple[str, ...], code: int, said: str
):
    (tmp_path / "train.py").write_text("")
    for name, text in (("typo.sh", "#!/bin/basch\necho x\n"), ("empty.sh", "echo x\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    assert said in await run(tmp_path, code=code, command=command)


async def test_missing_workdir_is_said_in_the_log(tmp_path: Path):
    (tmp_path / "train.py").write_text("")
    missing = str(tmp_path / "nowhere")
    assert missing in await run(tmp_path, code=1, workdir=missing)


async def test_failing_preload_is_logged_and_not_fatal(tmp_path: Path):
    (tmp_path / "train.py").write_text("import sys; print('json.tool' in sys.modules)")
    (tmp_path / "broken.py").write_text("raise RuntimeError('half written')")
    preload = ("broken", "no_such_module", "json.tool")
    assert await run(tmp_path, preload=preload) == "True\n"
    lines = map(json.loads, (tmp_path / "agent" / "agent.log").read_text().splitlines())
    failed = {line["module"]: line["error"] for line in lines if "module" in line}
    assert "half written" in failed["broken"]
    assert "No module named" in failed["no_such_module"]


async def test_preload_that_takes_the_standby_down_is_given_up(tmp_path: Path):
    (tmp_path / "train.py").write_text("print('cold')")
    (tmp_path / "deadly.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert await run(tmp_path, preload=("deadly",)) == "cold\n"


async def test_forked_ranks_do_not_share_numpys_random_state(tmp_path: Path):
    (tmp_path / "train.py").write_text("import numpy; print(numpy.random.random())")
    async with playground(
        tmp_path, "import numpy; print(numpy.random.random())", preload=("numpy",)
    ) as (
        server,
        agent,
    ):
        await server.send(start(ranks=(0, 1)))
        await server.until(lambda: len(server.of(RankExited)) == 2)
        assert agent.log(1, 0) != agent.log(1, 1)
