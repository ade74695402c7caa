"""Credentials of the API: roles, scopes, ends, uses, and what a server takes for its own token."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.plane import RUN_ID, SECRET, Plane, finished


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


def client(plane: Plane, secret: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.Client(base_url=f"{plane.url}/api/v1", headers=headers, trust_env=False)


@contextlib.contextmanager
def token(plane: Plane, name: str, **fields: Any) -> Iterator[httpx.Client]:
    """A client with a token of its own, revoked at the end."""
    with client(plane, SECRET) as admin:
        made = admin.post("/tokens", json={"name": name, **fields})
        assert made.status_code == 201, made.text
        with client(plane, made.json()["secret"]) as mine:
            yield mine
        admin.delete(f"/tokens/{made.json()['id']}")


def row(plane: Plane, name: str) -> dict[str, Any]:
    with client(plane, SECRET) as admin:
        return next(each for each in admin.get("/tokens").json() if each["name"] == name)


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def submit(http: httpx.Client, directory: Path, **fields: Any) -> httpx.Response:
    spec = {"name": "mine", "command": ["true"], **fields}
    return http.post("/runs", json={"spec": spec, "base_directory": str(directory)})


def test_the_list_says_when_a_token_was_used(plane: Plane) -> None:
    with token(plane, "used") as mine:
        assert row(plane, "used")["last_used_at"] is None
        assert mine.get("/runs").status_code == 200
        assert row(plane, "used")["last_used_at"] is not None


@pytest.mark.parametrize("end", ["revoked", "expired"])
@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_the_servers_own_token_is_none_of_the_table(plane: Plane, end: str, role: str) -> None:
    """A server that is started with somebody's token in its environment makes nobody an admin."""
    name = f"{end}-{role}"
    past = "2999-01-01T00:00:00Z"
    with token(plane, name, role=role, expires_at=past) as mine:
        secret = mine.headers["authorization"].removeprefix("Bearer ")
        before = plane.settings
        plane.context.settings = before.model_copy(update={"token": SecretStr(secret)})
        try:
            assert mine.get("/tokens").status_code == 403, "the role of the table counts"
            if end == "revoked":
                now = plane.context.clock.now()
                plane.do(plane.store.revoke_token(row_id(plane, secret), now))
            else:
                expire(plane, secret)
            refused = mine.get("/tokens")
            assert refused.status_code == 401
            assert f"the token {name}" in message(refused)
            assert end in message(refused)
        finally:
            plane.context.settings = before


def row_id(plane: Plane, secret: str) -> str:
    found = plane.do(plane.store.find_token(secret))
    assert found is not None
    return found.id


def expire(plane: Plane, secret: str) -> None:
    """Have a token's end lie in the past."""
    id_ = row_id(plane, secret)
    found, stored = plane.store._tokens[id_]
    plane.store._tokens[id_] = dataclasses.replace(found, expires_at=found.created_at), stored


def test_a_token_for_a_mistyped_queue_is_refused(plane: Plane) -> None:
    with client(plane, SECRET) as admin:
        made = admin.post("/tokens", json={"name": "ci", "queues": ["defualt"]})
        assert made.status_code == 422
        assert "no queue defualt; did you mean default?" in message(made)


def test_a_run_is_owned_by_whoever_submits_it(plane: Plane, tmp_path: Path) -> None:
    """Neither the request nor the spec may name another, but an administrator's."""
    with token(plane, "mia") as mia:
        for own in ({}, {"owner": "mia"}):
            assert submit(mia, tmp_path, **own).json()["owner"] == "mia"
        before = len(mia.get("/runs").json())
        spec = {"name": "mine", "command": ["true"]}
        of_noah = {"spec": spec, "base_directory": str(tmp_path), "owner": "noah"}
        in_spec = {"spec": {**spec, "owner": "noah"}, "base_directory": str(tmp_path)}
        for path in ("/runs", "/runs/dry-run"):
            for body in (of_noah, in_spec, {**in_spec, "owner": "root"}):
                refused = mia.post(path, json=body)
                assert refused.status_code == 403, refused.text
                assert "its runs are owned by mia" in message(refused)
        assert len(mia.get("/runs").json()) == before, "nothing was submitted"
    with client(plane, SECRET) as admin:
        assert admin.post("/runs", json=of_noah).json()["owner"] == "noah"
        assert admin.post("/runs", json=in_spec).json()["owner"] == "noah"
        both = admin.post("/runs", json={**in_spec, "owner": "ada"})
        assert both.json()["owner"] == "ada", "the request goes before the spec"
        assert submit(admin, tmp_path).json()["owner"] == getpass.getuser()


