"""Single sign-on, with a provider that follows the contract, and with one of other authors."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import re
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import SecretStr

from jobs.clock import ManualClock, SystemClock
from orchestrator.database.audit import AuditEntry, AuditFilter
from tests.oidc_provider import CLIENT, DEVICE, SECRET, Provider
from tests.plane import Plane


def now() -> int:
    return int(SystemClock().now().timestamp())


OURS = {"X-Babysit-Request": "1", "Sec-Fetch-Site": "same-origin"}
ROLES = json.dumps({"ml-oncall": "operator", "ml-admins": "admin"})


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(autouse=True)
def as_it_was(idp: Provider) -> Iterator[None]:
    before = {name: value for name, value in vars(idp).items() if not name.startswith("_")}
    people = {name: dict(claims) for name, claims in idp.people.items()}
    yield
    vars(idp).update({**before, "people": people, "key": idp.key})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def settings(issuer: str, port: int) -> dict[str, Any]:
    return {
        "port": port,
        "public_url": f"http://127.0.0.1:{port}",
        "oidc_issuer": issuer,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SecretStr(SECRET),
        "oidc_device_client_id": DEVICE,
        "oidc_roles": ROLES,
        "oidc_label": "Example login",
    }


@pytest.fixture(scope="module")
def plane(idp: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    home = tmp_path_factory.mktemp("home")
    with Plane(home, **settings(idp.issuer, free_port())) as running:
        yield running


@pytest.fixture
def browser(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plane.url, trust_env=False) as client:
        plane.context.sign_ins._failures.clear()
        yield client


def begin(browser: httpx.Client, **params: str) -> str:
    """The provider's redirect back, after the person has signed in there."""
    sent = browser.get("/sign-in/oidc", params=params)
    assert sent.status_code == 303, sent.text
    return httpx.get(sent.headers["location"], trust_env=False).headers["location"]


def sign_in(browser: httpx.Client, **params: str) -> httpx.Response:
    return browser.get(begin(browser, **params))


def who(browser: httpx.Client) -> dict[str, Any]:
    return dict(browser.get("/api/v1/session").json())


def recheck(plane: Plane) -> None:
    """Have the groups of all sessions asked for at their next request."""
    for key, each in list(plane.store._sessions.items()):
        if each.kind == "oidc":
            memo = {**each.memo, "check": "2020-01-01T00:00:00+00:00"}
            plane.store._sessions[key] = dataclasses.replace(each, memo=memo)


