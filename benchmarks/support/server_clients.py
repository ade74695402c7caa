"""Clients of `benchmarks/server.py`: programs that ask the API, and a browser that opens the page.

    python -m benchmarks.support.server_clients api URL TOKEN CLIENTS SECONDS
    python -m benchmarks.support.server_clients page URL TOKEN LOADS

Each prints one JSON object. They are processes of their own, whose CPU is not that of the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.support.harness import median

PATHS = (
    ("runs", "/api/v1/runs?limit=100"),
    ("run", "/api/v1/runs/run-{run}"),
    ("explain", "/api/v1/runs/run-{run}/explain"),
    ("attempts", "/api/v1/runs/run-{run}/attempts"),
    ("fleet", "/api/v1/fleet"),
    ("incidents", "/api/v1/incidents"),
    ("node", "/api/v1/nodes/node-{node:05}"),
    ("queues", "/api/v1/queues"),
)
"""Requests of people and scripts, each as frequent as the others."""


def high(values: Sequence[float], share: float = 0.99) -> float:
    """The value that a share of all values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def api(url: str, token: str, clients: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of answers, while each client asks once a second on the average."""
    took: dict[str, list[float]] = defaultdict(list)
    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=60
    ) as client:

        async def ask(name: str, path: str) -> None:
            begin = time.monotonic()
            answer = await client.get(path)
            took[name].append((time.monotonic() - begin) * 1000)
            if answer.status_code != 200:
                raise SystemExit(f"{path}: {answer.status_code} {answer.text}")

        async def person(number: int) -> None:
            chance, end = random.Random(number), time.monotonic() + seconds
            await asyncio.sleep(chance.random())
            while time.monotonic() < end:
                name, path = chance.choice(PATHS)
                pause = asyncio.create_task(asyncio.sleep(chance.uniform(0.5, 1.5)))
                await ask(name, path.format(run=chance.randrange(1000), node=chance.randrange(10)))
                await pause

        await asyncio.gather(*map(person, range(clients)))
    every = [each for several in took.values() for each in several]
    return {
        "requests": len(every),
        "median_ms": median(every),
        "p99_ms": high(every),
        "median_ms_by_path": {name: round(median(several), 1) for name, several in took.items()},
    }


def page(url: str, token: str, loads: int) -> dict[str, Any]:
    """Milliseconds from the address to the table of runs, in a headless Chromium that is warm."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the page needs the Debian package chromium; --loads 0 leaves it out")
    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(base_url=url)
        headers = {"Authorization": f"Bearer {token}"}
        code = context.request.post("/api/v1/sign-in", headers=headers)
        if not code.ok:
            raise SystemExit(f"sign-in: {code.status} {code.text()}")
        context.request.get(code.json()["path"])  # sets the cookie
        for _ in range(loads + 1):  # the first one starts processes of the browser
            tab = context.new_page()
            begin = time.monotonic()
            tab.goto("/", wait_until="commit")
            tab.wait_for_selector("#rows tr")
            took.append((time.monotonic() - begin) * 1000)
            found = tab.inner_text("#found")
            tab.close()
        browser.close()
    return {"found": found, "median_ms": median(took[1:]), "worst_ms": max(took[1:])}


def main() -> None:
    """Run one of the two."""
    what, url, token, *numbers = sys.argv[1:]
    if what == "api":
        print(json.dumps(asyncio.run(api(url, token, int(numbers[0]), float(numbers[1])))))
    else:
        print(json.dumps(page(url, token, int(numbers[0]))))


if __name__ == "__main__":
    main()
