"""The code of a run as `submit` packs it: chosen by ignore files, the same for the same tree."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.agent.code import unpack
from jobs.spec import RunSpec
from orchestrator.cli.bundle import archive, upload
from orchestrator.cli.bundle.selection import check_size, select
from orchestrator.cli.errors import CliError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def chosen(root: Path) -> set[str]:
    """Files and links that go with the run, without ignore files."""
    found = {e.path for e in select(root).entries if not (select(root).root / e.path).is_dir()}
    return {path for path in found if not path.endswith("ignore")}


def packed(root: Path) -> tuple[str, bytes]:
    file = io.BytesIO()
    return archive.write(select(root), file), file.getvalue()


def test_ignore_files_are_read_as_git_reads_them(tmp_path: Path) -> None:
    files = dict.fromkeys(
        ["a.log", "keep.log", "top", "sub/top", "data/x", "sub/data/x", "sub/own.txt", "sub/b.log"],
        "",
    )
    tree(tmp_path, files)
    tree(tmp_path, {".gitignore": "*.log\n!keep.log\n/top\ndata/\n!\n", "sub/.gitignore": "own*\n"})
    assert chosen(tmp_path) == {"keep.log", "sub/top"}
    tree(tmp_path, {".babysitignore": "sub/top\n!a.log\n!sub/own.txt\n"})
    assert chosen(tmp_path) == {"keep.log", "a.log", "sub/own.txt"}
    tree(tmp_path, {"sub/.gitignore": "!b.log\n"})
    assert chosen(tmp_path) == {"keep.log", "a.log", "sub/own.txt", "sub/b.log"}


def test_the_repository_around_a_workdir_counts_and_other_directories_do_not(
    tmp_path: Path,
) -> None:
    tree(tmp_path, {".gitignore": "*.bin\n", "repo/train/x.bin": "", "repo/train/x.py": ""})
    assert chosen(tmp_path / "repo/train") == {"x.bin", "x.py"}
    tree(tmp_path, {"repo/.gitignore": "/train/*.bin\n", "repo/.git/HEAD": ""})
    assert chosen(tmp_path / "repo/train") == {"x.py"}
    tree(tmp_path, {"repo/.gitignore": "/train/\n", "repo/train/.gitignore": "*.bin\n"})
    assert chosen(tmp_path / "repo/train") == {"x.py"}, "the workdir is ignored as a whole"


def test_ignore_files_of_windows_and_submodules_count_as_in_git(tmp_path: Path) -> None:
    tree(tmp_path, {"data/x": "", "a.json": "", "lib/b.json": "", "lib/c.log": "", ".git/HEAD": ""})
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbfdata/\r\n*.json\r\n")
    tree(tmp_path, {"lib/.git": "gitdir: ../.git/modules/lib", "lib/.gitignore": "*.log\n"})
    assert chosen(tmp_path) == {"lib/b.json"}
    (tmp_path / ".babysitignore").write_bytes(b"\xef\xbb\xbf/lib/b.json\r\n")
    assert chosen(tmp_path) == set(), "our own files count everywhere"


def test_code_that_git_does_not_know_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = ["gen/a_pb2.py", "src/_version.py", "out/curve.png", "old/x.py", "__pycache__/a.py"]
    tree(tmp_path, dict.fromkeys(["train.py", *left], ""))
    tree(tmp_path, {".gitignore": "gen/\n_version.py\nout/\n", ".babysitignore": "/old\n"})
    upload.choose(spec("python", "train.py"), tmp_path, 10_000)
    found = capsys.readouterr().err
    assert "since .gitignore excludes it: gen, src/_version.py. If" in found
    tree(tmp_path, {".babysitignore": "!/gen\n!/src/_version.py\n"})
    upload.choose(spec("python", "train.py"), tmp_path, 10_000)
    assert not capsys.readouterr().err
    assert {"gen/a_pb2.py", "src/_version.py"} <= chosen(tmp_path)


def test_histories_caches_secrets_and_virtual_environments_stay_behind(tmp_path: Path) -> None:
    tree(
        tmp_path,
        dict.fromkeys(
            [
                *(".git/HEAD", "__pycache__/x.pyc", "x.py", ".env", ".env.local", ".env.example"),
                *("keys/tls.key", "id_rsa", "mine/pyvenv.cfg", "mine/bin/python", "vendor/.git"),
            ],
            "",
        ),
    )
    selection = select(tmp_path)
    assert chosen(tmp_path) == {"x.py", ".env.example"}
    assert selection.secrets == (".env", ".env.local", "id_rsa", "keys/tls.key")
    assert selection.venvs == ("mine",)
    tree(tmp_path, {".babysitignore": "!/.env\n!tls.key\n"})
    assert chosen(tmp_path) == {"x.py", ".env.example", ".env", "keys/tls.key"}


def test_the_same_tree_has_the_same_id_wherever_and_whenever_it_is(tmp_path: Path) -> None:
    files = {"b/ünïcode ☃.py": "x", "a.py": "", "b/" + "n" * 200: "long", "z/deep/er": "1"}
    one, two = tree(tmp_path / "one", files), tree(tmp_path / "two", dict(reversed(files.items())))
    os.utime(two / "a.py", (1, 1))
    for root in (one, two):
        (root / os.fsdecode(b"latin-\xe4")).touch()
        (root / "link").symlink_to("a.py")
        (root / "a.py").chmod(0o755)
    (two / "absolute").symlink_to(two / "b")
    (one / "absolute").symlink_to("b")
    assert packed(one) == packed(two)
    (two / "a.py").chmod(0o644)
    assert packed(one)[0] != packed(two)[0]


def test_a_bundle_unpacks_to_the_tree_it_was_made_of(tmp_path: Path) -> None:
    root = tree(tmp_path / "code", {"pkg/m.py": "1", "empty": "", "run.sh": "#!"})
    (root / "run.sh").chmod(0o755)
    (root / "none").mkdir()
    (root / "newest").symlink_to("pkg")
    (root / "pkg/up").symlink_to("../run.sh")
    (root / "round").symlink_to("round")
    (root / "dangling").symlink_to("not-there")
    (root / "back").symlink_to(f"../{root.name}/run.sh")
    (root / os.fsdecode(b"\xff")).touch()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(root / "socket"))
    (tmp_path / "bundle").write_bytes(packed(root)[1])
    there = tmp_path / "there"
    for _ in range(2):  # what lies there is replaced
        unpack(tmp_path / "bundle", there)
        (there / "left.over").touch()
    unpack(tmp_path / "bundle", there)
    assert names(there) == names(root) - {"pipe", "socket"}
    assert (there / "newest/m.py").read_text() == "1"
    assert os.access(there / "run.sh", os.X_OK)
    assert not os.access(there / "pkg/m.py", os.X_OK)
    assert (there / "pkg/up").read_text() == (there / "back").read_text() == "#!"
    assert (there / "round").readlink() == Path("round")
    assert (there / "none").is_dir()


@pytest.mark.parametrize("target", ["/usr/share", "../other", "sub/../../other", "/nowhere"])
def test_a_link_that_leads_out_is_named(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "code", {"sub/x": "", "../other/secret": ""})
    (root / "data").symlink_to(target)
    with pytest.raises(CliError, match=r"code/data leads out of the workdir, to /.*List /data in"):
        select(root)
    tree(root, {".babysitignore": "/data\n"})
    assert chosen(root) == {"sub/x"}


def test_a_bundle_from_elsewhere_cannot_write_outside(tmp_path: Path) -> None:
    for name, link in (("../out", ""), ("/out", ""), ("x", "../out"), ("x", "/out")):
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, link
        with tarfile.open(tmp_path / "bundle", "w") as tar:
            tar.addfile(info)
        there = tmp_path / "there"
        try:
            unpack(tmp_path / "bundle", there)
        except tarfile.TarError:
            assert not there.exists()
        else:  # an absolute name loses its slash
            assert names(there) == {"out"}
        assert not (tmp_path / "out").exists()


def test_too_much_is_refused_by_the_names_of_the_largest(tmp_path: Path) -> None:
    root = tree(tmp_path, {"train.py": "x", "big.bin": "x" * 5000, "data/a": "x" * 3000})
    tree(root, {f"many/{n}": "x" * 10 for n in range(400)})
    check_size(select(root), 20_000)
    with pytest.raises(CliError) as caught:
        check_size(select(root), 9_000)
    message = str(caught.value)
    assert "in 403 files, and the server takes 8.8 KiB (BABYSIT_BUNDLE_BYTES)" in message
    assert "Its largest files: big.bin (4.9 KiB), data/a (2.9 KiB)" in message
    assert "the largest directories: many/ (3.9 KiB), data/ (2.9 KiB)" in message
    assert f"List in {root}/.babysitignore what the run" in message


def test_a_file_that_changes_meanwhile_is_never_packed_half(tmp_path: Path) -> None:
    changes = {
        "grows": lambda path: path.write_text("longer than before"),
        "shrinks": lambda path: path.write_text("s"),
        "is rewritten": lambda path: (path.write_text("12345678"), os.utime(path, ns=(1, 1))),
        "is a link": lambda path: (path.unlink(), path.symlink_to("other")),
        "vanishes": lambda path: path.unlink(),
    }
    for name, change in changes.items():
        root = tree(tmp_path / name, {"log.txt": "87654321", "other": ""})
        selection = select(root)
        change(root / "log.txt")
        with pytest.raises(CliError, match=r"log\.txt (changed while it was packed|cannot be)"):
            archive.write(selection, io.BytesIO())


def spec(*command: str) -> RunSpec:
    return RunSpec(name="a", command=command)


def test_a_command_whose_file_stays_behind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path, {"train.py": "", "old.py": "", ".gitignore": "old*\n", ".env": ""})
    tree(root, {"venv/pyvenv.cfg": "", "venv/bin/python": "", "bin/go": ""})
    for good in (
        ("python", "train.py"),
        ("./bin/go",),
        ("/opt/python", "-m", "x"),
        ("nvidia-smi",),
        ("python", "-u", "-m", "old"),
        ("python", "/app/x.py"),
    ):
        upload.choose(spec(*good), root, 10_000)
    assert "look like secrets: .env." in capsys.readouterr().err
    upload.choose(spec("python", f"{root}/train.py"), root, 10_000)
    assert "On the nodes the code lies in another directory: write train.py" in (
        capsys.readouterr().err
    )
    for bad, why in (
        (("python", "old.py"), r"old\.py is left out by an ignore file; write !/old\.py in"),
        (("venv/bin/python", "train.py"), "is in a virtual environment"),
        (("python3", "-u", "-W", "ignore", "gone.py"), r"gone\.py is not there"),
        (("./bin/none",), r"bin/none is not there"),
        (("python", "../lib/x.py"), r"x\.py is outside of the workdir .*: set `workdir` to a dir"),
    ):
        with pytest.raises(CliError, match=why):
            upload.choose(spec(*bad), root, 10_000)


class _Server:
    """Has what was uploaded."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.uploads = 0

    def has(self, where: str) -> bool:
        return where in self.stored

    def upload(self, where: str, content: Callable[[], Iterable[bytes]], size: int) -> None:
        self.uploads += 1
        first, again = b"".join(content()), b"".join(content())  # a try that broke, and another
        assert len(first) == size
        assert first == again
        self.stored[where] = first


def test_the_same_code_is_uploaded_once(tmp_path: Path) -> None:
    server = _Server()
    root = tree(tmp_path, {"train.py": "1", "empty": ""})

    def send() -> str:
        return upload.choose(spec("python", "train.py"), root, 10_000).send(cast("Any", server))

    one = send()
    os.utime(root / "train.py")
    assert send() == one
    assert server.uploads == 1
    assert hashlib.sha256(server.stored[f"/bundles/{one}"]).hexdigest() == one
    (root / "train.py").write_text("2")
    assert send() != one
    assert server.uploads == 2
