"""Settings of notices to people, a part of :class:`orchestrator.settings.Settings`."""

from __future__ import annotations

import zoneinfo
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from monitors.types import Severity


class AlertSettings(BaseSettings):
    """Where notices go, and the credentials of the channels."""

    @field_validator("alerts_summary")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        zone = value.partition(" ")[2]
        try:
            zoneinfo.ZoneInfo(zone or "UTC")
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{zone}: expected a time zone such as Europe/Berlin") from error
        return value

    alerts: str = Field(
        default="log",
        description="Where notices to people go: `log` (the server's log), `slack`, `webhook`, "
        "`pagerduty`, `email`, or several with commas between them, also with `grafana`, which "
        "makes annotations; see alerts.md.",
    )
    alerts_rules: Path | None = Field(
        default=None,
        description="YAML file with routes, quiet hours and escalations; see alerts.md. Read when "
        "the server starts.",
    )
    alerts_severity: Severity = Field(
        default=Severity.WARNING,
        description="Least severe notice or incident that Slack gets: `info`, `warning` or "
        "`critical`.",
    )
    alerts_link: str = Field(
        default="",
        description="URL that a message about a run leads to, in which `{run}` and `{incident}` "
        "stand for ids: https://babysit.example.org/runs/{run}#incident-{incident} of the web "
        "page, or a dashboard. Empty: no link.",
    )
    alerts_summary: str = Field(
        default="",
        pattern=r"^(([01]\d|2[0-3]):[0-5]\d( [A-Za-z_+\-/0-9]+)?)?$",
        description="Hour of a daily summary, with a time zone: `08:00 Europe/Berlin`; without one "
        "in UTC. Empty: none is sent.",
    )
    slack_token: SecretStr | None = Field(
        default=None, description="Bot token of the Slack app (xoxb-…); needed by `alerts=slack`."
    )
    slack_channel: str = Field(
        default="",
        description="Slack channel, by name (#training) or id, for runs without `notify.slack` and "
        "for notices that concern no run; needed by `alerts=slack`.",
    )
    slack_mention: str = Field(
        default="",
        description="Who is pinged about what is critical, in Slack's words: `<!here>`, "
        "`<!subteam^S012345>` or `<@U012345>`. Empty: nobody.",
    )
    slack_app_token: SecretStr | None = Field(
        default=None,
        description="App token of the Slack app (xapp-…, scope connections:write). With it, "
        "messages about incidents have buttons (Socket Mode); `people` in `alerts_rules` may click "
        "them.",
    )
    slack_url: str = Field(
        default="https://slack.com/api/",
        description="Where Slack's Web API is: https://slack-gov.com/api/ for GovSlack.",
    )
    webhook_url: str = Field(default="", description="URL that the channel `webhook` posts to.")
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Key of the signature of webhooks, in base64 (`openssl rand -base64 24`).",
    )
    pagerduty_key: SecretStr | None = Field(
        default=None, description="Integration key of a PagerDuty service (Events API v2)."
    )
    pagerduty_url: str = Field(
        default="https://events.pagerduty.com/v2/enqueue",
        description="Where PagerDuty takes events; its EU region has an address of its own.",
    )
    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server of the channel `email`: smtp://USER:PASSWORD@HOST:587 (STARTTLS) "
        "or smtps://USER:PASSWORD@HOST:465.",
    )
    email_from: str = Field(default="", description="Sender of mails.")
    email_to: str = Field(default="", description="Receivers of mails, with commas between them.")
    watcher_url: SecretStr | None = Field(
        default=None,
        description="URL that the leading server requests while it lives; a watcher there "
        "notifies people if no request comes.",
    )
    watcher_seconds: float = Field(
        default=60.0, gt=0, description="Seconds between two requests to `watcher_url`."
    )
