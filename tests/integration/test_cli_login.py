"""`babysit login`: the device flow, the file that keeps the sign-in, and its renewal."""

from __future__ import annotations

import datetime as dt
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.clock import ManualClock, SystemClock
from orchestrator.cli import identity
from orchestrator.cli.errors import CliError, UnreachableError
from orchestrator.cli.identity import SignIn, SignInFile
from orchestrator.cli.main import app
from orchestrator.cli.session import Session
from tests.integration.test_oidc import settings
from tests.oidc_provider import DEVICE, Provider
from tests.plane import Plane


class QuickClock(SystemClock):
    """Sleeps no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def idp() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def plane(idp: Provider, tmp_path: Path) -> Iterator[Plane]:
    with Plane(tmp_path, **{**settings(idp.issuer, 0), "public_url": ""}) as running:
        yield running


@pytest.fixture
def home(plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "laptop"
    monkeypatch.setenv("BABYSIT_HOME", str(found))
    monkeypatch.setenv("BABYSIT_SERVER", plane.url)
    monkeypatch.delenv("BABYSIT_TOKEN", raising=False)
    return found


def babysit(*arguments: str, clock: Any = None) -> Any:
    here = Session(clock=clock or QuickClock())
    return CliRunner().invoke(app, arguments, obj=here, catch_exceptions=False)


def test_login_whoami_and_logout(home: Path, idp: Provider, plane: Plane) -> None:
    refused = babysit("ls")
    assert refused.exit_code == 5, refused.stderr
    assert "babysit login" in refused.stderr
    clock = QuickClock()
    idp.slow_downs = 1
    entered = babysit("login", "-o", "json", clock=clock)
    assert entered.exit_code == 0, entered.stderr
    assert json.loads(entered.stdout)["role"] == "operator"
    assert "WDJB-MJHT" in entered.stderr
    assert clock.slept == [1.0, 6.0], "slow_down adds five seconds"
    kept = home / "credentials.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    seen = json.loads(babysit("whoami", "-o", "json").stdout)
    assert (seen["name"], seen["role"], seen["via"]) == ("mia@example.org", "operator", "oidc")
    assert babysit("ls").exit_code == 0
    assert babysit("token", "ls").exit_code == 5
    left = babysit("logout")
    assert left.exit_code == 0, left.stderr
    assert not idp._refresh, "the provider has revoked it"
    assert json.loads(kept.read_text()) == {}
    assert babysit("ls").exit_code == 5
    assert babysit("logout").exit_code == 0


def test_a_token_that_ends_is_renewed_with_the_groups_of_that_time(
    home: Path, idp: Provider, plane: Plane
) -> None:
    idp.seconds = 30  # within the minute in which it is renewed
    assert babysit("login").exit_code == 0
    first = SignInFile(home, SystemClock()).find(plane.url)
    assert first is not None
    idp.people["mia"]["groups"] = ["ml-admins"]
    assert json.loads(babysit("whoami", "-o", "json").stdout)["role"] == "admin"
    second = SignInFile(home, SystemClock()).find(plane.url)
    assert second is not None
    assert second.refresh_token != first.refresh_token, "it works once"
    idp.people["mia"]["groups"] = []
    refused = babysit("whoami")
    assert refused.exit_code == 5
    assert "no group with a role" in refused.stderr
    del idp.people["mia"]
    idp.people["noah"] = {}
    ended = babysit("ls")
    assert ended.exit_code == 5
    assert "has ended (invalid_grant): run `babysit login`" in ended.stderr


@pytest.mark.parametrize(
    ("approved", "says"),
    [(False, "access_denied"), (None, "nobody has signed in within the time allowed")],
)
def test_a_login_that_nobody_approves(
    home: Path, idp: Provider, monkeypatch: pytest.MonkeyPatch, approved: bool | None, says: str
) -> None:
    idp.approved = approved
    clock = ManualClock(SystemClock().now())

    async def sleep(seconds: float) -> None:
        clock.advance(seconds * 100)

    monkeypatch.setattr(clock, "sleep", sleep)
    refused = babysit("login", clock=clock)
    assert refused.exit_code in {5, 8}
    assert says in refused.stderr
    assert not (home / "credentials.json").exists()


def test_a_person_without_a_role_is_not_kept(home: Path, idp: Provider) -> None:
    idp.people["mia"]["groups"] = ["others"]
    refused = babysit("login")
    assert refused.exit_code == 5
    assert "no group with a role" in refused.stderr
    assert not (home / "credentials.json").exists()


def test_without_the_provider_a_token_is_used_until_it_ends(tmp_path: Path, idp: Provider) -> None:
    clock = ManualClock(SystemClock().now())
    file = SignInFile(tmp_path, clock)
    found = SignIn(
        issuer=idp.issuer,
        client_id=DEVICE,
        token_endpoint=f"{idp.issuer}/token",
        id_token=idp.id_token(DEVICE),
        refresh_token="r",
    )
    file.keep("https://a", found)
    idp.away = True
    clock.advance(idp.seconds - 30)
    assert file.token("https://a") == found.id_token
    clock.advance(31)
    with pytest.raises(UnreachableError):
        file.token("https://a")
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(CliError, match="remove it"):
        file.token("https://a")


def test_a_provider_that_calls_itself_otherwise_is_refused(
    idp: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**idp.describe(), "issuer": "https://evil.example"}
    monkeypatch.setattr(idp, "describe", lambda: other)
    with pytest.raises(CliError, match="describes the issuer"):
        identity.metadata(idp.issuer)
    with pytest.raises(CliError, match="expected an https:// URL"):
        identity.metadata("http://login.example.org")
    plain = {**other, "issuer": idp.issuer, "token_endpoint": "http://evil.example/token"}
    monkeypatch.setattr(idp, "describe", lambda: plain)
    with pytest.raises(CliError, match="expected an https:// URL"):
        identity.metadata(idp.issuer)


def test_a_sign_in_is_for_a_server_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BABYSIT_SERVER", raising=False)
    assert babysit("login").exit_code == 2
    assert babysit("login", "--server", "nowhere").exit_code == 2
    with Plane(tmp_path) as plane:
        refused = babysit("login", "--server", plane.url)
    assert refused.exit_code == 4
    assert "no single sign-on" in refused.stderr


def test_an_unreadable_token_counts_as_ended() -> None:
    odd = SignIn(issuer="i", client_id="c", token_endpoint="t", id_token="x", refresh_token=None)
    assert odd.expires_at == 0
    assert dt.datetime.fromtimestamp(odd.expires_at, dt.UTC).year == 1970


def test_doctor_checks_the_settings_against_the_provider(
    idp: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BABYSIT_HOME", str(tmp_path))
    monkeypatch.delenv("BABYSIT_SERVER", raising=False)

    def finding(**values: str) -> tuple[str, str]:
        for name, value in values.items():
            monkeypatch.setenv(f"BABYSIT_OIDC_{name.upper()}", value)
        rows = json.loads(babysit("doctor", "-o", "json").stdout)
        [row] = [each for each in rows if each["name"] == "single sign-on"]
        return row["result"], row["detail"]

    assert finding(issuer=idp.issuer)[0] == "failed"
    assert "gives nobody a role" in finding(client_id="babysit")[1]
    assert finding(roles='{"ml": "operator"}')[0] == "ok"
    idp.key = idp.key.__class__.generate_key(2048, {"use": "enc"})
    assert "publishes no key" in finding()[1]
    assert "describes the issuer" in finding(issuer=f"{idp.issuer}/")[1]
    idp.away = True
    assert "503" in finding(issuer=idp.issuer)[1]
