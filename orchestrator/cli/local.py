"""Commands that need no control plane: schema, init, doctor."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from jobs import room, spec_file
from jobs.schema import schema_text
from jobs.spec_types import Name
from jobs.yaml_file import SpecError
from orchestrator.cli import embedded, submission
from orchestrator.cli.client import Api
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, emit, human_bytes, put, say, text
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, session
from orchestrator.database import schema as database_schema
from orchestrator.errors import BabysitError
from orchestrator.private_home import fault

_STARTER = ("run.yaml", "train.py")
_LOW_BYTES = 1 << 30
Finding = tuple[bool, str]
CHECKS = [
    Column("CHECK", text("name")),
    Column("RESULT", text("result")),
    Column("DETAIL", text("detail")),
]


def schema() -> None:
    """Print the JSON Schema of the run spec, for editors and checks.

    For example:

        babysit schema > run.schema.json
    """
    typer.echo(schema_text(), nl=False)


def init(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="[DIRECTORY]", help="Target directory, created if it does not exist."
        ),
    ] = Path(),
) -> None:
    """Write a commented run.yaml and a train.py to start from. Overwrites no file.

    The run is named after the directory, if that is a name for a run, or else my-run.

    For example:

        babysit init my-run && babysit run my-run/run.yaml
    """
    taken = [str(directory / name) for name in _STARTER if (directory / name).exists()]
    if taken:
        raise CliError(
            f"{' and '.join(taken)} would be overwritten; choose another directory",
            ExitCode.REFUSED,
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in _STARTER:
            content = resources.files("jobs").joinpath("templates", "starter", name).read_text()
            (directory / name).write_text(content.replace("my-run", _name(directory)))
    except OSError as error:
        raise CliError(f"{directory}: {error.strerror}", ExitCode.REFUSED) from error
    for name in _STARTER:
        put(str(directory / name))
    say(f"Start it: babysit run {directory / 'run.yaml'}")


def _name(directory: Path) -> str:
    """The name of a run after its directory."""
    name = directory.absolute().name.lower().replace("_", "-")
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError:
        return "my-run"


def doctor(
    ctx: typer.Context,
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="[SPEC]", help="A run: check the room for its checkpoints too."),
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Check what babysit needs on this machine. Starts nothing; exit code 1 if a check fails.

    For example:

        babysit doctor
        babysit doctor run.yaml
    """
    from orchestrator.cli import hardware_checks, spare_check

    here = session(ctx)
    checks: dict[str, tuple[bool, Callable[[], Finding]]] = {
        "python": (True, _python),
        "home": (True, lambda: _home(here)),
        "database": (True, lambda: _database(here)),
        "server": (here.settings.server is not None, lambda: _server(here)),
        "alerts": (here.settings.alerts != "log", lambda: _alerts(here)),
        "shared memory": (True, _shared_memory),
        "host memory": (False, _host_memory),
        "stacks of hung ranks": (False, _py_spy),
        "torch": (False, _torch),
        "gpus": (False, _gpus),
    }
    if here.settings.server is None and here.settings.cluster not in submission.NOT_ELSEWHERE:
        checks["agents"] = (True, lambda: _agents(here))
        checks["bundles"] = (True, lambda: _bundles(here))
    if here.settings.oidc_issuer:
        checks["single sign-on"] = (True, lambda: _single_sign_on(here))
    rows = [_row(name, needed, check()) for name, (needed, check) in checks.items()]
    rows += spare_check.rows(here)
    rows += hardware_checks.rows(here)
    rows += [] if spec is None else _of_spec(spec)
    emit(rows, CHECKS, form, name="name")
    if any(row["result"] == "failed" for row in rows):
        raise typer.Exit(1)


def _of_spec(file: Path) -> list[dict[str, Any]]:
    """Room for the checkpoints of a run."""
    try:
        written, source = spec_file.read(file)
        spec = spec_file.resolve(written, file.parent, source)
    except SpecError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    return [_row(need.field, True, (need.ok, str(need))) for need in room.needs(spec)]


def _host_memory() -> Finding:
    free = room.available_memory()
    return free is not None, "not known" if free is None else f"{human_bytes(free)} available"


def _row(name: str, needed: bool, finding: Finding) -> dict[str, Any]:
    ok, detail = finding
    result = "ok" if ok else "failed" if needed else "absent"
    return {"name": name, "result": result, "detail": detail}


