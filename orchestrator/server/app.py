"""The HTTP application: routes under `/api/v1`, `/healthz`, `/metrics`, and the agents' gateway."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from jobs.clock import Clock
from orchestrator.server import error_responses
from orchestrator.server.admission import Admission
from orchestrator.server.audit import Audit, Operations
from orchestrator.server.context import CALLER, Context, ControlPlane
from orchestrator.server.fleet import Fleet
from orchestrator.server.guard import Guard
from orchestrator.server.idempotency import Keys
from orchestrator.server.metrics import routes as metrics
from orchestrator.server.routes import (
    audit,
    browser,
    bundles,
    checkpoints,
    fleet,
    history,
    incidents,
    nodes,
    oidc,
    page,
    queues,
    records,
    runs,
    system,
    usage,
)
from orchestrator.server.run_watch import RunWatches
from orchestrator.server.streams import Streams
from orchestrator.settings import Settings
from orchestrator.version import package_version

_TAGS = [
    {"name": "runs", "description": "Training jobs: submit, list, show, act on."},
    {"name": "story", "description": "The story, journal and logs of a run."},
    {"name": "checkpoints", "description": "Saved states, and how far each may be trusted."},
    {"name": "incidents", "description": "Failures and anomalies, and the action on each."},
    {"name": "nodes", "description": "Hosts, and whether they take work."},
    {"name": "queues", "description": "Where runs wait."},
    {"name": "tokens", "description": "Credentials (role admin)."},
    {"name": "session", "description": "Sign-in of browsers."},
    {"name": "system", "description": "The control plane itself."},
    {
        "name": "health",
        "description": "For probes (no token), Prometheus (any token).",
    },
]


def _operation_id(route: APIRoute) -> str:
    """`runs_submit`: stable names for generated clients."""
    return f"{route.tags[0] if route.tags else 'api'}_{route.name}"


def create_app(
    controller: ControlPlane, clock: Clock, settings: Settings, gateway: APIRouter | None = None
) -> FastAPI:
    """The application around a controller.

    Args:
        controller: Decides and stores. Started and stopped by the caller.
        clock: What time it is.
        settings: Where logs lie, and the first token.
        gateway: Where agents connect (a WebSocket route).
    """
    app = FastAPI(
        title="babysit",
        version=package_version(),
        summary="Keeps large training runs alive.",
        openapi_tags=_TAGS,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its scripts would come from another site, beside a box for the token
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.context = Context(controller, clock, settings)
    app.add_middleware(Keys)  # behind the guard
    app.add_middleware(Guard, context=app.state.context)
    operations = Operations(app.openapi)
    # In front of the guard: it notes refusals, too.
    app.add_middleware(Audit, context=app.state.context, caller=CALLER, operations=operations)
    app.add_middleware(Admission)  # in front of the guard, which asks the database
    app.state.streams, app.state.curves = Streams(), {}
    app.state.fleet = Fleet(app.state.context)
    app.state.watches = RunWatches(app.state.context)
    app.state.metrics = metrics.Metrics(app.state.context)
    api = APIRouter(prefix="/api/v1", responses=error_responses.RESPONSES)
    # The more specific paths come first: `/runs/{reference}/events` before `/runs/{reference}`.
    for module in (checkpoints, history, fleet, runs, bundles, incidents, nodes, queues, system):
        api.include_router(module.router)
    api.include_router(history.everything)
    api.include_router(browser.api)
    api.include_router(audit.router)
    api.include_router(usage.router)
    api.include_router(records.router)
    app.include_router(api)
    app.include_router(system.health)
    app.include_router(browser.page)
    app.include_router(oidc.page)
    app.include_router(page.router)
    app.include_router(metrics.router)
    if gateway is not None:
        app.include_router(gateway)
    error_responses.install(app)
    return app
