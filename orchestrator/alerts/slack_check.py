"""Checks of the token, its scopes and the default channel, without sending a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.alerts.port import NotDeliveredError
from orchestrator.alerts.slack_errors import explain

SCOPES = ("chat:write", "channels:history", "channels:read")
"""Scopes that the app needs: to post and edit, to look for a message whose answer was lost, and to
find a channel by its name. For private channels also `groups:history` and `groups:read`."""
_PAGE = 200


class Web(Protocol):
    """Calls of Slack's Web API; :class:`orchestrator.alerts.slack.SlackWeb`."""

    async def call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
        """Call a method; raises SlackRefusedError, or NotDeliveredError where it is unclear."""

    async def close(self) -> None:
        """Close the connections."""


async def find_channel(web: Web, name: str) -> Mapping[str, Any] | None:
    """The channel of a name without `#`, as Slack describes it; None: the app sees none.

    Raises:
        NotDeliveredError: Slack does not say, for want of a scope perhaps.
    """
    cursor = ""
    while True:
        page = await web.call(
            "conversations.list",
            types="public_channel,private_channel",
            limit=_PAGE,
            **({"cursor": cursor} if cursor else {}),
        )
        for each in page.get("channels", ()):
            if each.get("name") == name:
                found: Mapping[str, Any] = each
                return found
        cursor = (page.get("response_metadata") or {}).get("next_cursor", "")
        if not cursor:
            return None


async def check(web: Web, conversation: str) -> str:
    """A word about a channel that takes notices.

    Args:
        web: Slack, with a token.
        conversation: The default channel, by name with `#`, or by id.

    Raises:
        NotDeliveredError: It would take none; the message says what to do.
    """
    try:
        who = await web.call("auth.test")
        code, needed = await _fault(web, conversation, str(who["scopes"]))
    except NotDeliveredError as error:
        code, needed = getattr(error, "code", ""), getattr(error, "needed", "")
        if not code:
            raise
    if code:
        raise NotDeliveredError(explain(code, channel=conversation, needed=needed))
    return f"slack: {who.get('user')} of {who.get('team')} posts in {conversation}"


async def _fault(web: Web, conversation: str, scopes: str) -> tuple[str, str]:
    """The code of what is wrong, empty if nothing is, and the scopes that are missing."""
    missing = sorted(set(SCOPES) - set(scopes.split(",")))
    if missing:
        return "missing_scope", ", ".join(missing)
    if not conversation.startswith("#"):
        return "", ""
    found = await find_channel(web, conversation.removeprefix("#"))
    if found is None:
        return "channel_not_found", ""
    if found.get("is_archived"):
        return "is_archived", ""
    return ("", "") if found.get("is_member", True) else ("not_in_channel", "")
