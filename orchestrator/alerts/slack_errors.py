"""Errors of Slack in words: what is wrong, and what to do about it.

The codes are those of Slack's reference of `chat.postMessage`, `chat.update` and
`conversations.history`.
"""

from __future__ import annotations

from collections.abc import Mapping

_INSTALL = (
    "install the app again (api.slack.com/apps, *Install App*) and set BABYSIT_SLACK_TOKEN to its"
    " bot token (xoxb-…)"
)
_TOKEN: Mapping[str, str] = {
    "not_authed": "no token was sent: set BABYSIT_SLACK_TOKEN",
    "invalid_auth": f"Slack does not know the token: {_INSTALL}",
    "token_revoked": f"the token was revoked: {_INSTALL}",
    "token_expired": f"the token has expired: {_INSTALL}",
    "account_inactive": f"the app or its user was removed from the workspace: {_INSTALL}",
    "org_login_required": "the workspace is being moved to an organisation; wait until it is done",
    "ekm_access_denied": "an administrator of the workspace has suspended access to messages",
    "access_denied": "an administrator of the workspace has to permit the app",
    "missing_scope": "the app lacks the scope {needed}: add it (api.slack.com/apps, *OAuth &"
    " Permissions*), then install the app again",
}
_CONVERSATION: Mapping[str, str] = {
    "channel_not_found": "there is no channel {channel} that the app can see: correct the name, or"
    " invite the app there if it is private (`/invite @babysit`)",
    "not_in_channel": "the app is not in the channel {channel}: invite it there"
    " (`/invite @babysit`), or give it the scope chat:write.public",
    "is_archived": "the channel {channel} is archived: unarchive it, or name another one",
    "restricted_action": "only some people may post in {channel}: permit the app, or name another"
    " channel",
    "restricted_action_read_only_channel": "{channel} is read-only: permit the app, or name"
    " another channel",
    "restricted_action_thread_only_channel": "{channel} takes replies only: name another channel",
}
WORDS = frozenset({*_TOKEN, *_CONVERSATION})
"""Codes that people can do something about; each is a result in the metrics."""


def concerns_token(code: str) -> bool:
    """True if no channel can be reached until somebody acts."""
    return code in _TOKEN


def concerns_conversation(code: str) -> bool:
    """True if another channel may be reached."""
    return code in _CONVERSATION


def explain(code: str, *, channel: str, needed: str = "") -> str:
    """A sentence with what to do.

    Args:
        code: Slack's `error`.
        channel: The channel that was addressed.
        needed: Slack's `needed`, of a missing scope.
    """
    text = _TOKEN.get(code) or _CONVERSATION.get(code)
    if text is None:
        return f"Slack answered {code} for {channel}; see https://docs.slack.dev/reference/methods"
    filled = text.replace("{channel}", channel).replace("{needed}", needed or "that it names")
    return f"Slack answered {code}: {filled}"
