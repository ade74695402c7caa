"""The rules of who gets which notice: a YAML file, `BABYSIT_ALERTS_RULES`.

Each problem of a file is one line with its place: `alerts.yaml:3:5: routes[0].to: …`.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import zoneinfo
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jobs.schema_words import Words
from jobs.spec_types import Seconds
from jobs.yaml_file import FileKind, SpecError, read_text
from monitors.types import Severity
from orchestrator.alerts.threads import Item, at_least, severity_of
from orchestrator.errors import InvalidError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def _hours(text: str) -> str:
    if not _HOURS.fullmatch(text):
        raise ValueError("expected hours such as 22:00-07:00")
    return text


def _zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("expected a time zone such as Europe/Berlin") from error
    return name


Hours = Annotated[str, AfterValidator(_hours)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Route(_Rule):
    """Where some notices go. `*` and `?` stand for characters in names."""

    run: str = Field(default="*", description="Name of the run.")
    project: str = Field(default="*", description="Project of the run.")
    queue: str = Field(default="*", description="Queue of the run.")
    severity: Severity = Field(
        default=Severity.INFO, description="Least severe notice that the route is for."
    )
    to: list[str] = Field(description="Channels, of those that BABYSIT_ALERTS names; may be empty.")
    slack: str | None = Field(
        default=None, description="Slack channel for runs whose spec names none."
    )

    def takes(self, item: Item) -> bool:
        """True for a notice or an update that the route is for.

        What concerns no run goes by a route that names no run, project or queue.
        """
        covers = self.covers(item.run_name, item.project, item.queue)
        return covers and at_least(severity_of(item), self.severity)

    def covers(self, run: str, project: str, queue: str) -> bool:
        """True if the route is for a run of this name, project and queue."""
        names = ((run, self.run), (project, self.project), (queue, self.queue))
        return all(fnmatchcase(name, pattern) for name, pattern in names)


class Quiet(_Rule):
    """Hours in which notices wait, by severity; critical ones never do."""

    info: Hours | None = Field(default=None, description="Hours in which `info` waits.")
    warning: Hours | None = Field(default=None, description="Hours in which `warning` waits.")
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", description="Time zone of the hours."
    )

    def seconds(self, severity: Severity, now: dt.datetime) -> float:
        """Seconds that a notice of this severity waits; 0: it does not. Critical never waits."""
        hours = {Severity.INFO: self.info, Severity.WARNING: self.warning}.get(severity)
        found = _HOURS.fullmatch(hours or "")
        if found is None:
            return 0.0
        first, last = (dt.time(int(found[i]), int(found[i + 1])) for i in (1, 3))
        zone = zoneinfo.ZoneInfo(self.timezone)
        local = now.astimezone(zone)
        time = local.time()
        inside = first <= time < last if first <= last else time >= first or time < last
        if not inside:
            return 0.0
        day = local.date() + dt.timedelta(days=1 if time >= last else 0)
        # Both in UTC: on the day on which clocks change, a difference of local times is wrong.
        end = dt.datetime.combine(day, last, zone).astimezone(dt.UTC)
        return max(0.0, (end - now).total_seconds())


class Digest(_Rule):
    """The rule of which items are collected into one message."""

    severity: Literal[Severity.INFO, Severity.WARNING] = Field(
        default=Severity.INFO, description="Most severe that is collected: `info` or `warning`."
    )
    every: Seconds = Field(description="Time from the first that is collected to the message.")


class Escalation(_Rule):
    """The next on the list, for a page that nobody acknowledges."""

    after: Seconds = Field(description="Time from the page until it goes to the next.")
    to: list[str] = Field(min_length=1, description="Channels that get it then.")
    people: list[str] = Field(
        default=[],
        description="Persons, by their names in `people`, whom Slack pings and mails go to then; "
        "none: those of the settings.",
    )


class Person(_Rule):
    """A person in Slack: who clicks buttons, and is pinged or mailed by an escalation."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._@]{0,61}[A-Za-z0-9])?$",
        description="Name in the journal: letters, digits and -._@.",
    )
    role: Literal["viewer", "operator", "admin"] = Field(
        default="operator", description="Buttons act for operators and admins."
    )
    email: str = Field(default="", description="Address for mails of escalations.")


class AlertRules(_Rule):
    """Routes, quiet hours, escalations, and people in Slack."""

    routes: list[Route] = Field(
        default=[], description="The first that takes a notice decides; none: every channel."
    )
    quiet: Quiet = Quiet()
    escalation: list[Escalation] = Field(
        default=[], description="For critical notices about an incident, one after the other."
    )
    digest: Digest | None = Field(
        default=None, description="What is collected into one message; none: nothing is."
    )
    people: dict[str, Person] = Field(
        default={}, description="People by Slack's id of them, such as U012AB3CD."
    )


def routed_channel(path: Path, run: str, project: str, queue: str) -> str:
    """The Slack channel that the rules give to what is critical of a run; empty: the default.

    Raises:
        InvalidError: The file cannot be read. It is read once.
    """
    routes = (route for route in _parsed(path).routes if route.covers(run, project, queue))
    return next((route.slack or "" for route in routes), "")


@functools.lru_cache(maxsize=1)
def _parsed(path: Path) -> AlertRules:
    words = Words(AlertRules.model_json_schema(), "the alert rules")
    kind = FileKind(AlertRules, words, "file of alert rules", "set of alert rules")
    try:
        rules, _ = kind.parse(read_text(path), str(path))
    except SpecError as error:
        raise InvalidError(f"BABYSIT_ALERTS_RULES: {error}") from error
    return rules


def read(path: Path, channels: Collection[str]) -> AlertRules:
    """Read a file of rules.

    Raises:
        InvalidError: It cannot be read, a rule is wrong, or names a channel that is not among
            `channels`.
    """
    _parsed.cache_clear()
    rules = _parsed(path)
    lists = [each.to for each in rules.routes] + [each.to for each in rules.escalation]
    named = {name for names in lists for name in names}
    if unknown := sorted(named - set(channels)):
        raise InvalidError(
            f"BABYSIT_ALERTS_RULES: {path}: {', '.join(unknown)}: not among the channels of"
            f" BABYSIT_ALERTS ({', '.join(channels)})"
        )
    known = {person.name for person in rules.people.values()}
    wanted = {name for each in rules.escalation for name in each.people}
    if strangers := sorted(wanted - known):
        raise InvalidError(
            f"BABYSIT_ALERTS_RULES: {path}: {', '.join(strangers)}: an escalation names persons of"
            f" `people` ({', '.join(sorted(known)) or 'which has none'})"
        )
    return rules
