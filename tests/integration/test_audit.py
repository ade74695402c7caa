"""The audit log: each request that may change something leaves one entry, without secrets."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ulid import ULID

from orchestrator.alerts.rules import Person
from orchestrator.alerts.slack_buttons import Click, events_of
from orchestrator.database import audit
from orchestrator.database.audit import AuditEntry, AuditFilter
from orchestrator.database.engine import Database
from orchestrator.database.port import Store
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import InvariantError, NotFoundError, PermissionDeniedError
from orchestrator.server.sign_in import ATTEMPTS
from orchestrator.server.slack_clicks import AuditedClicks
from tests.cli import babysit, connect, data
from tests.database_data import DAY, NOW
from tests.plane import RUN_ID, SECRET, Plane, finished

ADMIN = {"Authorization": f"Bearer {SECRET}"}
OURS = {"X-Babysit-Request": "1", "Sec-Fetch-Site": "same-origin"}
VALUES = {
    "reference": "tiny",
    "checkpoint": "20",
    "incident": "01JNB0000000000000INCIDENT",
    "node": "node-1",
    "verb": "cordon",
    "queue": "default",
    "token": "unknown",
    "bundle": "0" * 64,
}
CHANGES_NOTHING = {"runs_dry_run"}
OF_VIEWERS = {"session_make_code", "session_end_session"}
"""Operations of the viewer's own sign-in: all others are refused."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


def entries(plane: Plane, **wanted: Any) -> list[AuditEntry]:
    return plane.do(plane.store.audit(AuditFilter(limit=1000, **wanted)))


def mutating(plane: Plane) -> list[tuple[str, str, dict[str, Any]]]:
    document = httpx.get(f"{plane.url}/api/v1/openapi.json", trust_env=False).json()
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in {"post", "put", "patch", "delete"}
    ]


def test_each_mutating_operation_leaves_an_entry_whoever_calls(plane: Plane) -> None:
    """Fails for an operation that is added and leaves none."""
    seen = set()
    with httpx.Client(base_url=plane.url, trust_env=False) as client:
        made = client.post("/api/v1/tokens", headers=ADMIN, json={"name": "v", "role": "viewer"})
        viewer = {"Authorization": f"Bearer {made.json()['secret']}"}
        for method, path, operation in mutating(plane):
            where = re.sub(r"\{(\w+)\}", lambda name: VALUES[name[1]], path)
            for headers, role in ((ADMIN, "admin"), (viewer, "viewer")):
                before = len(entries(plane))
                body = {"reason": "for a test", "token": "babysit_wrong"}
                answer = client.request(method, where, headers={**headers, **OURS}, json=body)
                new = entries(plane)[before:]
                name = operation["operationId"].replace("nodes_change", "nodes_cordon")
                if name in CHANGES_NOTHING:
                    assert new == [], name
                    continue
                assert [(each.action, each.role) for each in new] == [(name, role)], path
                expected = "done" if answer.is_success else "refused"
                assert answer.status_code < 500
                assert new[0].outcome == expected, (name, answer.text)
                assert bool(new[0].detail) is not answer.is_success
                seen.add(name)
                if role == "viewer":
                    assert answer.status_code >= 400 or name in OF_VIEWERS, name
    assert len(seen) > 20