def _python() -> Finding:
    return True, f"{platform.python_version()} on {platform.system()} {platform.release()}"


def _home(here: Session) -> Finding:
    home = here.settings.home
    ancestor = next(path for path in (home, *home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        return False, f"{home} cannot be written: {error.strerror}; set BABYSIT_HOME"
    if unsafe := fault(home):
        return False, unsafe
    free = shutil.disk_usage(ancestor).free
    return free > _LOW_BYTES, f"{home}, {human_bytes(free)} free"


def _database(here: Session) -> Finding:
    settings = here.settings
    if not settings.database_url and not (settings.home / "babysit.db").exists():
        return True, "SQLite, created at first use"
    try:
        differences = asyncio.run(database_schema.check(settings.database))
    except BabysitError as error:
        return False, str(error)
    return not differences, "; ".join(differences) or "reachable, and its schema is up to date"


def _server(here: Session) -> Finding:
    settings = here.settings
    if settings.server is None:
        found = embedded.find(settings, here.clock)
        return found is not None, found.url if found else "embedded; started when needed"
    api = Api(settings.server, None, here.clock)
    answers = api.is_healthy()
    api.close()
    return answers, settings.server if answers else f"{settings.server} does not answer"


def _alerts(here: Session) -> Finding:
    """The channel as this environment sets it; a server elsewhere says what it knows."""
    from orchestrator.alerts.factory import check_channel

    settings = here.settings
    if settings.server is not None and settings.alerts == "log":
        try:
            said = here.api.get(path("info")).get("alerts", "")
        except CliError as error:
            return True, f"not known: {error}"
        return not said, said or "no trouble known to the server"
    try:
        return True, asyncio.run(check_channel(settings, here.clock))
    except BabysitError as error:
        return False, str(error)


def _agents(here: Session) -> Finding:
    """The endpoint that agents on other machines dial."""
    from orchestrator.server.process import agent_authorities

    url = here.settings.agent_url
    if not url:
        return False, "agents on other machines cannot reach this server: set BABYSIT_AGENT_URL"
    try:
        own = agent_authorities(here.settings) is not None
    except BabysitError as error:
        return False, str(error)
    return True, f"{url}, trusted by " + ("the given authorities" if own else "those of the nodes")


def _bundles(here: Session) -> Finding:
    """The store of the code of runs."""
    from orchestrator.server.bundles.in_database import MOST_BYTES
    from orchestrator.server.bundles.store import BundleStore

    settings = here.settings
    try:
        stored = asyncio.run(BundleStore(settings, here.clock).all())
    except BabysitError as error:
        return False, str(error)
    told = f"{len(stored)}, {human_bytes(sum(each.size for each in stored))}"
    if settings.bundles:
        return True, f"{told}, at {settings.bundles}"
    if settings.database_url:
        if large := sum(each.size > MOST_BYTES for each in stored):
            return False, (
                f"{told}; {large} above {MOST_BYTES // 2**20} MiB in this home alone: their runs"
                " could not restart without it. Set BABYSIT_BUNDLES"
            )
        return True, f"{told}, in the run database and in {settings.home}"
    return True, f"{told}, in {settings.home}"


def _single_sign_on(here: Session) -> Finding:
    """The identity provider, as this environment sets it."""
    try:
        from orchestrator.server.oidc.doctor import check

        return True, asyncio.run(check(here.settings, here.clock))
    except ImportError:
        return False, "a package is missing: pip install 'babysit[oidc]'"
    except BabysitError as error:
        return False, str(error)


def _shared_memory() -> Finding:
    directory = Path("/dev/shm")  # noqa: S108 (the tmpfs itself, not a file in it)
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        return False, f"{directory} cannot be written: memory checkpoints need it"
    usage = shutil.disk_usage(directory)
    told = f"{directory}, {human_bytes(usage.free)} of {human_bytes(usage.total)} free"
    return usage.free > _LOW_BYTES // 16, f"{told}: rings, and three checkpoints per rank in memory"


def _py_spy() -> Finding:
    found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    return found is not None, found or "no py-spy: hangs are detected, but not located"


def _torch() -> Finding:
    found = importlib.util.find_spec("torch") is not None
    return found, "installed" if found else "not installed here; training scripts bring their own"


def _gpus() -> Finding:
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return count > 0, f"{count} NVIDIA" if count else "none on this machine"
