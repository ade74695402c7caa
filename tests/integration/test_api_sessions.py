"""Browsers sign in with a token or a link; no other site can act through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from jobs.clock import ManualClock
from orchestrator.database.credentials import Token
from orchestrator.database.memory_store import MemoryStore
from orchestrator.errors import PermissionDeniedError
from orchestrator.server import sign_in
from orchestrator.server.context import Context
from orchestrator.server.same_site import cookie_name, refuse_other_site
from orchestrator.settings import Settings
from tests.plane import SECRET, Plane

OURS = {"X-Babysit-Request": "1", "Sec-Fetch-Site": "same-origin"}
COOKIE = "babysit_session"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def browser(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{plane.url}/api/v1", trust_env=False) as client:
        yield client


def as_admin(plane: Plane) -> httpx.Client:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return httpx.Client(base_url=f"{plane.url}/api/v1", headers=headers, trust_env=False)


def made(plane: Plane, name: str, role: str, **limits: Any) -> dict[str, Any]:
    with as_admin(plane) as admin:
        answer = admin.post("/tokens", json={"name": name, "role": role, **limits})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


def test_a_token_opens_a_session_with_its_own_rights(plane: Plane, browser: httpx.Client) -> None:
    stranger = browser.get("/session").json()
    assert (stranger["signed_in"], stranger["name"]) == (False, None)
    assert [each["kind"] for each in stranger["methods"]] == ["token"]
    token = made(plane, "olga", "operator")
    entered = browser.post("/session", json={"token": token["secret"]}, headers=OURS)
    assert (entered.status_code, entered.json()["role"]) == (201, "operator")
    assert token["secret"] not in entered.text + str(entered.headers)
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert entered.headers["cache-control"] == "no-store"
    assert "Secure" not in cookie
    proxied = {**OURS, "X-Forwarded-Proto": "https"}  # of a proxy on this machine
    again = browser.post("/session", json={"token": token["secret"]}, headers=proxied)
    assert "Secure" in again.headers["set-cookie"]
    browser.cookies.clear()
    browser.post("/session", json={"token": token["secret"]}, headers=OURS)
    seen = browser.get("/session").json()
    assert (seen["name"], seen["role"], seen["via"]) == ("olga", "operator", "session")
    assert browser.post("/nodes/node-1/cordon", json={"reason": "x"}, headers=OURS).is_success
    assert browser.get("/tokens").status_code == 403
    with as_admin(plane) as admin:
        cordoned = [each for each in admin.get("/nodes").json() if each["state"] == "cordoned"]
        assert [each["by"] for each in cordoned] == ["operator:olga"]
        admin.delete(f"/tokens/{token['id']}")
    assert browser.get("/nodes").status_code == 401
    assert browser.get("/session").json()["signed_in"] is False


FROM_ELSEWHERE = [
    {},
    {"X-Babysit-Request": "1"},
    {"Sec-Fetch-Site": "same-origin"},
    {"X-Babysit-Request": "0", "Sec-Fetch-Site": "same-origin"},
    {"X-Babysit-Request": "1", "Sec-Fetch-Site": "cross-site"},
    {"X-Babysit-Request": "1", "Sec-Fetch-Site": "same-site"},
    {"X-Babysit-Request": "1", "Sec-Fetch-Site": "none"},
    {"X-Babysit-Request": "1", "Origin": "https://elsewhere.example"},
    {"X-Babysit-Request": "1", "Origin": "null"},
    {"X-Babysit-Request": "1", "Origin": "https://elsewhere", "Sec-Fetch-Site": "same-origin"},
]


@pytest.mark.parametrize("headers", FROM_ELSEWHERE)
def test_another_site_cannot_act_through_a_session(
    plane: Plane, browser: httpx.Client, headers: dict[str, str]
) -> None:
    secret = {"token": SECRET}
    assert browser.post("/session", json=secret, headers=headers).status_code == 403
    assert browser.post("/session", json=secret, headers=OURS).status_code == 201
    for method, path in (
        ("POST", "/hold"),
        ("POST", "/nodes/node-1/cordon"),
        ("DELETE", "/session"),
        ("POST", "/session"),
        ("POST", "/sign-in"),
        ("PUT", "/spares"),
        ("PATCH", "/queues/default"),
        ("DELETE", "/tokens/x"),
    ):
        refused = browser.request(method, path, headers=headers, json={"reason": "x"})
        assert refused.status_code == 403, (method, path, refused.text)
    assert browser.get("/session").json()["signed_in"] is True
    own = {"X-Babysit-Request": "1", "Origin": plane.url}
    assert browser.post("/sign-in", headers=own).status_code == 403, "a session opens no other"
    assert browser.delete("/session", headers=own).status_code == 204
    assert browser.get("/session").json()["signed_in"] is False


def test_a_session_that_has_ended_stays_so_and_a_new_one_has_a_new_secret(
    browser: httpx.Client,
) -> None:
    browser.cookies.set(COOKIE, "chosen-by-an-attacker")
    assert browser.post("/session", json={"token": SECRET}, headers=OURS).status_code == 201
    first = browser.cookies.jar
    [old] = [each.value for each in first if each.domain == "127.0.0.1" and each.value]
    assert old != "chosen-by-an-attacker"
    browser.post("/session", json={"token": SECRET}, headers={**OURS, "Cookie": f"{COOKIE}={old}"})
    browser.cookies.clear()
    again = browser.get("/session", headers={"Cookie": f"{COOKIE}={old}"})
    assert again.json()["signed_in"] is False


def test_guesses_are_slowed_down_and_not_echoed(
    plane: Plane, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane.context.sign_ins, "_failures", {})
    guess = {"token": "babysit_a-guess"}
    for _ in range(sign_in.ATTEMPTS):
        refused = browser.post("/session", json=guess, headers=OURS)
        assert refused.status_code == 401
        assert "a-guess" not in refused.text
    waits = browser.post("/session", json={"token": SECRET}, headers=OURS)
    assert (waits.status_code, waits.headers["retry-after"]) == (429, "60")
    large = browser.post("/session", json={"token": "x" * 20_000}, headers=OURS)
    assert large.status_code == 413


def test_a_link_signs_in_once_to_look_or_to_do_what_its_maker_may(
    plane: Plane, browser: httpx.Client
) -> None:
    with as_admin(plane) as admin:
        code = admin.post("/sign-in").json()
        entered = httpx.get(plane.url + code["path"], trust_env=False)
        assert entered.status_code == 200
        assert 'url=/"' in entered.text
        assert (entered.headers["cache-control"], entered.headers["referrer-policy"]) == (
            "no-store",
            "no-referrer",
        )
        again = httpx.get(plane.url + code["path"], trust_env=False)
        assert again.status_code == 401
        assert "the link was used already" in again.json()["error"]["message"]
        cookie = {"Cookie": f"{COOKIE}={entered.cookies[COOKIE]}"}
        seen = browser.get("/session", headers=cookie).json()
        assert (seen["role"], seen["via"]) == ("viewer", "link")
        assert browser.get("/tokens", headers=cookie).status_code == 403
        held = browser.post("/hold", headers={**cookie, **OURS}, json={"reason": "x"})
        assert held.status_code == 403
        acts = admin.post("/sign-in", json={"role": "operator"}).json()
        entered = httpx.get(plane.url + acts["path"], trust_env=False)
        cookie = {"Cookie": f"{COOKIE}={entered.cookies[COOKIE]}"}
        assert browser.get("/session", headers=cookie).json()["role"] == "operator"
    token = made(plane, "vera", "viewer")
    mine = {"Authorization": f"Bearer {token['secret']}"}
    more = browser.post("/sign-in", json={"role": "operator"}, headers=mine)
    assert more.status_code == 403, "nobody gives more than he has"
    assert httpx.get(f"{plane.url}/sign-in?code=x", trust_env=False).status_code == 401


def test_a_session_keeps_to_the_projects_of_its_token(plane: Plane, browser: httpx.Client) -> None:
    token = made(plane, "paul", "operator", projects=["llm"])
    entered = browser.post("/session", json={"token": token["secret"]}, headers=OURS)
    assert entered.json()["projects"] == ["llm"]
    assert browser.post("/hold", json={"reason": "x"}, headers=OURS).status_code == 403


class _Controller:
    runs_here = True

    def __init__(self, store: MemoryStore) -> None:
        self.store = store


async def test_a_session_ends_with_its_time_its_token_and_outlives_a_restart(
    tmp_path: Any,
) -> None:
    clock, store = ManualClock(), MemoryStore()

    def server(first: str) -> Context:
        settings = Settings(home=tmp_path, token=SecretStr(first), session_hours=1)
        return Context(_Controller(store), clock, settings)  # type: ignore[arg-type]

    here = server("first")
    by_first = await here.sign_ins.by_token(await here.authenticate("first"))
    day = clock.now().replace(day=2)
    token, _ = await store.create_token("mia", "admin", clock.now(), expires_at=day)
    opened = await here.sign_ins.by_token(token)
    after = server("first")
    assert await after.caller_of(opened.secret) is not None
    assert await after.caller_of(by_first.secret) is not None
    assert await server("another").caller_of(by_first.secret) is None, "the token was changed"
    code = await here.sign_ins.code(token, "viewer")
    clock.advance(sign_in.CODE_SECONDS)
    assert await after.sign_ins.by_code(code) is None
    code = await here.sign_ins.code(token, "viewer")
    linked = await after.sign_ins.by_code(code)
    assert linked is not None
    assert linked.expires_at == clock.now().replace(hour=8)
    clock.advance(3600)
    assert await after.caller_of(opened.secret) is None
    assert await after.caller_of(code) is None
    with pytest.raises(PermissionDeniedError):
        await here.sign_ins.code(
            Token(id="t", name="v", role="viewer", created_at=clock.now()), "admin"
        )


def test_behind_a_proxy_the_address_that_browsers_use_counts(tmp_path: Any) -> None:
    settings = Settings(home=tmp_path, public_url="https://Babysit.example.org/")
    assert settings.public_url == "https://babysit.example.org"
    assert cookie_name(settings) == "__Host-babysit_session"
    headers = [(b"x-babysit-request", b"1"), (b"host", b"10.0.0.7:8080")]
    ours = [*headers, (b"origin", b"https://babysit.example.org")]
    refuse_other_site({"headers": ours}, settings)
    for other in (b"http://babysit.example.org", b"https://babysit.example.org.evil.example"):
        with pytest.raises(PermissionDeniedError):
            refuse_other_site({"headers": [*headers, (b"origin", other)]}, settings)


@pytest.mark.parametrize("url", ["babysit.example.org", "https://x/path", "https://u@x", "ftp://x"])
def test_an_address_that_no_browser_uses_is_refused(url: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (a URL|the address)"):
        Settings(home=tmp_path, public_url=url)