def test_an_entry_says_who_did_what_why_and_what_changed(plane: Plane) -> None:
    key = "01JNB00000000000000000AVDT"
    with httpx.Client(base_url=f"{plane.url}/api/v1", headers=ADMIN, trust_env=False) as admin:
        admin.post("/nodes/node-2/uncordon", json={"reason": "x"})
        admin.post("/nodes/node-2/cordon", json={"reason": "fan"}, headers={"Idempotency-Key": key})
        last = entries(plane)[-1]
        assert (last.action, last.target, last.reason) == ("nodes_cordon", "node-2", "fan")
        assert (last.role, last.via, last.outcome, last.request) == ("admin", "token", "done", key)
        assert last.before["node node-2"]["state"] == "ready"
        assert last.after["node node-2"]["state"] == "cordoned"
        assert last.event == key
        admin.patch("/queues/research", json={"gpus": 8})
        admin.patch("/queues/research", json={"gpus": 16})
        last = entries(plane)[-1]
        assert last.before["queue research"] == {"gpus": 8}
        assert last.after["queue research"] == {"gpus": 16}
        admin.post("/hold", json={"reason": "maintenance"})
        assert entries(plane)[-1].after["fleet"]["hold"]
        admin.post("/release", json={"reason": "over"})
        made = admin.post("/tokens", json={"name": "temp", "role": "operator"}).json()
        last = entries(plane)[-1]
        assert last.after[f"token {made['id']}"]["role"] == "operator"
        admin.delete(f"/tokens/{made['id']}")
        last = entries(plane)[-1]
        assert last.before[f"token {made['id']}"] == {"revoked_at": None}
        refused = admin.post(f"/runs/{RUN_ID}/cancel", json={"reason": "late"})
        last = entries(plane, run=RUN_ID)[-1]
        assert (last.action, last.outcome, last.reason) == ("runs_cancel", "refused", "late")
        assert last.detail == refused.json()["error"]["message"]


def test_no_secret_is_in_the_log(plane: Plane) -> None:
    spec = {
        "name": "secretive",
        "command": ["true"],
        "env": {"WANDB_API_KEY": "hunter2-env"},
        "resources": {"nodes": 1},
    }
    with httpx.Client(base_url=f"{plane.url}/api/v1", headers=ADMIN, trust_env=False) as admin:
        submitted = admin.post("/runs", json={"spec": spec, "base_directory": "/"})
        assert submitted.status_code == 201, submitted.text
        made = admin.post("/tokens", json={"name": "hush", "role": "viewer"}).json()
        admin.post("/session", json={"token": made["secret"]}, headers=OURS)
        opened = f"{plane.url}/api/v1/session"
        httpx.post(opened, json={"token": "babysit_guess"}, headers=OURS, trust_env=False)
        code = admin.post("/sign-in").json()["path"].partition("=")[2]
        admin.post(f"/runs/{submitted.json()['id']}/cancel", json={"reason": "done"})
    found = [dataclasses.asdict(each) for each in entries(plane)]
    log = json.dumps(found, default=str)
    assert "secretive" not in {each["action"] for each in found}
    for secret in ("hunter2-env", made["secret"], "babysit_guess", code, SECRET):
        assert secret not in log
    by = {(each["action"], each["outcome"]): each for each in found}
    assert by["session_open_session", "done"]["actor"] == "hush"
    assert by["session_open_session", "refused"]["actor"] == ""
    submission = by["runs_submit", "done"]
    assert submission["run"] == submitted.json()["id"]
    assert submission["after"][f"run {submission['run']}"]["name"] == "secretive"


def test_a_session_and_another_site_are_told_apart(plane: Plane) -> None:
    with httpx.Client(base_url=f"{plane.url}/api/v1", trust_env=False) as browser:
        browser.post("/session", json={"token": SECRET}, headers=OURS)
        browser.post("/hold", json={"reason": "x"}, headers={"Origin": "https://evil.example"})
        last = entries(plane)[-1]
        assert (last.via, last.outcome) == ("session", "refused")
        assert "X-Babysit-Request" in last.detail
        before = len(entries(plane))
        browser.cookies.clear()
        browser.post("/hold", json={"reason": "x"}, headers={"Authorization": "Bearer wrong"})
        assert len(entries(plane)) == before, "strangers do not fill the log"


