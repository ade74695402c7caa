"""What the configuration of an agent leaves to its node, and to the server's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.agent.__main__ import with_address
from jobs.agent.errors import ConfigError
from jobs.config import AgentConfig
from jobs.spec import RunSpec
from orchestrator.errors import BabysitError
from orchestrator.server.process import agent_authorities
from orchestrator.settings import Settings
from tests.certificates import make_certificate


def config(tmp_path: Path, **changes: object) -> AgentConfig:
    fields: dict[str, object] = {
        "run": "r",
        "worker": "w",
        "node": "n",
        "token": "t",
        "directory": tmp_path,
        "log_directory": tmp_path,
        "memory_directory": tmp_path,
        "spec": RunSpec(name="a", command=("true",)),
    }
    return AgentConfig.model_validate(fields | changes)


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::17"])
def test_an_address_comes_from_the_environment_where_the_cluster_knows_none(
    tmp_path: Path, address: str
) -> None:
    given = {"BABYSIT_NODE_ADDRESS": address}
    assert with_address(config(tmp_path, address=""), given).address == address
    assert with_address(config(tmp_path, address="node-7"), given).address == "node-7"


@pytest.mark.parametrize("given", [{}, {"BABYSIT_NODE_ADDRESS": " "}])
def test_a_node_without_an_address_is_refused_at_the_start(
    tmp_path: Path, given: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="BABYSIT_NODE_ADDRESS is not set"):
        with_address(config(tmp_path, address=""), given)


def test_agents_get_the_authorities_of_their_own_endpoint(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    other = tmp_path / "other.pem"
    other.write_text("not a certificate")
    assert agent_authorities(Settings(home=tmp_path)) is None
    given = Settings(home=tmp_path, agent_ca=certificate, ca=other)
    assert agent_authorities(given) == certificate.read_text()
    assert agent_authorities(Settings(home=tmp_path, ca=certificate)) == certificate.read_text()


@pytest.mark.parametrize("text", ["", "words", None])
def test_a_file_without_authorities_stops_the_server_at_its_start(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BabysitError, match=r"BABYSIT_AGENT_CA=.*ca\.pem: .*; expected a PEM"):
        agent_authorities(Settings(home=tmp_path, agent_ca=path))
