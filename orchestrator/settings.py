"""Everything that can be set, in one object. Read from the environment once, at the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from orchestrator.alert_settings import AlertSettings
from orchestrator.check_settings import CheckSettings
from orchestrator.hardware_settings import NodeMonitorSettings
from orchestrator.kubernetes_settings import KubernetesSettings
from orchestrator.oidc_settings import OidcSettings
from orchestrator.ray_settings import RaySettings


def server_url(url: str) -> str:
    """The URL of a server, without a slash at its end.

    Raises:
        ValueError: It is not one.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname and parts.port != 0)
    except ValueError:  # a bracket without its other half, a port that is not a number
        known = False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("expected a URL such as https://babysit.example.org")
    return url.rstrip("/")


class Settings(
    AlertSettings,
    CheckSettings,
    KubernetesSettings,
    NodeMonitorSettings,
    OidcSettings,
    RaySettings,
):
    """Settings of command line and control plane: `BABYSIT_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="BABYSIT_", env_ignore_empty=True, frozen=True)

    home: Path = Field(
        default=Path("~/.babysit"),
        description="Directory of the embedded database, the logs and the agents' spools. "
        "Another home is another, independent control plane.",
    )
    server: str | None = Field(
        default=None,
        description="URL of the control plane, such as https://babysit.example.org. "
        "Not set: commands start an embedded server on this machine, which exits when idle.",
    )
    token: SecretStr | None = Field(
        default=None,
        description="Bearer token. For a client: its identity; not needed on the server's machine. "
        "For `babysit server`: a first token with the role admin, to create others with.",
    )
    database_url: str = Field(
        default="",
        description="SQLAlchemy URL. Empty: SQLite in `home`, which serves one machine; several "
        "servers (for fail-over) need postgresql://.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address of the port. 0.0.0.0 opens it to the network, which needs TLS.",
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port the server listens on, beside the Unix socket of its home. 0: `babysit "
        "server` takes any free one, an embedded server none.",
    )
    agent_url: str = Field(
        default="",
        description="URL at which agents reach this server: wss://babysit.example.org/agent, say. "
        "Empty: the Unix socket of the home, which serves agents on this machine only; with "
        "`database_url`, the port.",
    )
    agent_ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign the certificate at `agent_url`. Agents "
        "on other machines get its text and trust these alone. Not set: those of `ca`, or of the "
        "agents' system.",
    )
    cluster: str = Field(
        default="local",
        description="Where workers run: `local` (virtual nodes on this machine), `kubernetes` "
        "(Pods), `ray` (actors) or `simulated` (nodes in memory and no processes: runs are placed, "
        "and nothing trains).",
    )
    pod: str = Field(
        default="",
        pattern=r"^([-a-z0-9]+/[-a-z0-9.]+)?$",
        description="NAMESPACE/NAME of the Pod that this server is. While the server leads, its "
        "Pod has the label `babysit/leader=true`, by which a Service finds it. Empty: no label.",
    )
    lost_host: str = Field(
        default="",
        description="Name of a host that is gone for good: a `local` cluster here takes its runs "
        "over. Its processes must be dead, or two attempts of a run write side by side.",
    )
    grafana_url: str = Field(
        default="",
        description="Address of Grafana, for `babysit grafana diff` and `push`, and for the "
        "annotations of `alerts=…,grafana`.",
    )
    grafana_token: SecretStr | None = Field(
        default=None,
        description="Token of a service account of Grafana with the role Editor.",
    )
    local_nodes: int = Field(
        default=4,
        ge=0,
        le=256,
        description="Virtual nodes of the local or the simulated cluster. A run that needs more is "
        "refused.",
    )
    local_cpus_per_node: float | None = Field(
        default=None,
        gt=0,
        description="CPU cores each virtual node offers. Not set: all of this machine's, on every "
        "node, so that CPU never keeps a run waiting.",
    )
    local_gpus_per_node: int = Field(
        default=0, ge=0, description="GPUs each virtual node offers. Default none."
    )
    local_memory_per_node: int | None = Field(
        default=None,
        gt=0,
        description="Bytes of memory each virtual node offers. Not set: memory is not accounted.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file with the server's certificate and its chain. With `tls_key`, the "
        "port speaks HTTPS.",
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the key of `tls_certificate`."
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign the server's certificate. Clients and "
        "agents trust these alone. Not set: those of the system, or of SSL_CERT_FILE.",
    )
    allow_http: bool = Field(
        default=False,
        description="Send tokens unencrypted to another host, or listen on more than 127.0.0.1 "
        "without TLS. Right where a proxy or the network encrypts.",
    )
    public_url: str = Field(
        default="",
        description="Address at which browsers reach the server: https://babysit.example.org. "
        "Needed behind a proxy that changes the header Host, and for single sign-on.",
    )
    session_hours: float = Field(
        default=168.0,
        gt=0,
        le=24 * 365,
        description="How long a browser stays signed in that signed in with a token, or for as "
        "long as the token is valid if that is shorter.",
    )
    max_body_bytes: int = Field(
        default=2**20, ge=1024, description="Largest body of a request that the server reads."
    )
    bundles: str = Field(
        default="",
        description="URL where the code of runs is kept that leave this machine, as fsspec knows "
        "them: s3://bucket/babysit, file:///mnt/shared/bundles. Empty: in `home`, and those up "
        "to 32 MiB on PostgreSQL also in the run database. Several servers need one for larger "
        "code.",
    )
    bundle_bytes: int = Field(
        default=512 * 2**20,
        ge=1024,
        description="Largest bundle of code that the server takes from `submit`.",
    )
    lease_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Duration of the leader's lease: another server takes over at most this long "
        "after the last renewal. From then on the database refuses writes of the old leader.",
    )
    drain_seconds: float = Field(
        default=10.0,
        ge=0,
        description="How long a stopping server may take to answer open requests. Runs continue "
        "without it in any case.",
    )
    log_rules: Path | None = Field(
        default=None,
        description="YAML file of rules that say what words in logs mean, for every run of this "
        "cluster; they come before babysit's own. Read when the server starts.",
    )
    log_bytes: int = Field(
        default=10 * 2**20,
        ge=4096,
        description="Size at which the log of a rank is rotated. Its newest lines are in "
        "`rank-00000.log`, older ones beside it.",
    )
    log_files: int = Field(
        default=5,
        ge=2,
        description="Files of `log_bytes` that are kept per rank and attempt; older lines are "
        "deleted.",
    )
    log_tail_bytes: int = Field(
        default=2**20,
        ge=0,
        le=64 * 2**20,
        description="Where ranks run on other machines: the end of each rank's log that the run "
        "database keeps, for when its node is gone. 0: keep none.",
    )
    log_tail_run_bytes: int = Field(
        default=64 * 2**20,
        ge=2**20,
        description="Limit of all such ends of one run. Where it is smaller than those of all "
        "ranks, each rank gets its share, but at least 64 KiB; older attempts go first.",
    )
    retention_days: float = Field(
        default=30.0,
        ge=0,
        le=36500,
        description="Days after the end of a run for which its journal, samples and logs are kept; "
        "the run itself, its checkpoints, its incidents and what people asked for stay. "
        "0: keep everything.",
    )
    retention_bytes: int = Field(
        default=10 * 2**30,
        ge=2**20,
        description="Size of the SQLite database, and of the logs of ended runs, above which the "
        "history of the runs that ended first is removed earlier, but not within a day of "
        "their end.",
    )
    audit_days: float = Field(
        default=0.0,
        ge=0,
        le=36500,
        description="Days for which the audit log is kept. 0: for ever.",
    )
    worker_lost_seconds: float = Field(
        default=15.0,
        gt=0,
        description="Silence of an agent before it counts as out of contact and is probed. Too "
        "short: a busy machine looks dead.",
    )
    idle_exit_seconds: float = Field(
        default=600.0,
        gt=0,
        description="An embedded server exits after this long without an active run and without "
        "a request; the next command starts it again.",
    )
    start_seconds: float = Field(
        default=30.0,
        gt=0,
        description="How long the command line waits for an embedded server to answer.",
    )
    request_seconds: float = Field(
        default=30.0, gt=0, description="How long the command line waits for an answer."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line the server writes."
    )

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("server", mode="after")
    @classmethod
    def _no_trailing_slash(cls, server: str | None) -> str | None:
        return None if server is None else server_url(server)

    @field_validator("public_url", mode="after")
    @classmethod
    def _an_origin(cls, public_url: str) -> str:
        if not public_url:
            return ""
        server_url(public_url)
        if urlsplit(public_url).path.strip("/") or set("?#@") & set(public_url):
            raise ValueError("expected the address of a site, such as https://babysit.example.org")
        return public_url.rstrip("/").lower()

    @field_validator("token", mode="after")
    @classmethod
    def _one_word(cls, token: SecretStr | None) -> SecretStr | None:
        secret = token.get_secret_value() if token else "x"
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ValueError(
                "expected the secret that `babysit token create` printed: a line of ASCII without"
                " blanks"
            )
        return token

    @field_validator("agent_url", mode="after")
    @classmethod
    def _for_agents(cls, agent_url: str) -> str:
        if agent_url and not agent_url.startswith(("ws://", "wss://")):
            raise ValueError("expected a URL such as wss://babysit.example.org/agent")
        return agent_url

    @property
    def database(self) -> str:
        """The database URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'babysit.db'}"

    @property
    def server_file(self) -> Path:
        """Where the embedded server says how it is reached; mode 0600."""
        return self.home / "server.json"

    @property
    def socket(self) -> Path:
        """The Unix socket of this home's server."""
        return self.home / "server.sock"

    @property
    def server_log(self) -> Path:
        """The log file of the embedded server."""
        return self.home / "server.log"

    def run_directory(self, run: str) -> Path:
        """The directory of one run on this machine."""
        return self.home / "runs" / run

    def log_directory(self, run: str) -> Path:
        """Logs of a run's ranks: `attempt-0001/rank-00000.log` and so on."""
        return self.run_directory(run) / "logs"
