"""The page of a fleet of a thousand runs, in real Chromium."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from monitors.types import Severity
from orchestrator.core.model.states import IncidentState, RunState
from orchestrator.server import fleet as fleet_module
from tests.page_browser import PHONE, Visitor, chromium, faults
from tests.page_fleet import POINTS, SECRET, Fleet

HOSTILE = '"><svg onload=alert(1)>\u202egnp.exe'
WATCH_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) if (!each.hadRecentInput) window.shifted += each.value;
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with (
        pytest.MonkeyPatch.context() as patch,
        Fleet(Path(tmp_path_factory.mktemp("fleet"))) as serving,
    ):
        patch.setattr(fleet_module, "NUMBER_SECONDS", 1.0)  # tests are in a hurry
        yield serving


@pytest.fixture(scope="module")
def browser(fleet: Fleet) -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(browser: Browser, fleet: Fleet) -> Iterator[Visitor]:
    visitor = Visitor(browser, fleet.url)
    visitor.context.add_init_script(WATCH_SHIFTS)
    yield visitor
    visitor.close()


def test_a_thousand_runs_are_found_by_words_and_states_that_the_address_keeps(
    visitor: Visitor, fleet: Fleet
) -> None:
    page = visitor.sign_in(SECRET)
    rows = page.locator("#rows tr")
    expect(page.locator("#found")).to_have_text("1,000 runs")
    expect(rows).to_have_count(100)
    first = rows.first.locator(".state, .incidents").all_inner_texts()
    assert any(word in " ".join(first) for word in ("held", "recovering", "▲"))
    page.get_by_role("button", name="Show 100 more").click()
    expect(rows).to_have_count(200)
    page.get_by_label("Search runs").fill("code-30b mia")
    page.get_by_label("State").select_option("running")
    found = page.locator("#found").inner_text()
    assert page.url.endswith("/?q=code-30b+mia&state=running")
    page.reload()
    expect(page.locator("#found")).to_have_text(found)
    assert set(page.locator("#rows .state").all_inner_texts()) == {"●\nrunning"}
    page.get_by_label("Search runs").fill("there is no such run")
    expect(page.locator("#empty")).to_contain_text("No run matches")
    page.locator("#empty").get_by_role("link").click()
    expect(page.locator("#found")).to_have_text("1,000 runs")
    expect(page.locator("#node-counts")).to_contain_text("h100: 146 ready, 4 cordoned")


def test_the_fleet_is_used_with_keys_alone(visitor: Visitor) -> None:
    page = visitor.sign_in(SECRET)
    page.locator("#rows tr").first.wait_for()
    page.reload()
    page.locator("#rows tr").first.wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Search runs")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    focused = page.locator("#attention-list a").first
    expect(focused).to_be_focused()
    assert "3px" in focused.evaluate("(each) => getComputedStyle(each).outline")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("Next run")
    assert faults(page) == []
    dialog.get_by_label("Single keys act").uncheck()  # WCAG 2.1.4
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("?")
    expect(dialog).to_be_hidden()


def test_the_fleet_moves_without_shifting_and_says_what_changed(
    visitor: Visitor, fleet: Fleet
) -> None:
    page = visitor.sign_in(SECRET, "/?q=llama&sort=name")
    row = page.locator("#rows tr").first
    expect(row.locator(".step")).to_have_text(f"{POINTS}")
    fleet.go_on(7)
    expect(row.locator(".step")).to_have_text(f"{POINTS + 7}")
    run = next(run for run in fleet.state.live_runs() if run.state is RunState.RUNNING)
    named = dataclasses.replace(run, name=HOSTILE, reason="<b>every</b> rank trains")
    incident = fleet.incident(run, 4242, severity=Severity.CRITICAL, opened_at=fleet.now)
    fleet.put(named, incident)
    line = page.locator("#attention-list")
    expect(page.locator("#announce")).to_contain_text("has a new incident, critical")
    page.get_by_label("Search runs").fill("svg")
    expect(page.locator("#rows a")).to_have_text('"><svg onload=alert(1)>\\u202egnp.exe')
    expect(line).to_contain_text("\\u202egnp.exe")
    assert page.locator("main svg:not(.spark)").count() == 0
    ended = dataclasses.replace(
        named,
        state=RunState.FAILED,
        reason="RuntimeError",
        ended_at=fleet.now + dt.timedelta(minutes=1),
    )
    over = dataclasses.replace(incident, state=IncidentState.RESOLVED, resolved_at=fleet.now)
    fleet.put(over, ended)
    expect(page.locator("#rows .state")).to_contain_text("failed")
    expect(page.locator("#announce")).to_contain_text("is failed")
    shifted = page.evaluate("() => window.shifted")
    assert shifted < 0.1, "Web Vitals calls that good"


def test_a_server_that_does_not_lead_says_so_and_is_a_few_seconds_late(
    visitor: Visitor, fleet: Fleet
) -> None:
    run = next(fleet.state.live_runs())
    page = visitor.sign_in(SECRET, f"/?q={run.id}")
    banner = page.locator(".banner.warn")
    fleet.plane.is_leader = False
    try:
        expect(banner).to_contain_text("This server does not lead (test leads)")
        expect(page.locator("#live-text")).to_have_text("Live")
        fleet.put(dataclasses.replace(run, reason="from the database"))
        expect(page.locator("#rows")).to_contain_text("from the database")
    finally:
        fleet.plane.is_leader = True
    expect(banner).to_have_count(0)


def test_a_phone_shows_cards_that_are_still_a_table(browser: Browser, fleet: Fleet) -> None:
    visitor = Visitor(browser, fleet.url, viewport=PHONE, reduced_motion="reduce", has_touch=True)
    page = visitor.sign_in(SECRET)
    table = page.get_by_role("table", name="Runs")
    expect(table.get_by_role("row")).to_have_count(101)  # with the head
    name = table.get_by_role("rowheader").first
    box = name.bounding_box()
    assert box is not None
    assert box["width"] > 150
    name.get_by_role("link").tap()
    page.wait_for_url("**/runs/*")
    expect(page.locator(".curve-line")).to_be_visible()
    assert page.evaluate("() => document.getAnimations().length") == 0
    visitor.close()


def test_the_api_is_described_without_another_site(visitor: Visitor, fleet: Fleet) -> None:
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url))
    page = visitor.go("/docs")
    page.get_by_label("Search operations").fill("silence")
    expect(page.locator("#found")).to_have_text("1 operation")
    page.locator("details.operation summary").click()
    body = page.locator(".operation-body")
    expect(body).to_contain_text('curl -X POST -H "Authorization: Bearer $BABYSIT_TOKEN"')
    expect(body).to_contain_text("seconds number, optional")
    assert faults(page) == []
    assert all(url.startswith(fleet.url) for url in asked)


def test_a_wrong_token_is_refused_in_words_of_the_page(visitor: Visitor) -> None:
    page = visitor.go("/runs/any")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    said = "This server does not know the token. Paste another one."
    expect(page.get_by_role("alert")).to_have_text(said)
    assert faults(page) == []


def test_one_event_carries_the_steps_of_all_runs(fleet: Fleet) -> None:
    """With a thousand runs that step, a follower gets numbers in one event, not rows."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=fleet.url, headers=headers, trust_env=False, timeout=20) as http:
        view = http.get("/api/v1/fleet").json()
        live = sum(row["ended_at"] is None and row["attempt"] > 0 for row in view["rows"])
        fleet.go_on(3)
        with http.stream("GET", f"/api/v1/fleet/changes?after={view['id']}") as answer:
            data = next(line for line in answer.iter_lines() if '"numbers"' in line)
        changes = json.loads(data.removeprefix("data: "))
        assert changes["rows"] == []
        assert len(changes["numbers"]) >= live
        assert len(data) < 70 * len(changes["numbers"])
