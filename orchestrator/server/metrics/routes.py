"""The route `/metrics`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector

from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import SaveTrouble
from orchestrator.errors import DatabaseUnavailableError
from orchestrator.server.context import AnywhereViewer, Context
from orchestrator.server.metrics.counters import Tallies
from orchestrator.server.metrics.exposition import CONTENT_TYPE, Page, labels_text
from orchestrator.server.metrics.scrape import Memory, Scrape
from orchestrator.version import package_version

router = APIRouter(tags=["health"])


class Metrics:
    """The memory of a server from scrape to scrape."""

    def __init__(self, here: Context) -> None:
        self._here = here
        self._tallies: Tallies | None = None
        """Of the present lead; None while this server does not lead."""
        self._memory = Memory()
        self._process = ProcessCollector(registry=CollectorRegistry(auto_describe=False))

    async def scrape(self) -> Page:
        """The metrics of this server, and of the fleet if it leads."""
        here, page = self._here, Page(self._memory.templates)
        await self._lease(page)
        self._server(page)
        if here.controller.is_leader:
            await self._fleet(page)
        else:
            self._tallies = None
        self._of_process(page)
        return page

    async def _fleet(self, page: Page) -> None:
        controller, now = self._here.controller, self._here.clock.now()
        if self._tallies is None:
            self._tallies = Tallies(controller.store)
        tallies = self._tallies
        tally = await tallies.count(controller.state, controller.numbers.runs, now)
        # From here on nothing waits: the page shows one moment.
        scrape = Scrape(self._memory, controller.state, controller.numbers, now, page)
        if tally is not None:
            scrape.counted(tally)
        scrape.fleet()
        scrape.queues()
        scrape.runs(tallies.recent)
        scrape.nodes()
        hardware = self._here.hardware
        blind = hardware.blind_counts(controller.state.nodes)
        page.by_label("babysit_source_blind", {source: float(n) for source, n in blind.items()})
        page.one("babysit_node_reports_total", hardware.reports)

    def _server(self, page: Page) -> None:
        controller = self._here.controller
        page.one("babysit_leader", int(controller.is_leader))
        version = labels_text(["version"], [package_version()])
        page.series("babysit_build_info", [(version, 1)])
        lag = controller.lag
        page.one("babysit_queue_lag_seconds", lag.queue)
        page.one("babysit_event_loop_lag_seconds", lag.loop)
        page.series(
            "babysit_notifications_total",
            [
                (labels_text(("channel", "result"), key), count)
                for key, count in sorted(controller.notices.items())
            ],
        )
        page.by_label("babysit_events_set_aside_total", dict(sorted(controller.set_aside.items())))
        self._storage(page)

    def _storage(self, page: Page) -> None:
        """Trouble with storage by kind, and with the database, which cannot hold its incident."""
        controller = self._here.controller
        counts = Counter(
            str(incident.kind)
            for incident in controller.state.incidents.values()
            if incident.state is not IncidentState.RESOLVED
        )
        kinds = [*map(str, SaveTrouble), "database_full", "database_unavailable"]
        if controller.database.reason:
            counts[kinds[-2] if controller.database.full else kinds[-1]] += 1
        page.by_label("babysit_storage_trouble", {kind: counts[kind] for kind in kinds})

    async def _lease(self, page: Page) -> None:
        """By this server's clock: on PostgreSQL the lease goes by the database's."""
        here = self._here
        try:
            lease = await here.store.leader()
        except DatabaseUnavailableError:
            return
        if lease is not None:
            left = (lease.expires_at - here.clock.now()).total_seconds()
            page.one("babysit_lease_age_seconds", max(0.0, here.settings.lease_seconds - left))

    def _of_process(self, page: Page) -> None:
        for family in self._process.collect():
            for sample in family.samples:
                page.one(sample.name, sample.value)


class _Pieces(Response):
    """A page sent in pieces."""

    media_type = CONTENT_TYPE

    def __init__(self, page: Page) -> None:
        super().__init__(media_type=CONTENT_TYPE)
        self._pieces = list(page.parts)
        self.headers["content-length"] = str(sum(map(len, self._pieces)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it; a client that goes away ends it."""
        del scope, receive
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, _: AnywhereViewer) -> Response:
    """Prometheus text format. Needs a token of any role, without a scope: it names every run."""
    found: Metrics = request.app.state.metrics
    return _Pieces(await found.scrape())
