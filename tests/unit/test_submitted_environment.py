"""The environment of a submission: what goes, what is dropped, where values come from; paths."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.environment import (
    MAX_VALUE_BYTES,
    Environment,
    divide,
    parse_dotenv,
    read_sources,
)
from jobs.paths import PathError, expand
from jobs.spec import EnvironmentSource
from jobs.spec_file import SpecError, parse, resolve

SHELL = {
    "PATH": "/venv/bin:/usr/bin",
    "HOME": "/home/mia",
    "HF_TOKEN": "hf-secret",
    "WANDB_MODE": "offline",
    "WANDB_PROJECT": "p",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "TMUX": "1",
    "PWD": "/x",
    "SHLVL": "3",
    "CUDA_VISIBLE_DEVICES": "1",
    "MASTER_ADDR": "203.0.113.9",
    "SLURM_PROCID": "4",
    "BABYSIT_TOKEN": "t",
    "BABYSIT_MINE": "x",
    "BASH_FUNC_module%%": "() { :; }",
    "BYTES": "\udcff",
}


def test_a_shells_own_variables_go_and_those_of_session_launcher_and_devices_do_not() -> None:
    kept, dropped = divide(SHELL, own=["BABYSIT_TOKEN"])
    assert set(kept) == {
        "PATH",
        "HOME",
        "HF_TOKEN",
        "WANDB_MODE",
        "WANDB_PROJECT",
        "BASH_FUNC_module%%",
    }
    assert dropped == (
        "BABYSIT_MINE",
        "BYTES",
        "CUDA_VISIBLE_DEVICES",
        "MASTER_ADDR",
        "SLURM_PROCID",
        "SSH_AUTH_SOCK",
        "TMUX",
    )


def test_no_message_has_a_value() -> None:
    whole = Environment(shell={"KEY": "hush"}, named={"OTHER": "hush"})
    assert "hush" not in repr(whole)
    assert whole.variables == {"KEY": "hush", "OTHER": "hush"}
    with pytest.raises(ValueError, match=r"^KEY has 131,\d{3} bytes; 131,071 are possible$"):
        Environment(named={"KEY": "x" * MAX_VALUE_BYTES}).checked()
    many = {f"N{n}": "x" * 100_000 for n in range(11)}
    with pytest.raises(ValueError, match=r"^the environment has 1,100,\d{3} bytes"):
        Environment(shell=many).checked()


def sources(tmp_path: Path, *entries: dict) -> dict[str, str]:
    read = [EnvironmentSource.model_validate(entry) for entry in entries]
    _, source = parse("name: a\ncommand: [sh]\nenv_from:\n  - file: x\n  - file: y\n")
    return read_sources(read, tmp_path, SHELL, source)


def test_files_variables_and_secrets_are_read_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\nHF_TOKEN=of the file\n")
    (tmp_path / "token").write_text("of the secret\n")
    found = sources(
        tmp_path,
        {"file": ".env"},
        {"variables": ["HF_TOKEN", "WANDB_*", "SSH_*", "NONE_*"]},
        {"secrets": {"KEY": "file:token", "ALIAS": "env:WANDB_MODE", "SSH_AUTH_SOCK": "env:TMUX"}},
    )
    assert found == {
        "A": "1",
        "HF_TOKEN": "hf-secret",
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "p",
        "KEY": "of the secret",
        "ALIAS": "offline",
        "SSH_AUTH_SOCK": "1",  # named in full, so it goes
    }


def test_what_cannot_be_read_is_told_by_place_and_name(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("A=1\nno hush equals sign\n")
    with pytest.raises(SpecError) as caught:
        sources(tmp_path, {"variables": ["NOWHERE", "NEVER"]}, {"file": "missing"})
    assert str(caught.value).splitlines() == [
        "run.yaml:4:5: env_from[0]: NOWHERE is not set in the environment of this shell",
        "run.yaml:4:5: env_from[0]: NEVER is not set in the environment of this shell",
        f"run.yaml:5:5: env_from[1]: {tmp_path}/missing: No such file or directory",
    ]
    with pytest.raises(SpecError) as caught:
        sources(tmp_path, {"file": "bad"})
    assert str(caught.value).endswith("bad:2: expected NAME=value")
    with pytest.raises(SpecError, match="BABYSIT_TOKEN is babysit's own variable"):
        sources(tmp_path, {"secrets": {"BABYSIT_TOKEN": "env:TMUX"}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=1", "1"),
        ("export A = 1 # one", "1"),
        ("A=a#b", "a#b"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A='a # $B \\n'  # kept", "a # $B \\n"),
        ('A="a\\tb\\"c\\\\d $B"', 'a\tb"c\\d $B'),
        ('A="first\nsecond"', "first\nsecond"),
        ("# no\n\n  A=x=y==\r\n", "x=y=="),
        ("\ufeffA=bom", "bom"),
    ],
)
def test_lines_of_dotenv_files(text: str, value: str) -> None:
    assert parse_dotenv(text) == {"A": value}


@pytest.mark.parametrize("text", ["A", "1=2", "A B=3", "A='open", 'A="x" y', "=1"])
def test_other_lines_are_refused_by_their_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"^\.env:2: "):
        parse_dotenv(f"B=1\n{text}\n")


@given(st.text(alphabet=st.characters(exclude_characters="'\0\r", codec="utf-8")))
@example(" \n")
def test_any_value_survives_in_single_quotes(value: str) -> None:
    assert parse_dotenv(f"A='{value}'\nB=1") == {"A": value, "B": "1"}


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        ("~", "/home/mia"),
        ("~/ck", "/home/mia/ck"),
        ("$HOME/ck", "/home/mia/ck"),
        ("${HOME}2/$WANDB_MODE", "/home/mia2/offline"),
        ("a~b/~", "a~b/~"),
        ("$$HOME/$$", "$HOME/$"),
        ("50$", "50$"),
        ("./plain", "./plain"),
        ("~root/x", "/root/x"),
    ],
)
def test_paths_are_expanded_as_in_a_shell(path: str, expanded: str) -> None:
    assert expand(path, SHELL) == expanded


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NOWHERE/ck", r"\$NOWHERE is not set in the environment of the submission"),
        ("${NOWHERE}", r"\$\{NOWHERE\} is not set"),
        ("$EMPTY/ck", r"\$EMPTY is empty"),
        ("${HOME:-/x}", r"\$\{HOME:-/x\} cannot be expanded: write \$\{NAME\}"),
        ("${HOME", r"\$\{HOME cannot be expanded"),
        ("~no-such-user/x", "~no-such-user: there is no such user"),
    ],
)
def test_what_cannot_be_expanded_is_refused_by_name(path: str, message: str) -> None:
    with pytest.raises(PathError, match=message):
        expand(path, {**SHELL, "EMPTY": ""})


@given(st.text(alphabet=string.ascii_letters + "/._- ", min_size=1))
def test_paths_without_signs_stay_as_they_are(path: str) -> None:
    assert expand(path, {}) == path


def test_the_paths_of_a_spec_are_expanded_with_the_submission(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/tool").symlink_to("/bin/true")
    text = """name: a
