"""The home of a control plane is its owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator import private_home
from orchestrator.private_home import UnsafeHomeError, fault, make_private


def test_a_new_home_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "home")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o701, 0o1777])
def test_a_home_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(UnsafeHomeError, match=f"chmod 700 {home}"):
        make_private(home)
    assert stat.S_IMODE(home.stat().st_mode) == mode, "it is for its owner to mend"
    home.chmod(0o700)
    make_private(home)


def test_a_home_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert "set BABYSIT_HOME to a directory of your own" in (fault(tmp_path) or "")


def test_files_of_a_server_are_private_and_those_of_ranks_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_home, "_users_umask", -1)
    before = os.umask(0o027)
    try:
        private_home.keep_files_private()
        (tmp_path / "babysit.db").touch()
        assert private_home.users_umask() == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "babysit.db").stat().st_mode) == 0o600