def test_a_person_signs_in_with_the_role_of_a_group(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    ways = {each["kind"]: each for each in who(browser)["methods"]}
    assert ways["oidc"]["label"] == "Example login"
    asked = browser.get("/sign-in/oidc").headers["location"]
    words = {name: value[0] for name, value in parse_qs(urlsplit(asked).query).items()}
    assert words["code_challenge_method"] == "S256"
    assert {"state", "nonce", "code_challenge"} <= set(words)
    entered = sign_in(browser, next="/runs/tiny?tab=loss")
    assert entered.status_code == 200
    assert "url=/runs/tiny?tab=loss" in entered.text
    seen = who(browser)
    assert (seen["name"], seen["role"], seen["via"]) == ("mia@example.org", "operator", "oidc")
    cordoned = browser.post("/api/v1/nodes/node-1/cordon", json={"reason": "x"}, headers=OURS)
    assert cordoned.is_success
    assert cordoned.request.headers["cookie"]
    assert browser.post("/api/v1/nodes/node-1/uncordon", json={}).status_code == 403, "other sites"
    assert browser.get("/api/v1/tokens").status_code == 403
    kept = json.dumps(
        [dataclasses.asdict(each) for each in plane.store._sessions.values()], default=str
    )
    assert not any(token in kept for token in idp._refresh), "refresh tokens are sealed"
    assert browser.delete("/api/v1/session", headers=OURS).status_code == 204
    assert who(browser)["signed_in"] is False


def test_a_person_who_leaves_a_group_loses_its_role(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    idp.people["mia"]["groups"] = ["ml-admins", "ml-oncall"]
    sign_in(browser)
    assert who(browser)["role"] == "admin", "the highest role counts"
    idp.people["mia"]["groups"] = ["ml-oncall"]
    assert who(browser)["role"] == "admin", "not asked for yet"
    recheck(plane)
    assert who(browser)["role"] == "operator"
    idp.away = True
    recheck(plane)
    assert who(browser)["role"] == "operator", "without the provider a session goes on"
    idp.away = False
    idp.people["mia"]["groups"] = ["ml-oncalls", "ML-ONCALL", "ml-admins "]
    recheck(plane)
    assert who(browser)["signed_in"] is False
    assert who(browser)["signed_in"] is False, "and stays so"


def test_without_the_provider_tokens_of_babysit_work(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    idp.away = True
    entered = browser.post("/api/v1/session", json={"token": "first-token"}, headers=OURS)
    assert (entered.status_code, who(browser)["role"]) == (201, "admin")


def test_a_session_whose_groups_cannot_be_asked_for_ends_within_a_day(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    idp.grants_refresh = False
    sign_in(browser)
    recheck(plane)
    ends = dt.datetime.fromisoformat(who(browser)["expires_at"]).timestamp()
    assert ends - now() <= 8 * 3600 + 1


SPOILT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another issuer": lambda c: {**c, "iss": "https://evil.example"},
    "another audience": lambda c: {**c, "aud": "another-client"},
    "another audience ": lambda c: {**c, "aud": ["a", "b"]},
    "another party": lambda c: {**c, "aud": [CLIENT, "x"], "azp": "x"},
    "has expired": lambda c: {**c, "exp": now() - 61},
    "has no end": lambda c: {k: v for k, v in c.items() if k != "exp"},
    "is not a time": lambda c: {**c, "exp": "never"},
    "not valid yet": lambda c: {**c, "nbf": now() + 300},
    "not valid yet ": lambda c: {**c, "iat": now() + 300},
    "another sign-in": lambda c: {**c, "nonce": "of another"},
    "another sign-in ": lambda c: {k: v for k, v in c.items() if k != "nonce"},
    "names nobody": lambda c: {k: v for k, v in c.items() if k != "sub"},
    "names nobody ": lambda c: {k: v for k, v in c.items() if k != "email"},
    "names nobody  ": lambda c: {**c, "email": "a: b\n@x"},
    "not verified": lambda c: {**c, "email_verified": False},
    "not verified ": lambda c: {k: v for k, v in c.items() if k != "email_verified"},
    "not verified  ": lambda c: {**c, "email_verified": "true"},
    "no group": lambda c: {**c, "groups": {"ml-admins": True}},
}


@pytest.mark.parametrize("reason", SPOILT)
def test_an_id_token_that_is_not_as_it_must_be_opens_no_session(
    browser: httpx.Client, idp: Provider, reason: str
) -> None:
    idp.spoil = SPOILT[reason]
    refused = sign_in(browser)
    assert refused.status_code == 403
    assert reason.strip() in refused.text
    assert who(browser)["signed_in"] is False


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def unsigned(_: Provider, claims: dict[str, Any]) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(claims)}."


def with_public_key_as_secret(idp: Provider, claims: dict[str, Any]) -> str:
    signed = ".".join(map(encoded, ({"alg": "HS256", "kid": idp.key.kid}, claims)))
    digest = hmac.digest(idp.key.as_pem(private=False), signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def with_a_key_of_its_own(idp: Provider, claims: dict[str, Any]) -> str:
    own = RSAKey.generate_key(2048)
    header = {"alg": "RS256", "kid": idp.key.kid, "jwk": own.as_dict(private=False)}
    return jwt.encode(header, claims, own)


def of_an_unknown_key(_: Provider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "unknown"}, claims, RSAKey.generate_key(2048))


def changed_after_it_was_signed(idp: Provider, claims: dict[str, Any]) -> str:
    head, _, signature = idp.sign(claims).split(".")
    return f"{head}.{encoded({**claims, 'groups': ['ml-admins']})}.{signature}"


def of_a_logout(idp: Provider, claims: dict[str, Any]) -> str:
    return idp.sign(claims, typ="logout+jwt")


FORGED = (
    unsigned,
    with_public_key_as_secret,
    with_a_key_of_its_own,
    of_an_unknown_key,
    changed_after_it_was_signed,
    of_a_logout,
    lambda *_: "ey.ey.ey",
    lambda *_: "",
)


@pytest.mark.parametrize("forge", FORGED)
def test_a_forged_token_is_refused_by_page_and_api(
    browser: httpx.Client, idp: Provider, forge: Callable[..., str]
) -> None:
    idp.forge = lambda claims: forge(idp, claims)
    assert sign_in(browser).status_code == 403
    assert who(browser)["signed_in"] is False
    bearer = {"Authorization": f"Bearer {idp.id_token(DEVICE) or 'x.y.z'}"}
    refused = browser.get("/api/v1/runs", headers=bearer)
    assert refused.status_code == 401


def test_a_signed_token_of_the_command_line_is_a_caller(
    browser: httpx.Client, idp: Provider
) -> None:
    def ask(token: str) -> httpx.Response:
        return browser.get("/api/v1/info", headers={"Authorization": f"Bearer {token}"})

    assert ask(idp.id_token(DEVICE)).json()["role"] == "operator"
    assert ask(idp.id_token("another-client")).status_code == 401
    expired = ask(idp.id_token(DEVICE, exp=now() - 100))
    assert "has expired" in expired.json()["error"]["message"]
    assert ask(idp.id_token(DEVICE, groups=[])).status_code == 403
    plain = idp.id_token(DEVICE)
    assert plain not in expired.text


def test_a_link_of_a_person_ends_with_the_signed_token(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    token = idp.id_token(DEVICE, exp=now() + 100)
    bearer = {"Authorization": f"Bearer {token}"}
    code = browser.post("/api/v1/sign-in", json={"role": "operator"}, headers=bearer).json()
    assert browser.get(code["path"]).status_code == 200
    seen = who(browser)
    assert (seen["name"], seen["role"], seen["via"]) == ("mia@example.org", "operator", "link")
    ends = dt.datetime.fromisoformat(seen["expires_at"]).timestamp()
    assert ends <= now() + 100
    entered = browser.post("/api/v1/session", json={"token": token}, headers=OURS)
    assert (entered.status_code, entered.json()["signed_in"]) == (201, True)
    assert dt.datetime.fromisoformat(entered.json()["expires_at"]).timestamp() <= now() + 100


def test_a_session_whose_groups_are_asked_for_makes_no_link_that_outlives_them(
    browser: httpx.Client,
) -> None:
    sign_in(browser)
    refused = browser.post("/api/v1/sign-in", json={}, headers=OURS)
    assert (refused.status_code, who(browser)["via"]) == (403, "oidc")


def test_sign_ins_at_the_provider_are_in_the_audit_log(plane: Plane, browser: httpx.Client) -> None:
    def newest() -> AuditEntry:
        return plane.do(plane.store.audit(AuditFilter(action="session_by", limit=1)))[-1]

    sign_in(browser)
    done = newest()
    assert (done.action, done.actor, done.role) == (
        "session_by_oidc",
        "mia@example.org",
        "operator",
    )
    assert (done.via, done.outcome, done.target) == ("oidc", "done", "")
    browser.get("/sign-in/oidc/callback?code=secret-code&state=y")
    failed = newest()
    assert (failed.actor, failed.outcome) == ("", "refused")
    assert "another browser" in failed.detail
    assert "secret-code" not in str(failed)


async def test_a_provider_that_is_silent_is_not_waited_for_by_every_request(
    tmp_path: Any,
) -> None:
    from orchestrator.server.oidc.errors import ProviderAwayError
    from orchestrator.server.oidc.provider import KEPT_SECONDS, SILENT_SECONDS
    from orchestrator.server.oidc.provider import Provider as Client
    from orchestrator.settings import Settings

    asked = []

    def silent(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        raise httpx.ConnectTimeout("")

    clock = ManualClock()
    wanted = Settings(home=tmp_path, oidc_issuer="https://login.example.org", oidc_client_id="c")
    client = Client(wanted, clock, httpx.MockTransport(silent))
    for _ in range(5):
        with pytest.raises(ProviderAwayError):
            await client.metadata()
    assert len(asked) == 1
    clock.advance(SILENT_SECONDS)
    with pytest.raises(ProviderAwayError):
        await client.metadata()
    assert len(asked) == 2
    base = {"issuer": wanted.oidc_issuer, "token_endpoint": "https://t", "jwks_uri": "https://k"}
    client._transport = httpx.MockTransport(lambda _: httpx.Response(200, json=base))
    clock.advance(SILENT_SECONDS)
    known = await client.metadata()
    client._transport = httpx.MockTransport(silent)
    clock.advance(KEPT_SECONDS)
    for _ in range(5):
        assert await client.metadata() == known
    assert len(asked) == 3


async def test_what_is_known_of_the_provider_outlives_its_faults(tmp_path: Any) -> None:
    from orchestrator.server.oidc.errors import ProviderAwayError
    from orchestrator.server.oidc.provider import KEPT_SECONDS, KEYS_SECONDS
    from orchestrator.server.oidc.provider import Provider as Client
    from orchestrator.settings import Settings

    asked = []
    issuer = "https://login.example.org"
    base = {"issuer": issuer, "token_endpoint": "https://t", "jwks_uri": "https://k/keys"}

    def right(request: httpx.Request) -> httpx.Response:
        keys = {"keys": [{"kty": "RSA", "kid": "1"}]}
        return httpx.Response(200, json=keys if request.url.path == "/keys" else base)

    def wrong(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(status, text="<html>")

    clock, secret = ManualClock(), tmp_path / "secret"
    wanted = Settings(
        home=tmp_path, oidc_issuer=issuer, oidc_client_id="c", oidc_client_secret_file=secret
    )
    client = Client(wanted, clock, httpx.MockTransport(right))
    known = await client.metadata(), await client.signing_keys()
    with pytest.raises(ProviderAwayError, match="BABYSIT_OIDC_CLIENT_SECRET_FILE"):
        await client.tokens(grant_type="refresh_token")
    client._transport = httpx.MockTransport(wrong)
    for status in (404, 200, 429, 500):
        clock.advance(KEPT_SECONDS)
        asked.clear()
        for _ in range(5):
            assert (await client.metadata(), await client.signing_keys()) == known, status
        assert asked.count("/keys") == 1, "tokens of strangers do not have the keys asked for"
        clock.advance(KEYS_SECONDS)
        await client.signing_keys()
        assert asked.count("/keys") == 2


def test_keys_that_the_provider_changes_are_read_again_but_not_for_every_stranger(
    plane: Plane, browser: httpx.Client, idp: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.get("/api/v1/info", headers={"Authorization": f"Bearer {idp.id_token(DEVICE)}"})
    provider = plane.context.single_sign_on._provider  # type: ignore[union-attr]
    monkeypatch.setattr(provider, "_keys_at", float("-inf"))
    idp.turn_keys()
    assert sign_in(browser).status_code == 200
    before = idp.asked.count("/keys")
    unknown = of_an_unknown_key(idp, {"sub": "x"})
    for _ in range(5):
        browser.get("/api/v1/info", headers={"Authorization": f"Bearer {unknown}"})
    assert idp.asked.count("/keys") == before


def test_an_answer_works_once_in_the_browser_that_asked(
    plane: Plane, browser: httpx.Client, idp: Provider
) -> None:
    back = begin(browser)
    with httpx.Client(base_url=plane.url, trust_env=False) as another:
        assert another.get(back).status_code == 403, "it has no cookie"
        begin(another)
        assert another.get(back).status_code == 403, "its cookie is of another sign-in"
    cookie = f"babysit_sign_in={browser.cookies['babysit_sign_in']}"
    assert browser.get(back).status_code == 200
    code = {"code": "guessed"}
    again = urlsplit(back)
    asked = {name: value[0] for name, value in parse_qs(again.query).items()}
    replayed = httpx.get(back, headers={"Cookie": cookie}, trust_env=False)
    assert "the sign-in is over" in replayed.text
    back = begin(browser)
    asked = {name: value[0] for name, value in parse_qs(urlsplit(back).query).items()}
    cookie = f"babysit_sign_in={browser.cookies['babysit_sign_in']}"
    for wrong in (
        {**asked, **code},
        {**asked, "state": "x"},
        {**asked, "iss": "https://evil.example"},
        {name: value for name, value in asked.items() if name != "iss"},
        {name: value for name, value in asked.items() if name != "code"},
        {**asked, "error": "access_denied<script>", "error_description": "no\r\nway"},
    ):
        address = f"{plane.url}{urlsplit(back).path}?{urlencode(wrong)}"
        refused = httpx.get(address, headers={"Cookie": cookie}, trust_env=False)
        assert refused.status_code == 403, wrong
        assert "<script>" not in refused.text


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example"),
        *("javascript:alert(1)", "/\t/evil.example", "/\r\nSet-Cookie: a=b", "evil.example"),
        *('/ "><script>', "/" + "x" * 1000, "/é", ""),
    ],
)
def test_a_sign_in_leads_on_within_this_site_only(browser: httpx.Client, elsewhere: str) -> None:
    entered = sign_in(browser, next=elsewhere)
    assert entered.status_code == 200
    assert 'url=/"' in entered.text


def test_many_failures_make_an_address_wait(plane: Plane, browser: httpx.Client) -> None:
    for _ in range(20):
        assert browser.get("/sign-in/oidc/callback?code=x&state=y").status_code == 403
    assert browser.get("/sign-in/oidc/callback?code=x&state=y").status_code == 429


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_a_provider_of_other_authors(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        import oidc_provider_mock
    claims = {
        "email": "ada@example.org",
        "email_verified": True,
        "groups": ["ml-oncall"],
    }
    user = oidc_provider_mock.User(sub="ada", claims=claims)
    with oidc_provider_mock.run_server_in_thread(user_claims=[user]) as server:
        issuer, port = f"http://localhost:{server.server_port}", free_port()
        with (
            Plane(tmp_path, **settings(issuer, port)) as plane,
            httpx.Client(base_url=plane.url, trust_env=False) as browser,
        ):
            asked = browser.get("/sign-in/oidc").headers["location"]
            page = httpx.get(asked, trust_env=False)
            assert page.status_code == 200, page.text
            sent = httpx.post(asked, data={"sub": "ada"}, trust_env=False)
            assert sent.status_code == 302, sent.text
            entered = browser.get(urljoin(asked, sent.headers["location"]))
            assert entered.status_code == 200, re.sub("<[^>]*>", " ", entered.text)
            assert (who(browser)["name"], who(browser)["role"]) == ("ada@example.org", "operator")
            httpx.put(f"{issuer}/users/ada", json={**claims, "groups": []}, trust_env=False)
            recheck(plane)
            assert who(browser)["signed_in"] is False