def test_strangers_leave_failed_sign_ins_alone(plane: Plane) -> None:
    session = f"{plane.url}/api/v1/session"
    plane.context.sign_ins._failures.clear()
    before = len(entries(plane))
    with httpx.Client(trust_env=False) as stranger:
        for _ in range(30):
            stranger.post(session, json={"token": "x"})
            stranger.delete(session, headers=OURS)
            stranger.post(session, json={}, headers=OURS)
        stranger.get(f"{plane.url}/sign-in?code=x")
        assert len(entries(plane)) == before
        for _ in range(ATTEMPTS + 5):
            stranger.post(session, json={"token": "x"}, headers=OURS)
    assert len(entries(plane)) == before + ATTEMPTS
    plane.context.sign_ins._failures.clear()


def test_a_link_that_signs_in_leaves_an_entry_without_its_code(plane: Plane) -> None:
    with httpx.Client(base_url=plane.url, trust_env=False) as browser:
        made = browser.post("/api/v1/sign-in", json={"role": "operator"}, headers=ADMIN).json()
        assert browser.get(made["path"]).is_success
    last = entries(plane)[-1]
    assert (last.action, last.role, last.via) == ("session_by_link", "operator", "link")
    assert last.outcome == "done"
    assert made["path"].partition("=")[2] not in str(last)


def test_the_key_of_a_request_for_a_token_is_not_stored(plane: Plane) -> None:
    """With the signing key, which the database has, it gives the secret."""
    key = str(ULID())
    made = httpx.post(
        f"{plane.url}/api/v1/tokens",
        headers={**ADMIN, "Idempotency-Key": key},
        json={"name": "keyed", "role": "viewer"},
        trust_env=False,
    )
    assert made.status_code == 201
    last = entries(plane)[-1]
    assert (last.action, key in str(last)) == ("tokens_create_token", False)
    assert last.request.startswith("sha256:")


def test_a_defect_leaves_an_entry(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plane.store, "create_token", fails)
    body = {"name": "unlucky", "role": "viewer"}
    answer = httpx.post(f"{plane.url}/api/v1/tokens", headers=ADMIN, json=body, trust_env=False)
    last = entries(plane)[-1]
    assert (answer.status_code, last.action, last.outcome) == (500, "tokens_create_token", "failed")
    assert last.detail == "status 500"


def test_clicks_in_slack_are_in_the_log(plane: Plane) -> None:
    people = {"U1": Person(name="mia", role="operator"), "U2": Person(name="vera", role="viewer")}
    clicks = AuditedClicks(plane.controller, people, plane.context.clock)

    async def click(user: str, run: str) -> None:
        made = Click(id="1", user=user, channel="C", action="babysit_hold", run=run, incidents=())
        event = None
        try:
            now = plane.context.clock.now()
            [event] = events_of(made, people, new_id=lambda: str(ULID()), now=now)
            await clicks.act(event)
            await clicks.write(made, event, None)
        except (NotFoundError, PermissionDeniedError) as error:
            await clicks.write(made, event, error)

    with httpx.Client(base_url=f"{plane.url}/api/v1", headers=ADMIN, trust_env=False) as admin:
        spec = {"name": "clicked", "command": ["true"]}
        sent = admin.post("/runs", json={"spec": spec, "base_directory": "/"}).json()
        run = sent["id"]
        for user in ("U1", "U2", "U3"):
            plane.do(click(user, run))
        admin.post(f"/runs/{run}/cancel", json={"reason": "done"})
    done, viewer, stranger = entries(plane, action="slack_hold")[-3:]
    assert (done.actor, done.via, done.subject, done.run) == ("mia", "slack", "U1", run)
    assert done.after[f"run {run}"]["state"] == "held"
    assert (viewer.actor, viewer.role, viewer.outcome) == ("vera", "viewer", "refused")
    assert (stranger.actor, stranger.subject, stranger.outcome) == ("", "U3", "refused")


