"""The web page over a real server with real runs, in real Chromium."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.acceptance.conftest import Job, Jobs
from tests.control_plane import ControlPlane, Servers, control_plane, until
from tests.page_browser import DESK, PHONE, Visitor, chromium, faults
from tests.prometheus import free_port

HOSTILE = "<img src=x onerror=alert(1)>\u202egnirts</script>"
SCRIPT = f"""
import sys, time, pathlib
print("<script>alert(1)</script> \\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 done", flush=True)
print("{HOSTILE}", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.1)
"""


@dataclasses.dataclass
class Site:
    """A control plane with a port, and three runs that train on."""

    plane: ControlPlane
    url: str
    drill: str
    """It was rolled back, and a rank of it was killed."""
    asking: str
    """Its loss has jumped; babysit asks before it rolls back."""
    hostile: str
    """Its log has markup and codes for terminals."""
    secrets: dict[str, str]
    """Of tokens, by role."""
    asking_job: Job


@pytest.fixture(scope="module")
def site(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("page")
    jobs, port = Jobs(root), free_port()
    with control_plane(servers, root / "home", port=port, local_nodes=4) as plane:
        asks = {"loss_spike": {"action": "ask"}}
        drill = jobs("drill", faults=("nan@35",), pace=0.1)
        asking = jobs("asking", faults=("explode@40",), pace=0.05, monitors=asks)
        ids = [plane.submit(job.spec) for job in (drill, asking)]
        ids.append(plane.submit(_hostile(root)))
        secrets = {
            role: plane.ask("token", "create", name, "--role", role)["secret"]
            for name, role in (("mia", "operator"), ("guest", "viewer"))
        }
        until(lambda: plane.show(ids[0])["restarts_count"] == 1, "the run was rolled back")
        plane.at_step(ids[0], 50)
        plane.signal_rank(ids[0], 1, signal.SIGKILL)
        until(lambda: plane.show(ids[0])["restarts_count"] == 2, "a rank was killed")
        until(lambda: plane.show(ids[1])["incidents"][:1], "babysit asks")
        yield Site(plane, f"http://127.0.0.1:{port}", *ids, secrets, asking)


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    """A browser that is closed before the site: it has an event loop in this thread."""
    with chromium() as running:
        yield running


def _hostile(root: Path) -> Path:
    script = root / "hostile.py"
    script.write_text(SCRIPT)
    spec = root / "hostile.yaml"
    spec.write_text(f"name: hostile\ncommand: [python, {script}, {root / 'end'}]\n")
    return spec


@pytest.fixture
def operator(browser: Browser, site: Site) -> Iterator[Visitor]:
    visitor = Visitor(browser, site.url)
    yield visitor
    visitor.close()


def journal(site: Site, name: str) -> list[dict[str, Any]]:
    """Events of a kind, as the journal has them: with the actor."""
    with ThreadPoolExecutor(1) as elsewhere:  # this thread has the browser's event loop
        entries = elsewhere.submit(site.plane.journal).result()
    return [{**e.payload, "actor": e.actor} for e in entries if e.name == name]


def test_a_person_signs_in_and_finds_a_run_with_what_happened_to_it(
    operator: Visitor, site: Site
) -> None:
    page = operator.sign_in(site.secrets["operator"])
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(3)
    expect(page.locator("#live-text")).to_have_text("Live")
    expect(page.locator("#rows .spark").first).to_be_visible()
    page.get_by_role("link", name="asking loss spike").click()
    expect(page.locator("article.incident.open .count-down")).to_have_text(
        re.compile(r"1[0-4] min \d+ s left")
    )
    incident = site.plane.show(site.asking)["incidents"][0]["id"]
    assert page.url == f"{site.url}/runs/{site.asking}#incident-{incident}"
    expect(page.locator(f"#incident-{incident}")).to_be_focused()
    page.goto(f"{site.url}/incidents/{incident}")  # what Slack may link to
    expect(page.locator("h1")).to_have_text("asking")
    assert page.url.endswith(f"#incident-{incident}")
    page.goto(f"{site.url}/runs/drill")  # by name: the newest of that name
    expect(page.locator(".summary")).to_contain_text("1 restart, 1 rollback (to step")
    assert page.locator(".restart path").count() == 1
    assert page.locator(".rollback path").count() == 1
    assert page.locator("a.incident-mark").count() == 2
    expect(page.locator("#attempt-list tbody tr")).to_have_count(3)
    expect(page.locator("#attempt-list")).to_contain_text("killed by SIGKILL")
    expect(page.locator("#ledger")).to_contain_text("productive")
    expect(page.locator("#rank-list tbody tr")).to_have_count(2)
    assert page.locator("#checkpoint-list tbody tr").count() > 0
    step = page.locator("#facts dd").first
    before = step.inner_text()
    expect(step).not_to_have_text(before)  # by the stream
    page.goto(f"{site.url}/runs/none")
    expect(page.locator("h1")).to_have_text("There is no such run")


def test_text_of_others_is_only_text(operator: Visitor, site: Site) -> None:
    site.plane.babysit("hold", site.hostile, "--reason", HOSTILE)
    page = operator.sign_in(site.secrets["operator"], f"/runs/{site.hostile}")
    expect(page.locator("#why")).to_contain_text("<img src=x onerror=alert(1)>\\u202egnirts")
    log = page.locator("pre.log")
    expect(log).to_contain_text("<script>alert(1)</script> red \\x1b]0;title\\x07 done")
    assert page.locator("main img, main script").count() == 0
    blocked = page.evaluate(
        """() => {
          try { document.body.insertAdjacentHTML("beforeend", "<b>"); } catch { return true; }
        }"""
    )
    assert blocked, "no text is ever read as markup"
    assert any("TrustedHTML" in error for error in operator.errors)
    operator.errors.clear()
    site.plane.babysit("release", site.hostile)


def in_both_themes(page: Page, touch: int) -> list[Any]:
    """Faults of the page as it is, light and dark."""
    found = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found += faults(page, touch=touch)
    return found


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_everybody_can_read_and_use_it(browser: Browser, site: Site, size: dict[str, int]) -> None:
    """Contrast, names, roles, headings, tables, width and sizes for thumbs."""
    visitor = Visitor(browser, site.url, viewport=size)
    page = visitor.sign_in(site.secrets["operator"])
    touch = 40 if size is PHONE else 0
    for where, ready in (
        ("/", "#rows .spark"),
        ("/runs/drill", ".curve-line"),
        ("/runs/asking", ".count-down"),
        ("/docs", "details.operation"),
    ):
        page.goto(site.url + where)
        page.locator(ready).first.wait_for()
        assert in_both_themes(page, touch) == [], where
    page.goto(f"{site.url}/runs/asking")
    page.get_by_role("button", name="Roll back to …").click()
    page.get_by_role("dialog").wait_for()
    assert in_both_themes(page, touch) == []
    visitor.close()


def test_a_viewer_looks_and_learns_why_there_is_no_more(browser: Browser, site: Site) -> None:
    visitor = Visitor(browser, site.url)
    page = visitor.sign_in(site.secrets["viewer"], f"/runs/{site.asking}")
    changes: list[str] = []
    page.on("request", lambda r: changes.append(r.url) if r.method != "GET" else None)
    for name in ("Hold automation", "Roll back to …", "Acknowledge", "Silence 1 h"):
        button = page.get_by_role("button", name=name)
        expect(button).to_have_attribute("aria-disabled", "true")
        button.click(force=True)  # Playwright would wait until it is enabled
    why = "Needs the role operator; you are signed in as viewer."
    expect(page.locator("#actions")).to_contain_text(why)
    expect(page.locator("dialog")).to_have_count(0)
    assert changes == []
    visitor.close()


def test_evidence_stays_open_and_what_is_not_read_is_said(operator: Visitor, site: Site) -> None:
    page = operator.sign_in(site.secrets["operator"], f"/runs/{site.asking}")
    evidence = page.locator("article.incident.open details")
    evidence.locator("summary").click()
    for _ in range(2):  # the second is asked for after the first was drawn
        page.wait_for_event("response", lambda answer: answer.url.endswith("/checkpoints"))
    expect(evidence).to_have_attribute("open", "")
    expect(evidence.locator("summary")).to_be_focused()
    page.route("**/attempts", lambda route: route.fulfill(status=500, json={}))
    banners = page.locator("#banners")
    expect(banners).to_contain_text(re.compile(r"attempts and checkpoints are \d+ s old"))
    expect(page.locator("#live-text")).to_have_text("Live")
    page.unroute("**/attempts")
    expect(banners).not_to_contain_text("attempts and checkpoints")


def test_an_operator_acts_and_the_journal_knows_who(operator: Visitor, site: Site) -> None:
    page = operator.sign_in(site.secrets["operator"], f"/runs/{site.asking}")
    page.get_by_role("button", name="Silence 1 h").click()
    expect(page.locator("article.incident.open")).to_contain_text("Silenced")
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.locator("article.incident.open .ask")).to_contain_text("mia acknowledged")
    page.get_by_role("button", name="Hold automation").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("takes no action for the run until somebody releases it")
    dialog.get_by_role("button", name="Hold automation").click()
    assert dialog.is_visible(), "a reason is needed"
    dialog.get_by_label("Reason").fill("a look at the data")
    dialog.get_by_role("button", name="Hold automation").click()
    expect(page.locator("#state")).to_contain_text("held")
    page.get_by_role("button", name="Release").click()
    page.get_by_label("Reason").fill("done")
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(page.locator("#state")).not_to_contain_text("held")
    page.get_by_role("button", name="Roll back to …").click()
    steps = page.get_by_label("Roll back to").locator("option").all()
    chosen = steps[-1].get_attribute("value")
    page.get_by_label("Roll back to").select_option(chosen)
    expect(dialog).to_contain_text(f"loads the checkpoint of step {int(chosen or 0):,}")
    page.get_by_label("Reason").fill("before the spike")
    dialog.get_by_role("button", name="Roll back", exact=True).click()
    expect(page.locator("#attempt-list tbody tr")).to_have_count(2)

    (silenced,) = journal(site, "incident_silenced")
    assert (silenced["actor"], silenced["seconds"]) == ("operator:mia", 3600.0)
    assert journal(site, "incident_changed")[0]["actor"] == "operator:mia"
    held = [e for e in journal(site, "run_held") if e["run"] == site.asking]
    assert [(e["actor"], e["reason"]) for e in held] == [("operator:mia", "a look at the data")]
    (rolled,) = journal(site, "rollback_asked")
    assert (rolled["actor"], rolled["to_step"]) == ("operator:mia", int(chosen or 0))
    assert rolled["reason"] == "before the spike"


def test_the_page_rides_out_a_server_that_restarts(operator: Visitor, site: Site) -> None:
    """It says that the server is away and how old the data is, and comes back by itself."""
    page = operator.sign_in(site.secrets["operator"], "/runs/drill")
    expect(page.locator("#live-text")).to_have_text("Live")
    page.evaluate("() => { window.stays = true; }")
    site.plane.stop()
    expect(page.locator("#live-text")).to_have_text("Server away")
    expect(page.locator(".banner.bad")).to_contain_text(re.compile(r"The data is \d+(\.\d)? s old"))
    dialog = page.get_by_role("dialog")
    page.locator("#who").click()
    dialog.get_by_role("button", name="Sign out").click()
    expect(dialog.get_by_role("alert")).to_contain_text("You are still signed in")
    dialog.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Hold automation").click()
    page.get_by_label("Reason").fill("while it is away")
    dialog.get_by_role("button", name="Hold automation").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The server does not answer")
    site.plane.start()
    expect(page.locator("#live-text")).to_have_text("Live")
    dialog.get_by_role("button", name="Hold automation").click()
    expect(page.locator("#state")).to_contain_text("held")
    site.plane.babysit("release", "drill")
    expect(page.locator("#state")).not_to_contain_text("held")
    assert page.evaluate("() => window.stays"), "the page was not loaded anew"
    assert [e["reason"] for e in journal(site, "run_held")].count("while it is away") == 1
    operator.errors.clear()  # refused connections


def test_a_refusal_says_what_to_do_and_the_end_of_a_session_asks_for_another(
    operator: Visitor, site: Site
) -> None:
    made = site.plane.ask("token", "create", "temp", "--role", "operator")
    page = operator.sign_in(made["secret"], f"/runs/{site.hostile}")
    page.get_by_role("button", name="Hold automation").click()
    page.get_by_label("Reason").fill("too late")
    site.plane.babysit("cancel", site.hostile)
    until(lambda: site.plane.show(site.hostile)["state"] == "cancelled", "it was stopped")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Hold automation").click()
    expect(dialog.get_by_role("alert")).to_contain_text("it was cancelled by operator:")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Hold automation")).to_have_attribute(
        "aria-disabled", "true"
    )
    other = {"kind": "oidc", "label": "Sign in with Example", "path": "/sign-in/oidc"}
    ways = {"signed_in": False, "methods": [other]}
    page.route("**/api/v1/session", lambda route: route.fulfill(json=ways))
    site.plane.babysit("token", "revoke", made["id"])
    expect(page.get_by_label("Token")).to_be_visible()
    expect(page.get_by_role("link", name="Sign in with Example")).to_be_visible()
    assert _cookies(page) == {}, "scripts see no cookie"


def _cookies(page: Page) -> dict[str, str]:
    text: str = page.evaluate("() => document.cookie")
    return {part: part for part in text.split("; ") if part}
