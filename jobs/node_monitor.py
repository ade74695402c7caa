"""The node monitor: reads the hardware of its node and reports it to the control plane.

`babysit-node-monitor`, or `python -P -m jobs.node_monitor`. It takes its settings from the
environment (`--help` names them), needs no other file of a run, and starts no work. Training never
depends on it: without it, babysit does not see hardware faults before they kill a rank.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs import log_output
from jobs.clock import Clock, SystemClock
from jobs.hardware.collector import Collector
from jobs.hardware.cursor_file import CursorFile
from jobs.hardware.report_sender import ReportSender, Server, base_url
from jobs.hardware.settings import SourceSettings
from jobs.hardware.sources import Place, live

_LOOK_SECONDS = 60.0
"""How long `--check` waits for slow sources."""
VARIABLES = {
    "node": "BABYSIT_NODE",
    "server_url": "BABYSIT_AGENT_URL",
    "secret": "BABYSIT_NODE_TOKEN",
    "ca": "BABYSIT_AGENT_CA",
    "directory": "BABYSIT_NODE_DIRECTORY",
    "root": "BABYSIT_NODE_ROOT",
    "sources": "BABYSIT_SOURCES",
}
"""Setting and environment variable."""


class MonitorConfig(BaseModel):
    """Settings of one node monitor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str = Field(
        default="",
        description="Name of the node, as in `babysit nodes ls`. Default the name of this host.",
    )
    server_url: str = Field(
        default="", description="Where agents reach the server: wss://babysit.example.org/agent."
    )
    secret: str = Field(
        default="",
        repr=False,
        description="The server's BABYSIT_NODE_TOKEN, or the "
        "token of this node (`babysit nodes token NODE`).",
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign the "
        "server's certificate. Default those of the system.",
    )
    directory: Path = Field(
        default=Path("/var/lib/babysit-node-monitor"),
        description="Keeps reports "
        "that no server has taken, and how far the kernel's log was read.",
    )
    root: Path = Field(default=Path("/"), description="Where /proc and /sys of the host are.")
    sources: SourceSettings = Field(
        default=SourceSettings(),
        description="JSON object of intervals: "
        '{"nvml_seconds": 30, "smart_seconds": 0}. 0 leaves a source out.',
    )


class ConfigError(Exception):
    """A setting is missing or invalid; the message shows no secret."""


def read_config(environment: Mapping[str, str]) -> MonitorConfig:
    """The settings in an environment.

    Raises:
        ConfigError: One is invalid.
    """
    given: dict[str, object] = {
        field: environment[name] for field, name in VARIABLES.items() if environment.get(name)
    }
    try:
        if "sources" in given:
            given["sources"] = SourceSettings.model_validate_json(environment["BABYSIT_SOURCES"])
        found = MonitorConfig.model_validate(given)
        if found.server_url:
            base_url(found.server_url)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        name = VARIABLES.get(place, f"BABYSIT_SOURCES: {place}")
        raise ConfigError(f"{name}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"BABYSIT_AGENT_URL: {error}") from None
    return found.model_copy(update={"node": found.node or platform.node()})


async def serve(config: MonitorConfig, clock: Clock) -> None:
    """Read and report until cancelled."""
    file = CursorFile(config.directory / "kernel-log.json")
    place = Place(root=config.root)
    machine = live(config.sources, clock.monotonic, cursor=file.read(), place=place)
    collector = Collector(machine, config.sources, clock)
    server = Server(config.server_url, config.node, config.secret, config.ca)
    sender = ReportSender(
        server, config.directory, config.sources.spool_bytes, clock, random.Random()
    )
    told: dict[str, str] = {}
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sender.run())
        while True:
            await collector.look()
            report = collector.report(config.node)
            if report is not None:
                sender.add(report)
                # Only now: what is in the spool survives this process.
                if machine.kernel_log is not None and not collector.waiting:
                    file.write(machine.kernel_log.cursor)
            if collector.blind != told:
                told = collector.blind
                structlog.get_logger().warning("blind sources", **told)
            await clock.sleep(collector.pause)


async def check(config: MonitorConfig, clock: Clock) -> list[tuple[str, str, str]]:
    """Look once with every source: name, `ok`, `blind` or `absent`, and why."""
    machine = live(config.sources, clock.monotonic, place=Place(root=config.root))
    collector = Collector(machine, config.sources, clock)
    until = clock.monotonic() + _LOOK_SECONDS
    await collector.look()
    while collector.looking and clock.monotonic() < until:
        await collector.look()
    counts = collector.counts
    rows = []
    for source in machine.sources:
        name = source.name
        if name in collector.blind:
            rows.append((name, "blind", collector.blind[name]))
        elif name in collector.absent:
            rows.append((name, "absent", collector.absent[name]))
        elif name in collector.looking:
            rows.append((name, "blind", f"has not answered for {_LOOK_SECONDS:g} s"))
        else:
            rows.append((name, "ok", f"{counts.get(name, 0)} readings"))
    return rows


async def _until_told(config: MonitorConfig, clock: Clock) -> None:
    """Serve until SIGTERM or SIGINT."""
    serving = asyncio.create_task(serve(config, clock))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        structlog.get_logger().info("leaving")


def _parser() -> argparse.ArgumentParser:
    fields = MonitorConfig.model_fields
    names = "\n".join(f"  {name}\n      {fields[f].description}" for f, name in VARIABLES.items())
    parser = argparse.ArgumentParser(
        prog="babysit-node-monitor",
        description="Read the hardware of this node and report it to babysit's server.",
        epilog=f"environment:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look once, print what each source sees or why it is blind; exit code 1 if any is",
    )
    return parser


def _refuse_incomplete(config: MonitorConfig) -> None:
    missing = [VARIABLES[f] for f in ("server_url", "secret") if not getattr(config, f)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be set; --help says to what")


def main(arguments: list[str]) -> int:
    """Run the node monitor. Exit code: 0, 1 for a blind source with --check, 2 for bad settings."""
    asked = _parser().parse_args(arguments)
    try:
        config = read_config(os.environ)
        if asked.check:
            rows = asyncio.run(check(config, SystemClock()))
            sys.stdout.writelines(f"{name:<12} {result:<7} {why}\n" for name, result, why in rows)
            return int(any(result == "blind" for _, result, _ in rows))
        _refuse_incomplete(config)
        config.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except ConfigError as error:
        sys.stderr.write(f"babysit-node-monitor: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"babysit-node-monitor: BABYSIT_NODE_DIRECTORY: {error}\n")
        return 2
    log_output.configure(sys.stderr, context=True)
    structlog.contextvars.bind_contextvars(node=config.node)
    asyncio.run(_until_told(config, SystemClock()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
