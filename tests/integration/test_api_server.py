"""The HTTP API over a real controller: answers, refusals, roles, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ulid import ULID

from jobs.clock import SystemClock
from orchestrator.cli.client import Api
from orchestrator.cli.nodes import all_nodes
from orchestrator.core.messages.events import RunHeld
from orchestrator.errors import DatabaseUnavailableError
from orchestrator.server.metrics.catalogue import METRICS
from tests.plane import RUN_ID, SECRET, Plane, finished

SPEC = {"name": "one", "command": ["true"]}
FIRST = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


@pytest.fixture
def http(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{plane.url}/api/v1", headers=FIRST, trust_env=False) as client:
        yield client


def submit(http: httpx.Client, directory: Path, **fields: Any) -> httpx.Response:
    body = {"spec": {**SPEC, **fields}, "base_directory": str(directory)}
    return http.post("/runs", json=body)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["kind"], error["message"]


def test_a_run_is_submitted_found_and_cancelled(http: httpx.Client, tmp_path: Path) -> None:
    made = submit(http, tmp_path, name="short")
    assert made.status_code == 201
    run = made.json()
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", run["id"])
    for reference in (run["id"], run["id"][:25], "short"):
        assert http.get(f"/runs/{reference}").json()["id"] == run["id"]
    assert http.get("/runs/short").json()["spec"]["workdir"] == str(tmp_path)
    after = http.post("/runs/short/cancel", json={"reason": "enough"}).json()
    assert after["state"] == "cancelled"
    assert "enough" in after["reason"]
    again = refusal(http.post("/runs/short/cancel", json={}))
    assert again[:2] == (409, "refused")


def test_a_submission_sent_again_makes_one_run(http: httpx.Client, tmp_path: Path) -> None:
    """The first answer was lost, or said to try again: the key makes it the same request."""
    key = {"Idempotency-Key": str(ULID())}
    spec = {**SPEC, "name": "once"}
    answers = [
        http.post("/runs", headers=key, json={"spec": spec, "base_directory": str(tmp_path)})
        for _ in range(3)
    ]
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["id"] for answer in answers} == set(key.values())
    assert [run["name"] for run in http.get("/runs").json()].count("once") == 1
    other = {"spec": {**SPEC, "name": "other"}, "base_directory": str(tmp_path)}
    assert http.post("/runs", headers=key, json=other).status_code == 409
    bad = http.post("/runs", headers={"Idempotency-Key": "../x"}, json=other)
    assert bad.status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/events?after=9223372036854775808",
        f"/runs/{RUN_ID}/samples?first_step=9223372036854775808",
        f"/runs/{RUN_ID}/samples?attempt=9223372036854775808",
    ],
)
def test_a_number_that_no_database_takes_is_the_fault_of_the_request(
    http: httpx.Client, path: str
) -> None:
    assert refusal(http.get(path))[:2] == (422, "invalid")


def test_a_wrong_spec_makes_nothing(http: httpx.Client, tmp_path: Path) -> None:
    before = http.get("/runs").json()
    yaml = "name: x\ncommand: [python, none.py]\n"
    body = {"yaml": yaml, "name": "run.yaml", "base_directory": str(tmp_path)}
    assert refusal(http.post("/runs", json=body)) == (
        422,
        "invalid_spec",
        f"run.yaml:2:10: command: none.py: no such file in {tmp_path}",
    )
    assert submit(http, tmp_path, nodes=2).json()["error"]["problems"] == [
        "run.yaml: nodes: no such field here; did you mean resources.nodes?"
    ]
    status, kind, message = refusal(submit(http, tmp_path, resources={"nodes": 3}))
    assert (status, kind) == (422, "invalid_spec")
    assert message.startswith("run.yaml: resources: asks for 3 x")
    assert "cluster has 2 nodes" in message
    assert refusal(http.post("/runs", json={"base_directory": "/"}))[:2] == (422, "invalid")
    relative = http.post("/runs", json={"spec": SPEC, "base_directory": "here"})
    assert "expected an absolute path" in refusal(relative)[2]
    assert http.get("/runs").json() == before


def test_a_checkpoint_directory_serves_one_live_run(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    first = submit(http, tmp_path, name="saves", checkpoint={"directory": "saved"}).json()
    shared = {"name": "too", "checkpoint": {"directory": "link/saved"}}
    status, kind, message = refusal(submit(http, tmp_path, **shared))
    assert (status, kind) == (409, "refused")
    assert f"{tmp_path / 'saved'} holds the checkpoints of saves ({first['id']})" in message
    http.post(f"/runs/{first['id']}/cancel", json={})
    second = submit(http, tmp_path, **shared)
    assert second.status_code == 201
    http.post(f"/runs/{second.json()['id']}/cancel", json={})


def test_lists_are_filtered(http: httpx.Client) -> None:
    rows = http.get("/runs", params={"state": "succeeded", "limit": 5}).json()
    assert [row["id"] for row in rows] == [RUN_ID]
    assert rows[0]["restarts_count"] == 1
    assert http.get("/runs", params={"name": "nobody"}).json() == []
    assert refusal(http.get("/runs", params={"state": "asleep"}))[:2] == (422, "invalid")


def test_the_detail_has_the_newest_sample_and_no_nan(http: httpx.Client) -> None:
    detail = http.get(f"/runs/{RUN_ID}").json()
    assert (detail["step"], detail["loss"]) == (200, None)
    assert detail["restarts"][0]["class"] == "signal"
    series = http.get(f"/runs/{RUN_ID}/samples").json()
    assert series["step"] == [199, 200]
    assert series["loss"] == [2.5, None]
    assert detail["metrics"] == {"accuracy": 0.5}
    named = http.get(f"/runs/{RUN_ID}/metrics").json()
    assert named["step"] == [199, 200]
    assert named["metrics"] == {"accuracy": [0.5, None], "reward": [None, None]}


def test_the_story_is_told(http: httpx.Client) -> None:
    lines = [line["text"] for line in http.get(f"/runs/{RUN_ID}/logbook").json()]
    assert any("Restarted in place from step 57 (memory)" in line for line in lines)
    said = http.get(f"/runs/{RUN_ID}/explain").json()
    assert said["state"] == "succeeded"
    assert said["underlying"] is None
    assert [a["number"] for a in http.get(f"/runs/{RUN_ID}/attempts").json()] == [1, 2]


def test_events_are_paged_and_carry_actor_and_reason(http: httpx.Client, tmp_path: Path) -> None:
    run = submit(http, tmp_path, name="eventful").json()
    http.post(f"/runs/{run['id']}/cancel", json={"reason": "seen"})
    rows = http.get(f"/runs/{run['id']}/events").json()
    assert rows[0]["name"] == "run_submitted"
    assert rows[0]["actor"].startswith("operator:")
    page = http.get(f"/runs/{run['id']}/events", params={"after": rows[0]["position"]}).json()
    assert page == rows[1:]
    everything = http.get("/events", params={"limit": 5000}).json()
    assert {row["id"] for row in rows} <= {row["id"] for row in everything}


def test_a_waiting_run_is_explained(http: httpx.Client, tmp_path: Path) -> None:
    whole = {"nodes": 2, "cpus_per_node": 2}
    first = submit(http, tmp_path, name="first", resources=whole).json()
    second = submit(http, tmp_path, name="second", resources=whole).json()
    said = http.get(f"/runs/{second['id']}/explain").json()
    assert said["place"] in {1, 2}, "2 while agents of an earlier run are still leaving"
    assert "first" in " ".join(said["sentences"])
    for run in (second, first):
        http.post(f"/runs/{run['id']}/cancel", json={})


def test_holds_and_refusals_of_an_unstarted_run(http: httpx.Client, tmp_path: Path) -> None:
    run = submit(http, tmp_path, name="holdable").json()["id"]
    assert http.post(f"/runs/{run}/hold", json={"reason": "look"}).json()["state"] == "held"
    assert http.post(f"/runs/{run}/release", json={}).json()["state"] != "held"
    assert refusal(http.post(f"/runs/{run}/release", json={}))[:2] == (409, "refused")
    assert refusal(http.post(f"/runs/{run}/restart", json={}))[:2] == (409, "refused")
    wrong = http.post(f"/runs/{run}/rollback", json={"skip": [9, 3]})
    assert refusal(wrong)[:2] == (422, "invalid")
    http.post(f"/runs/{run}/cancel", json={})
    held = http.post("/hold", json={"reason": "network"}).json()["hold"]
    assert "network" in held
    assert http.post("/release", json={}).json()["hold"] is None


def test_checkpoints_by_id_and_by_step(http: httpx.Client) -> None:
    base = f"/runs/{RUN_ID}/checkpoints"
    rows = http.get(base).json()
    assert [(row["step"], row["trust"]) for row in rows] == [(40, "bad"), (20, "good")]
    for reference in (rows[1]["id"], "20", "1/directory/20"):
        shown = http.get(f"{base}/{reference}").json()
        assert shown["id"] == rows[1]["id"]
        assert [s["bytes"] for s in shown["shard_list"]] == [1024, 1024]
    status, kind, message = refusal(http.get(f"{base}/30"))
    assert (status, kind) == (404, "not_found")
    assert message.endswith("it has those of steps: 20, 40")
    # The run is over, and its files are not there; the checkpoint can still be kept, or not.
    assert refusal(http.post(f"{base}/20/verify"))[:2] == (409, "refused")
    for verb, pinned in (("pin", True), ("unpin", False)):
        assert http.post(f"{base}/20/{verb}").json()["pinned"] is pinned
    assert http.delete(f"{base}/20").status_code == 202
    assert [row["step"] for row in http.get(base).json()] == [40]


def test_nodes(http: httpx.Client) -> None:
    assert [row["id"] for row in http.get("/nodes").json()] == ["node-1", "node-2"]
    assert [row["id"] for row in http.get("/nodes?limit=1").json()] == ["node-1"]
    assert [row["id"] for row in http.get("/nodes?limit=1&after=node-1").json()] == ["node-2"]
    assert http.get("/nodes?limit=1001").status_code == 422
    api = Api(str(http.base_url).removesuffix("/api/v1/"), SECRET, SystemClock())
    assert [row["id"] for row in all_nodes(api, page=1)] == ["node-1", "node-2"]
    api.close()
    changed = http.post("/nodes/node-2/cordon", json={"reason": "fan"}).json()
    assert (changed["state"], changed["reason"]) == ("cordoned", "fan")
    assert changed["by"].startswith("operator:")
    assert http.get("/nodes/node-2").json()["lemon_score"] is None
    check = {row["name"]: row["ok"] for row in http.get("/nodes/node-2/check").json()}
    assert check["takes work"] is False
    assert http.post("/nodes/node-2/uncordon", json={"reason": "ok"}).json()["state"] == "ready"
    assert refusal(http.post("/nodes/node-2/drain", json={"reason": ""}))[:2] == (422, "invalid")
    assert "did you mean" in refusal(http.get("/nodes/node-3"))[2]


def test_incidents(http: httpx.Client, plane: Plane) -> None:
    (row,) = http.get("/incidents", params={"run": RUN_ID}).json()
    assert http.get(f"/incidents/{row['id'][-6:]}").json() == row
    assert http.get("/incidents", params={"open_only": True}).json() == []
    assert refusal(http.get("/incidents/XXXXXX"))[0] == 404


@pytest.fixture
def tokens(http: httpx.Client) -> Iterator[dict[str, str]]:
    made = {
        role: http.post("/tokens", json={"name": role, "role": role}).json()
        for role in ("viewer", "operator", "admin")
    }
    yield {role: token["secret"] for role, token in made.items()}
    for token in made.values():
        http.delete(f"/tokens/{token['id']}")


async def hold_everything(plane: Plane) -> None:
    """So that there is something to release."""
    event = RunHeld(
        id=str(ULID()), at=plane.controller.clock.now(), actor="operator:test", run=None
    )
    await plane.controller.submit(event)


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/runs", "viewer"),
        ("GET", "/info", "viewer"),
        ("POST", "/hold", "operator"),
        ("POST", "/release", "operator"),
        ("GET", "/tokens", "admin"),
    ],
)
def test_roles(plane: Plane, tokens: dict[str, str], method: str, path: str, needs: str) -> None:
    ranks = ["viewer", "operator", "admin"]
    for role, secret in tokens.items():
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{plane.url}/api/v1{path}"
        body = {"reason": ""} if method == "POST" else None
        if path == "/release":
            plane.do(hold_everything(plane))
        answer = httpx.request(method, url, headers=headers, json=body, trust_env=False)
        allowed = ranks.index(role) >= ranks.index(needs)
        assert answer.status_code == (200 if allowed else 403), (role, path)


def test_every_route_of_the_api_needs_a_token(http: httpx.Client, plane: Plane) -> None:
    document = http.get("/openapi.json").json()
    seen = 0
    for path, methods in document["paths"].items():
        if not path.startswith("/api/v1") or path == "/api/v1/session":  # how to sign in
            continue
        for method in methods:
            for header in ({}, {"Authorization": "Bearer wrong"}):
                answer = httpx.request(
                    method,
                    plane.url + re.sub(r"\{.*?\}", "1", path),
                    headers=header,
                    json={},
                    trust_env=False,
                )
                assert answer.status_code == 401, (method, path)
                assert method == "head" or refusal(answer)[1] == "unauthenticated"
            seen += 1
    assert seen > 30


def test_the_api_description_is_in_order(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["tags"] and operation["summary"] for operation in operations)
    assert all(o.get("description") for o in operations if o["operationId"] != "health_metrics")


def test_a_revoked_token_is_worthless_at_once(http: httpx.Client, plane: Plane) -> None:
    made = http.post("/tokens", json={"name": "gone", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    url = f"{plane.url}/api/v1/runs"
    assert httpx.get(url, headers=headers, trust_env=False).status_code == 200
    assert http.delete(f"/tokens/{made['id']}").status_code == 204
    assert httpx.get(url, headers=headers, trust_env=False).status_code == 401
    assert all("secret" not in row for row in http.get("/tokens").json())


def test_unknown_routes_and_methods_are_answered_in_form(http: httpx.Client) -> None:
    assert refusal(http.get("/nowhere"))[:2] == (404, "no_such_route")
    assert refusal(http.put("/runs"))[:2] == (405, "wrong_method")
    assert refusal(http.get("/runs/nobody"))[:2] == (404, "not_found")


def test_an_absent_database_is_a_503(
    http: httpx.Client, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailableError("PostgreSQL at db does not answer; nothing was written")

    monkeypatch.setattr(plane.store, "runs", away)
    answer = http.get("/runs")
    assert refusal(answer)[:2] == (503, "database_unavailable")
    assert answer.headers["retry-after"]
    health = httpx.get(f"{plane.url}/healthz", trust_env=False).json()
    del health["lag"]  # a busy machine has some
    assert health == {"status": "ok", "leader": True, "ready": True, "database": ""}


def test_logs_are_read_in_pieces(http: httpx.Client, plane: Plane) -> None:
    directory = plane.settings.log_directory(RUN_ID) / "attempt-0002"
    directory.mkdir(parents=True)
    content = "".join(f"line {n} é\n" for n in range(1, 201_000))
    (directory / "rank-00001.log").write_text(content)
    (row,) = http.get(f"/runs/{RUN_ID}/logs").json()
    assert (row["attempt"], row["rank"], row["bytes"]) == (2, 1, len(content.encode()))
    read, offset = "", 0
    while True:
        piece = http.get(f"/runs/{RUN_ID}/logs/2/1", params={"offset": offset}).json()
        if not piece["text"]:
            break
        assert piece["text"].endswith("\n")
        read, offset = read + piece["text"], piece["next_offset"]
    assert read == content
    tail = http.get(f"/runs/{RUN_ID}/logs/2/1", params={"tail": 2}).json()
    assert tail["text"] == "line 200998 é\nline 200999 é\n"
    assert http.get(f"/runs/{RUN_ID}/logs/2/1", params={"tail": 0}).json()["text"] == ""
    assert refusal(http.get(f"/runs/{RUN_ID}/logs/2/7"))[:2] == (404, "not_found")


def test_the_controller_log_is_filtered_by_run(http: httpx.Client, plane: Plane) -> None:
    plane.settings.server_log.write_text(f'{{"run": "{RUN_ID}", "n": 1}}\n{{"run": "other"}}\n')
    piece = http.get(f"/runs/{RUN_ID}/logs/controller").json()
    assert piece["text"] == f'{{"run": "{RUN_ID}", "n": 1}}\n'
    assert piece["next_offset"] == piece["bytes"]


def scrape(plane: Plane) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{plane.url}/metrics", headers=FIRST, trust_env=False).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_shows_what_the_catalogue_says(
    http: httpx.Client, plane: Plane, tmp_path: Path
) -> None:
    run = submit(http, tmp_path, name="documented").json()
    text = httpx.get(f"{plane.url}/metrics", headers=FIRST, trust_env=False).text
    http.post(f"/runs/{run['id']}/cancel", json={})
    shown = set()
    for family in text_string_to_metric_families(text):
        metric = METRICS[family.name + ("_total" if family.type == "counter" else "")]
        shown.add(metric.name)
        assert family.type == metric.kind
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
    assert shown == set(METRICS)


def test_metrics(http: httpx.Client, plane: Plane, tmp_path: Path) -> None:
    run = submit(http, tmp_path, name="measured").json()
    found = scrape(plane)
    assert found["babysit_runs", frozenset({("state", "succeeded")})] == 1
    assert found["babysit_restarts_total", frozenset({("cause", "infrastructure")})] == 1
    assert found["babysit_nodes", frozenset({("state", "ready")})] == 2
    assert found["babysit_leader", frozenset()] == 1
    labels = frozenset({("run", "measured"), ("run_id", run["id"])})
    assert found["babysit_run_step", labels] == 0
    assert any(name == "babysit_build_info" for name, _ in found)
    assert found["babysit_incidents_open", frozenset({("severity", "critical")})] == 0
    assert found["babysit_gpu_seconds_total", frozenset({("bucket", "productive")})] == 0
    assert found["babysit_detection_seconds_count", frozenset()] == 1
    assert found["babysit_recovery_seconds_count", frozenset({("phase", "recompute")})] == 1
    assert found["babysit_scheduler_pending", frozenset({("reason", "no_capacity")})] == 0
    delivered = frozenset({("channel", "log"), ("result", "delivered")})
    assert found["babysit_notifications_total", delivered] >= 0
    http.post(f"/runs/{run['id']}/cancel", json={})
    assert ("babysit_run_step", labels) not in scrape(plane), "only live runs have labels"