@pytest.mark.parametrize("scope", [{"projects": ["llm"]}, {"queues": ["research"]}])
def test_a_token_with_a_scope(plane: Plane, tmp_path: Path, scope: dict[str, list[str]]) -> None:
    with client(plane, SECRET) as admin:
        assert admin.patch("/queues/research", json={"gpus": 8}).status_code == 200
        inside = {"project": "llm"} if "projects" in scope else {"queue": "research"}
        other = submit(admin, tmp_path, name="other").json()
        with token(plane, "scoped", **scope) as mine:
            assert submit(mine, tmp_path).status_code == 403
            own = submit(mine, tmp_path, **inside)
            assert own.status_code == 201, own.text
            assert [run["id"] for run in mine.get("/runs").json()] == [own.json()["id"]]
            assert mine.get(f"/runs/{other['id']}").status_code == 403
            for verb in ("cancel", "hold", "restart"):
                assert mine.post(f"/runs/{other['id']}/{verb}", json={}).status_code == 403, verb
            assert mine.get("/incidents").json() == [], "the finished run's is not in the scope"
            assert mine.get("/incidents", params={"run": RUN_ID}).status_code == 403
            everything = [
                mine.get("/events"),
                mine.post("/hold", json={}),
                mine.post("/nodes/node-1/cordon", json={"reason": "x"}),
                mine.patch("/queues/research", json={"gpus": 99}),
                mine.put("/spares", json={"spares": 1}),
            ]
            assert [answer.status_code for answer in everything] == [403] * 5
            assert "concerns every run; the token scoped is for runs of" in message(everything[0])
            assert mine.post(f"/runs/{own.json()['id']}/cancel", json={}).status_code == 200
        with token(plane, "boss", role="admin", **scope) as boss:
            assert boss.post("/tokens", json={"name": "more"}).status_code == 403, "no way out"
        admin.post(f"/runs/{other['id']}/cancel", json={})


@pytest.mark.parametrize(
    "name", ["", " ", "\x1b[2Jadmin", "a\nroot", "a b", "x" * 64, "-x", "x-", "ü", "\u202e"]
)
def test_a_name_is_a_word(plane: Plane, name: str) -> None:
    with client(plane, SECRET) as admin:
        assert admin.post("/tokens", json={"name": name}).status_code == 422


def test_a_token_that_is_over_before_it_begins_is_refused(plane: Plane) -> None:
    with client(plane, SECRET) as admin:
        body = {"name": "late", "expires_at": "2020-01-01T00:00:00Z"}
        assert "expected a time to come" in message(admin.post("/tokens", json=body))


def test_a_user_without_a_name(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run --user 12345`: the user database has no entry."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    with client(plane, SECRET) as admin:
        assert admin.get("/info").json()["caller"].startswith("uid-")


def test_metrics_need_a_token(plane: Plane) -> None:
    assert httpx.get(f"{plane.url}/metrics", trust_env=False).status_code == 401
    with token(plane, "prometheus", role="viewer") as mine:
        answer = mine.get(f"{plane.url}/metrics")
        assert answer.status_code == 200
        assert "babysit_leader 1" in answer.text


def test_a_dry_run_looks_at_files_and_so_needs_an_operator(plane: Plane, tmp_path: Path) -> None:
    body = {"spec": {"name": "x", "command": ["true"]}, "base_directory": str(tmp_path)}
    with token(plane, "looker", role="viewer") as looker:
        assert looker.post("/runs/dry-run", json=body).status_code == 403
    with token(plane, "doer") as doer:
        assert doer.post("/runs/dry-run", json=body).status_code == 200
