"""Sockets at paths of any length, whose peer the kernel names."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from jobs import unix_socket
from orchestrator.errors import BabysitError
from orchestrator.private_home import network_file_system
from orchestrator.server.listeners import Listeners, listening
from orchestrator.settings import Settings


@pytest.fixture(params=["short", "long"])
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    found = tmp_path if request.param == "short" else tmp_path / ("d" * 100) / ("e" * 100)
    found.mkdir(parents=True, exist_ok=True)
    return found


def connected(listeners: Listeners) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    with unix_socket.address(listeners.path) as address:
        client.connect(address)
    return client


def test_a_socket_is_reached_however_long_its_path_is(home: Path) -> None:
    with listening(Settings(home=home), embedded=True) as listeners:
        assert listeners.port is None, "no port unless one is asked for"
        assert (home / "server.sock").stat().st_mode & 0o777 == 0o600
        with connected(listeners) as client:
            server, _ = listeners.local.accept()
            with server:
                assert unix_socket.peer_uid(server) == unix_socket.peer_uid(client) == os.geteuid()
                client.sendall(b"hello")
                assert server.recv(5) == b"hello"
    assert not (home / "server.sock").exists()


def test_the_socket_of_a_server_that_was_killed_is_replaced(home: Path) -> None:
    with unix_socket.address(home / "server.sock") as address:
        old = socket.socket(socket.AF_UNIX)
        old.bind(address)
        old.close()
    with listening(Settings(home=home), embedded=True) as listeners, connected(listeners):
        pass


def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        listening(Settings(home=tmp_path), embedded=True) as listeners,
        connected(listeners) as client,
    ):
        monkeypatch.setattr(unix_socket, "peer_uid", lambda _: os.geteuid() + 1)
        with pytest.raises(ConnectionAbortedError):
            listeners.local.accept()
        assert client.recv(1) == b"", "closed"


def test_a_port_only_where_one_is_asked_for(tmp_path: Path) -> None:
    with listening(Settings(home=tmp_path), embedded=False) as listeners:
        assert listeners.address is not None
        assert listeners.address.startswith("127.0.0.1:")
        taken = int(listeners.address.rpartition(":")[2])
        wanted = Settings(home=tmp_path / "other", port=taken)
        wanted.home.mkdir()
        with (
            pytest.raises(BabysitError, match="set BABYSIT_HOST and BABYSIT_PORT"),
            listening(wanted, embedded=True),
        ):
            pass


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]:"), ("0.0.0.0", "127.0.0.1:")])
def test_addresses_are_shown_as_urls_have_them(tmp_path: Path, host: str, shown: str) -> None:
    with listening(Settings(home=tmp_path, host=host), embedded=False) as listeners:
        assert (listeners.address or "").startswith(shown)


def test_a_listener_without_descriptors_turns_connections_away(tmp_path: Path) -> None:
    """The event loop would log each of hundreds of tries a second."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening(Settings(home=tmp_path), embedded=True) as listeners:
        listeners.local.setblocking(False)
        with pytest.raises(BlockingIOError):
            listeners.local.accept()  # takes the reserve
        waiting = [connected(listeners) for _ in range(3)]
        used = max(client.fileno() for client in waiting) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, before[1]))
        spares = []
        try:
            while True:
                spares.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        try:
            for client in waiting:
                with pytest.raises(ConnectionAbortedError):
                    listeners.local.accept()
                assert client.recv(1) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for spare in spares:
                os.close(spare)
            for client in waiting:
                client.close()


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/local rw - xfs /dev/sdb1 rw
32 22 0:50 / /mnt/my\\040share rw - cifs //host/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/babysit", None),
        ("/home/mia/.babysit", "nfs4"),
        ("/home", "nfs4"),
        ("/home/local/mia", None),
        ("/homes/mia", None),
        ("/mnt/my share/x", "cifs"),
    ],
)
def test_network_file_systems_are_known(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind
