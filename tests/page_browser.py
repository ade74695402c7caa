"""Chromium for tests of the page: one browser, people who sign in, and checks of what it shows."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

PATIENCE = 20_000
"""Milliseconds that a page has to show something, on a machine that does other things too."""
DESK = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
NOT_OURS = ("Failed to load resource",)
"""Chromium says so of every refused request, also where the page expects it."""

CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, back) => {
    const a = top[3];
    return [0, 1, 2].map((i) => top[i] * a + back[i] * (1 - a)).concat(1);
  };
  const backOf = (node) => {
    const layers = [];
    for (let each = node; each; each = each.parentElement) {
      layers.push(rgba(getComputedStyle(each).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reduceRight((back, layer) => over(layer, back), [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || node.closest(".unseen, noscript, option, script") || !node.checkVisibility({
      visibilityProperty: true })) continue;
    const style = getComputedStyle(node);
    const back = backOf(node);
    const fore = over(rgba(node instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push([text.slice(0, 40), ratio, node.className]);
  }
  return found;
}
"""
"""Text whose contrast to what is behind it is below AA of WCAG 2.2 (1.4.3)."""

STRUCTURE = """
() => {
  const found = [];
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  for (const id of new Set(ids)) if (ids.filter((x) => x === id).length > 1) found.push(`id ${id}`);
  for (const each of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const name of ["aria-labelledby", "aria-describedby"]) {
      for (const id of (each.getAttribute(name) ?? "").split(/\\s+/).filter(Boolean)) {
        if (!document.getElementById(id)) found.push(`${name} ${id}`);
      }
    }
  }
  let level = 0;
  for (const each of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!each.checkVisibility()) continue;
    const now = Number(each.tagName[1]);
    if (now > level + 1 && level) found.push(`heading ${each.textContent} after level ${level}`);
    level = now;
  }
  for (const table of document.querySelectorAll("table")) {
    const head = table.querySelectorAll("thead th");
    for (const row of table.querySelectorAll("tbody tr")) {
      if (head.length && row.children.length !== head.length) found.push(`row ${row.textContent}`);
      if (!row.querySelector("th[scope=row]")) found.push(`no row header: ${row.textContent}`);
    }
    if (head.length && !table.caption) found.push("a table without a caption");
  }
  if (document.querySelectorAll("main").length !== 1) found.push("main");
  if (!document.documentElement.lang) found.push("lang");
  if (document.documentElement.scrollWidth > innerWidth) found.push("scrolls sideways");
  return found;
}
"""
"""Faults of structure: ids, references, headings, tables, landmarks, width."""

TOUCH = """
(least) => [...document.querySelectorAll("button, select, input, a.button, summary, nav a")]
  .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest(".unseen"))
  .map((each) => [each, (each.closest("label") ?? each).getBoundingClientRect()])
  .filter(([each, box]) => box.height < least || box.width < least - 8)
  .map(([each, box]) => `${each.outerHTML.slice(0, 80)} ${box.width}x${box.height}`)
"""
"""Controls that a thumb misses."""
NAMED = {
    *("button", "link", "textbox", "searchbox", "combobox", "checkbox", "slider", "image"),
    *("region", "dialog", "table", "navigation", "article", "figure", "timer", "log"),
}
_OPTIONAL = {"article", "figure", "timer"}
"""Roles that may do without a name."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, Debian's."""
    expect.set_options(timeout=PATIENCE)
    found = shutil.which("chromium")
    if found is None:
        raise RuntimeError("chromium is not installed: run `scripts/chromium`")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A person with a browser window; notes each error of the page."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(**{"viewport": DESK, **options})
        self.context.set_default_timeout(PATIENCE)
        self.url, self.errors = url, list[str]()
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(NOT_OURS):
            self.errors.append(message.text)

    def go(self, where: str) -> Page:
        """Open an address of the page."""
        self.page.goto(self.url + where)
        return self.page

    def sign_in(self, secret: str, where: str = "/") -> Page:
        """Open an address, and sign in by the form that comes."""
        page = self.go(where)
        page.get_by_label("Token").fill(secret)
        page.get_by_role("button", name="Sign in").click()
        page.locator("#who").wait_for()
        return page

    def close(self) -> None:
        """Close the window; the page must have had no error."""
        self.context.close()
        assert self.errors == []


def faults(page: Page, *, touch: int = 0) -> list[Any]:
    """Faults of accessibility that can be computed; `touch`: least height of controls in pixels."""
    found = [*page.evaluate(CONTRAST), *page.evaluate(STRUCTURE), *_nameless(page)]
    return [*found, *(page.evaluate(TOUCH, touch) if touch else [])]


def _nameless(page: Page) -> list[str]:
    """Controls and regions of the accessibility tree without a name."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        f"{role} without a name"
        for node in nodes
        if not node.get("ignored")
        and (role := node.get("role", {}).get("value")) in NAMED - _OPTIONAL
        and not node.get("name", {}).get("value", "").strip()
    ]