def test_the_command_shows_the_log(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(plane, monkeypatch, tmp_path)
    assert babysit("nodes", "cordon", "node-1", "--reason", "disk").exit_code == 0
    newest = data("audit", "--action", "nodes", "--since", "1h")[-1]
    assert (newest["action"], newest["reason"]) == ("nodes_cordon", "disk")
    assert {each["action"] for each in data("audit", "--action", "nodes_cord")} == {"nodes_cordon"}
    assert data("audit", "--until", "2020-01-01") == []
    assert len(data("audit", "--tail", "3")) == 3
    shown = babysit("audit", "--tail", "1", "-o", "wide").stdout
    assert "nodes_cordon" in shown
    assert "disk" in shown
    assert babysit("audit", "--since", "yesterday").exit_code == 2
    with httpx.Client(base_url=f"{plane.url}/api/v1", headers=ADMIN, trust_env=False) as admin:
        made = admin.post("/tokens", json={"name": "looker", "role": "viewer"}).json()
    monkeypatch.setenv("BABYSIT_TOKEN", made["secret"])
    assert babysit("audit").exit_code == 5, "a viewer does not see who did what"


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(database_url)
    yield opened
    await opened.close()


def entry(key: str, **fields: Any) -> AuditEntry:
    made = AuditEntry(
        id=key, at=NOW, actor="ann", role="admin", via="token", action="runs_hold", outcome="done"
    )
    return dataclasses.replace(made, **fields)


async def test_every_store_keeps_entries_in_order(store: Store) -> None:
    for number, name in enumerate(("ann", "mia", "ann")):
        at = NOW + number * DAY
        await store.add_audit(entry(f"E{number}", actor=name, at=at, after={"x": {"y": 1}}))
    found = await store.audit(AuditFilter())
    assert [each.id for each in found] == ["E0", "E1", "E2"]
    assert found[0] == entry("E0", after={"x": {"y": 1}}, position=found[0].position)
    by = [
        (AuditFilter(actor="ann"), ["E0", "E2"]),
        (AuditFilter(limit=2), ["E1", "E2"]),
        (AuditFilter(before=found[1].position), ["E0"]),
        (AuditFilter(since=NOW + DAY, until=NOW + 2 * DAY), ["E1"]),
        (AuditFilter(action="runs"), ["E0", "E1", "E2"]),
        (AuditFilter(action="runs%"), []),
        (AuditFilter(run="r"), []),
    ]
    for wanted, ids in by:
        assert [each.id for each in await store.audit(wanted)] == ids, wanted


async def test_entries_are_never_changed_and_removed_by_age_alone(sql: SqlStore) -> None:
    database: Database = sql._database
    await sql.add_audit(entry("E0"))
    await sql.add_audit(entry("E1", at=NOW + DAY))
    from sqlalchemy import text

    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(InvariantError):
            async with database.writing() as connection:
                await connection.execute(text(statement))
    now = NOW + 2 * DAY
    assert await audit.prune(database, until=NOW + DAY, now=now, dry_run=True) == 1
    assert len(await sql.audit(AuditFilter())) == 2
    assert await audit.prune(database, until=NOW + DAY, now=now) == 1
    assert [each.id for each in await sql.audit(AuditFilter())] == ["E1"]


def test_commands_on_the_database_are_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BABYSIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BABYSIT_SERVER", raising=False)
    assert babysit("db", "upgrade").exit_code == 0
    assert babysit("db", "prune").exit_code == 0
    assert babysit("db", "prune", "--dry-run").exit_code == 0
    assert babysit("db", "backup", str(tmp_path / "b.db")).exit_code == 0
    assert babysit("db", "backup", str(tmp_path / "b.db")).exit_code != 0
    assert babysit("db", "restore", str(tmp_path / "b.db")).exit_code == 0

    async def read() -> list[AuditEntry]:
        store = await SqlStore.open(f"sqlite:///{tmp_path / 'home' / 'babysit.db'}")
        try:
            return await store.audit(AuditFilter())
        finally:
            await store.close()

    found = asyncio.run(read())
    assert [each.action for each in found] == ["db_upgrade", "db_prune", "db_restore"]
    assert {each.via for each in found} == {"shell"}
    assert found[1].after["database"]["runs"] == 0
    assert found[0].at > NOW - dt.timedelta(days=10_000)