command: [$W/tool, $W, ~/x]
workdir: $W
env: {MODEL_DIR: ~/m, LD_LIBRARY_PATH: "~/lib:$W/lib", NOTE: $W, HF_HOME: "${W}/hf"}
checkpoint: {directory: ~/ck}
"""
    spec, source = parse(text)
    home = str(tmp_path)
    ready = resolve(spec, "/", source, Environment(shell={"W": f"{home}/work", "HOME": home}))
    assert ready.command == (f"{home}/work/tool", "$W", "~/x"), "arguments are no paths"
    assert ready.workdir == f"{home}/work"
    assert ready.checkpoint.directory == f"{home}/ck"
    assert ready.env == {
        "MODEL_DIR": f"{home}/m",
        "LD_LIBRARY_PATH": f"{home}/lib:{home}/work/lib",
        "NOTE": "$W",
        "HF_HOME": f"{home}/work/hf",
    }
    with pytest.raises(SpecError) as caught:
        resolve(spec, "/", source, Environment())
    lines = str(caught.value).splitlines()
    places = [line.split(" ")[0] + line.split(" ")[1] for line in lines]
    assert places == [
        "run.yaml:2:11:command[0]:",
        "run.yaml:3:10:workdir:",
        "run.yaml:4:18:env.MODEL_DIR:",
        "run.yaml:4:40:env.LD_LIBRARY_PATH:",
        "run.yaml:4:40:env.LD_LIBRARY_PATH:",
        "run.yaml:4:75:env.HF_HOME:",
        "run.yaml:5:25:checkpoint.directory:",
    ]


def test_a_program_is_looked_for_on_the_path_of_the_submission(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").symlink_to("/bin/true")
    spec, source = parse("name: a\ncommand: [tool]\n")
    there = Environment(shell={"PATH": "bin"})  # relative to the workdir, as in a shell
    assert resolve(spec, tmp_path, source, there).command == ("tool",)
    for elsewhere in (Environment(shell={"PATH": "/usr/bin"}), Environment()):
        with pytest.raises(SpecError, match="tool: no such program on PATH"):
            resolve(spec, tmp_path, source, elsewhere)
