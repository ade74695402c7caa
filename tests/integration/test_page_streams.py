"""The files of the page, the fleet and its streams, over a real server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.server import streams
from tests.plane import SECRET, Plane, finished

FIRST = {"Authorization": f"Bearer {SECRET}"}
Event = tuple[str, str, Any]
"""Kind, id, data."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


@pytest.fixture
def http(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=plane.url, headers=FIRST, trust_env=False, timeout=20) as client:
        yield client


@contextlib.contextmanager
def stream(http: httpx.Client, where: str, **options: Any) -> Iterator[Iterator[Event]]:
    with http.stream("GET", where, **options) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Event]:
    found: dict[str, str] = {}
    for text in lines:
        if text:
            name, _, value = text.partition(": ")
            found[name] = value
        elif "event" in found:
            yield found["event"], found.get("id", ""), json.loads(found["data"])
            found = {}


def next_of(kind: str, events: Iterator[Event]) -> Event:
    return next(each for each in events if each[0] == kind)


def submit(http: httpx.Client, directory: Path, name: str, **fields: Any) -> str:
    spec = {"name": name, "command": ["true"], **fields}
    body = {"spec": spec, "base_directory": str(directory)}
    made = http.post("/api/v1/runs", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def test_files_of_the_page_need_no_token_and_allow_no_script_of_others(plane: Plane) -> None:
    with httpx.Client(base_url=plane.url, trust_env=False) as http:
        for where in ("/", "/docs", "/runs/tiny", "/incidents/x", "/page/base.css", "/page/run.js"):
            answer = http.get(where)
            assert answer.status_code == 200, where
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = http.get(where, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for where in ("/page/none.js", "/page/__init__.py", "/page/..%2fapp.py", "/runs/a/b"):
            assert http.get(where).status_code in {401, 404}, where
        assert http.get("/api/v1/fleet").status_code == 401
        assert http.get("/api/v1/fleet/changes").status_code == 401


def test_a_follower_gets_what_changes_and_goes_on_where_it_was(
    http: httpx.Client, tmp_path: Path
) -> None:
    fleet = http.get("/api/v1/fleet").json()
    assert [row["name"] for row in fleet["rows"]] == ["tiny"]
    assert fleet["nodes"] == [{"pool": "", "state": "ready", "count": 2, "gpus": 0}]
    with stream(http, f"/api/v1/fleet/changes?after={fleet['id']}") as events:
        run = submit(http, tmp_path, "followed")
        _, position, data = next_of("changes", events)
        assert [row["id"] for row in data["rows"]] == [run]
    # Nobody listens while the run is cancelled; a browser then comes back with its last id.
    http.post(f"/api/v1/runs/{run}/cancel", json={"reason": "enough"})
    with stream(http, "/api/v1/fleet/changes", headers={"Last-Event-ID": position}) as events:
        (row,) = next_of("changes", events)[2]["rows"]
        assert (row["id"], row["state"]) == (run, "cancelled")
    with stream(http, "/api/v1/fleet/changes?after=other-7") as events:
        assert next_of("reload", events)[1] == http.get("/api/v1/fleet").json()["id"]


def test_a_run_is_followed_with_a_revision(http: httpx.Client, tmp_path: Path) -> None:
    run = submit(http, tmp_path, "alone")
    with stream(http, "/api/v1/runs/alone/changes") as events:
        before = next_of("run", events)[2]
        http.post(f"/api/v1/runs/{run}/hold", json={"reason": "a look"})
        after = next_of("run", events)[2]
    assert (after["row"]["state"], before["row"]["id"]) == ("held", run)
    assert after["revision"] != before["revision"]
    http.post(f"/api/v1/runs/{run}/cancel", json={})
    ranks = http.get("/api/v1/runs/tiny/ranks").json()
    assert [(s["node"], s["ranks"]) for s in ranks["seats"]] == [("node-1", "0"), ("node-2", "1")]


def test_a_stream_ends_with_its_token(
    plane: Plane, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RECHECK_SECONDS", 0.5)
    made = http.post("/api/v1/tokens", json={"name": "guest", "role": "viewer"}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    with (
        httpx.Client(base_url=plane.url, headers=headers, trust_env=False) as guest,
        stream(guest, "/api/v1/fleet/changes") as events,
    ):
        next_of("reload", events)
        http.delete(f"/api/v1/tokens/{made['id']}")
        assert "was revoked" in next_of("over", events)[2]["message"]
        assert list(events) == []


def test_a_token_of_a_project_follows_its_runs_alone(
    plane: Plane, http: httpx.Client, tmp_path: Path
) -> None:
    body = {"name": "team", "role": "viewer", "projects": ["ours"]}
    made = http.post("/api/v1/tokens", json=body).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    with httpx.Client(base_url=plane.url, headers=headers, trust_env=False, timeout=20) as team:
        fleet = team.get("/api/v1/fleet").json()
        assert fleet["rows"] == []
        with stream(team, f"/api/v1/fleet/changes?after={fleet['id']}") as events:
            runs = [submit(http, tmp_path, name, project=name) for name in ("theirs", "ours")]
            assert [r["name"] for r in next_of("changes", events)[2]["rows"]] == ["ours"]
        assert team.get(f"/api/v1/runs/{runs[0]}/changes").status_code == 403
        assert team.get("/api/v1/fleet/losses", params={"run": runs}).json() == {runs[1]: []}
    for run in runs:
        http.post(f"/api/v1/runs/{run}/cancel", json={})


def test_streams_leave_room_for_requests_and_have_a_limit(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_OF_A_CALLER", 12)
    with contextlib.ExitStack() as open_streams:
        for _ in range(12):
            open_streams.enter_context(stream(http, "/api/v1/fleet/changes"))
        assert http.get("/api/v1/info").status_code == 200
        refused = http.get("/api/v1/fleet/changes")
        assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "temporary")
        assert refused.headers["retry-after"]


def test_streams_do_not_hold_up_a_server_that_ends(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    plane.__enter__()
    with (
        httpx.Client(base_url=plane.url, headers=FIRST, trust_env=False, timeout=20) as http,
        stream(http, "/api/v1/fleet/changes") as events,
    ):
        next_of("reload", events)
        plane.__exit__()
        assert next_of("leaving", events)  # without it, the server would have cut the stream off


def test_ranks_in_a_row_are_a_range() -> None:
    from orchestrator.server.routes.fleet import in_ranges

    assert in_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert in_ranges([]) == ""
