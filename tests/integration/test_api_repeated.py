"""Requests that are sent again with their key, since the answer was lost: done once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ulid import ULID

from jobs.events import Report, WorkerJoined
from orchestrator.cli.client import Api
from orchestrator.core.model.states import IncidentState
from tests.plane import RUN_ID, SECRET, START, Plane, finished, incident, saved

SPEC = {"name": "again", "command": ["true"]}
OPEN = "01JNB00000000000000000OPEN"
LATER = "2100-01-01T00:00:00Z"
UNCHANGING = {"/api/v1/runs/dry-run", "/api/v1/runs", "/api/v1/nodes/{node}/token"}
"""Paths that change nothing, and that of submissions, whose tests are in test_submission.py."""
OTHERS = {
    "/api/v1/session",
    "/api/v1/sign-in",
    "/api/v1/incidents/{incident}/silence",
    "/api/v1/bundles/{bundle}",
    "/api/v1/nodes/{node}/checks",
}
"""Paths that sign a browser in and out; one for incidents of a live run, which is not here; one of
code, whose address is its content, so a second upload stores nothing (test_bundles.py); and one of
checks, for nodes that have processes (test_node_checks.py)."""

CALLS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "hold": ("POST", "/runs/again/hold", {"reason": "a look"}),
    "release": ("POST", "/runs/again/release", {}),
    "restart": ("POST", "/runs/again/restart", {}),
    "rollback": ("POST", "/runs/again/rollback", {"to_step": 0}),
    "cancel": ("POST", "/runs/again/cancel", {"reason": "enough"}),
    "pin": ("POST", f"/runs/{RUN_ID}/checkpoints/100/pin", None),
    "unpin": ("POST", f"/runs/{RUN_ID}/checkpoints/100/unpin", None),
    "verify": ("POST", f"/runs/{RUN_ID}/checkpoints/100/verify", None),
    "delete a checkpoint": ("DELETE", f"/runs/{RUN_ID}/checkpoints/100", None),
    "acknowledge": ("POST", f"/incidents/{OPEN}/acknowledge", None),
    "judge": ("POST", f"/incidents/{OPEN}/judge", {"verdict": "right"}),
    "resolve": ("POST", f"/incidents/{OPEN}/resolve", None),
    "cordon": ("POST", "/nodes/node-1/cordon", {"reason": "a fan"}),
    "uncordon": ("POST", "/nodes/node-1/uncordon", {"reason": "a new fan"}),
    "maintain": (
        "POST",
        "/nodes/maintenance",
        {"nodes": ["node-2"], "begins": LATER, "ends": "2100-01-02T00:00:00Z", "reason": "fans"},
    ),
    "maintain no more": ("POST", "/nodes/maintenance/cancel", {"nodes": ["node-2"]}),
    "quota": ("PATCH", "/queues/research", {"gpus": 1}),
    "delete a queue": ("DELETE", "/queues/research", None),
    "spares": ("PUT", "/spares", {"spares": 1}),
    "hold all": ("POST", "/hold", {}),
    "release all": ("POST", "/release", {}),
    "token": ("POST", "/tokens", {"name": "ci", "role": "viewer"}),
    "revoke": ("DELETE", "/tokens/TOKEN", None),
}
"""One call of each kind, in an order in which each finds what it needs."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    home = tmp_path_factory.mktemp("home")
    with Plane(home) as running:
        finished(running)
        saved(running, home, 100)
        running.write(entities=[incident(id=OPEN, state=IncidentState.OPEN, resolved_at=None)])
        with client(running) as http:
            body = {"spec": SPEC, "base_directory": str(home)}
            run = http.post("/runs", json=body).json()["id"]
        trains(running, run)
        yield running


def trains(plane: Plane, run: str) -> None:
    """The agent of a run joins, so that its first attempt starts."""
    (worker,) = (each.id for each in plane.controller.state.workers_of(run))
    where = {"node": "node-1", "address": "node-1", "port": 1, "resumed": False}
    joined = WorkerJoined(id=f"{worker}.1.0", at=START, run=run, worker=worker, attempt=0, **where)
    plane.do(plane.controller.report(worker, Report(sequence=1, attempt=0, events=(joined,))))
    assert plane.controller.state.runs[run].attempt == 1


