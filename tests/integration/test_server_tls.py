"""TLS with an authority of one's own: the server's port, commands, completion, and agents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from jobs.agent import connection
from orchestrator.cli.completion import complete_run
from tests.certificates import make_certificate
from tests.cli import babysit, connect
from tests.plane import Plane, finished

OK, USAGE, UNREACHABLE = 0, 2, 6
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, which is its own authority, and its key in `key.pem`."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Plane]:
    key = certificate.with_name("key.pem")
    home = tmp_path_factory.mktemp("home")
    with Plane(home, tls_certificate=certificate, tls_key=key) as running:
        finished(running)
        yield running


@pytest.mark.parametrize("variable", ["BABYSIT_CA", "SSL_CERT_FILE", None])
def test_clients_trust_the_authority_they_are_given(
    plane: Plane,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str | None,
) -> None:
    assert plane.url.startswith("https://")
    connect(plane, monkeypatch, tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(certificate))
    result = babysit("ls", "-o", "name")
    assert result.exit_code == (OK if variable else UNREACHABLE), result.output
    assert variable or "certificate verify failed" in result.stderr
    assert [name for name, _ in complete_run("ti")] == (["tiny"] if variable else [])


def test_an_authority_that_cannot_be_read_is_named(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.setenv("BABYSIT_CA", str(tmp_path / "none.pem"))
    result = babysit("ls")
    assert result.exit_code == USAGE
    assert f"BABYSIT_CA={tmp_path / 'none.pem'} cannot be read: No such file" in result.stderr


async def test_agents_trust_the_authority_they_are_given(plane: Plane, certificate: Path) -> None:
    url = plane.url.replace("https", "wss") + "/agent"
    agent = await connection._open(url, {}, certificate)
    await agent.send(b"no hello")
    with pytest.raises(ConnectionClosed):
        await agent.recv()
    with pytest.raises(OSError, match="certificate verify failed"):
        await connection._open(url, {}, None)