def client(plane: Plane) -> httpx.Client:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return httpx.Client(base_url=f"{plane.url}/api/v1", headers=headers, trust_env=False)


def events(plane: Plane) -> int:
    return sum(e.actor.startswith("operator:") for e in plane.do(plane.store.journal()))


def comparable(answer: httpx.Response) -> object:
    """The answer without what time alone changes."""
    if not answer.content:
        return None
    body = answer.json()
    assert "error" not in body, body
    ageing = {"live_seconds", "seconds", "ledger", "now", "uptime", "age_seconds"}
    if isinstance(body, dict):
        return {name: value for name, value in body.items() if name not in ageing}
    return body


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_sent_twice_is_done_once(plane: Plane, name: str) -> None:
    method, path, body = CALLS[name]
    key = {"Idempotency-Key": str(ULID())}
    with client(plane) as http:
        if "TOKEN" in path:
            made = http.get("/tokens").json()
            path = path.replace("TOKEN", made[-1]["id"])
        before, tokens = events(plane), len(http.get("/tokens").json())
        first, second = (http.request(method, path, headers=key, json=body) for _ in range(2))
        assert first.is_success, first.text
        assert second.status_code == first.status_code
        assert comparable(second) == comparable(first)
        of_tokens = "/tokens" in path
        assert events(plane) - before == (0 if of_tokens else 1)
        assert len(http.get("/tokens").json()) - tokens == (name == "token")


def test_a_revocation_is_repeated_at_another_server(plane: Plane) -> None:
    """The first server stored it and died before it answered; the client asks the next one."""
    key = str(ULID())
    with client(plane) as http:
        made = http.post("/tokens", json={"name": "twice", "role": "viewer"}).json()
        plane.do(plane.store.revoke_token(made["id"], plane.context.clock.now(), key))
        where = f"/tokens/{made['id']}"
        assert http.delete(where, headers={"Idempotency-Key": key}).status_code == 204
        assert http.delete(where, headers={"Idempotency-Key": str(ULID())}).status_code == 409
        assert http.delete(where).status_code == 409


def test_every_call_that_changes_something_is_among_them(plane: Plane) -> None:
    with client(plane) as http:
        paths = http.get("/openapi.json").json()["paths"]
    changing = sum(
        len({"post", "put", "patch", "delete"} & set(methods))
        for path, methods in paths.items()
        if path not in UNCHANGING | OTHERS and path.startswith("/api/")
    )
    verbs_of_nodes = 1  # one route for cordon, drain and uncordon, of which two are tried
    assert changing == len(CALLS) - verbs_of_nodes


def test_a_key_of_another_request_is_refused(plane: Plane) -> None:
    key = {"Idempotency-Key": str(ULID())}
    with client(plane) as http:
        assert http.put("/spares", headers=key, json={"spares": 0}).is_success
        other = http.put("/spares", headers=key, json={"spares": 1})
        assert (other.status_code, other.json()["error"]["kind"]) == (409, "refused")
        assert http.get("/spares").json()["spares"] == 0
        bad = http.put("/spares", headers={"Idempotency-Key": "x"}, json={"spares": 1})
        assert bad.status_code == 422


@pytest.mark.parametrize("broken", [httpx.ReadError, httpx.RemoteProtocolError])
def test_the_command_line_asks_again_when_an_answer_is_lost(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: type[Exception]
) -> None:
    """The connection breaks after the server has done it."""
    request, lost = httpx.Client.request, []

    def cut(self: httpx.Client, *arguments: Any, **options: Any) -> httpx.Response:
        answer = request(self, *arguments, **options)
        if not lost:
            lost.append(answer)
            raise broken("cut")
        return answer

    api = Api(plane.url, SECRET, plane.context.clock)
    monkeypatch.setattr(httpx.Client, "request", cut)
    name = f"lost-{broken.__name__.lower()}"
    made = api.post("/tokens", name=name, role="viewer")
    assert made["secret"] == lost[0].json()["secret"]
    assert [each["name"] for each in api.get("/tokens")].count(name) == 1
    api.close()
