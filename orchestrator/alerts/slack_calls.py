"""Calls of Slack about one conversation: in turn, with what is wrong with it, and what was sent.

The problem: a call whose answer was lost may have sent a message, and a channel that refuses must
be named to people by the name that they use.

The design: one call at a time for each conversation, as a limit that one meets holds for all. A
refusal is explained and kept as trouble until a call succeeds. A message is looked for by the id
that travels as its metadata.

Limits: without the scope to read the history, no message is found.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import structlog

from orchestrator.alerts import slack_check, slack_errors
from orchestrator.alerts.port import AlertMemory, NotDeliveredError
from orchestrator.alerts.threads import Thread

_log = structlog.get_logger(__name__)
_SKEW_SECONDS = 600.0
"""Slack's clock and ours may differ by this much when a message is looked for."""
_PAGE = 200
GONE = frozenset({"message_not_found", "thread_not_found"})
FINAL = frozenset({"edit_window_closed", "cant_update_message"})
"""Refusals of an edit: the message stays as it is, and changes are said below it."""
TOKEN = "token"  # noqa: S105 (a word in a table of troubles)


class SlackCalls:
    """Slack, as the channel calls it.

    Args:
        web: Slack, with a token.
        memory: Where the ids of conversations are kept.
        trouble: Filled and emptied: by conversation, or `token`, why nothing arrives.
    """

    def __init__(self, web: slack_check.Web, memory: AlertMemory, trouble: dict[str, str]) -> None:
        self.web, self._memory, self.trouble = web, memory, trouble
        self.names: dict[str, str] = {}
        """Ids of conversations, with the names by which people know them."""
        self._ids: dict[str, str] = {}
        """Ids by name that are known to be stored: each message would read them again."""
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def call(self, method: str, conversation: str, **arguments: Any) -> Mapping[str, Any]:
        """Call a method about a conversation, and note whether it is in trouble."""
        name = self.names.get(conversation, conversation)
        async with self._turns[conversation]:
            try:
                answer = await self.web.call(method, channel=conversation, **arguments)
            except NotDeliveredError as error:
                code = getattr(error, "code", "")
                if not code or code in GONE | FINAL:
                    raise
                self._explain(error, code, name)
                raise
        if method.startswith("chat."):
            self.trouble.pop(name, None)
            self.trouble.pop(TOKEN, None)
        return answer

    def _explain(self, error: NotDeliveredError, code: str, conversation: str) -> None:
        needed = getattr(error, "needed", "")
        text = slack_errors.explain(code, channel=conversation, needed=needed)
        error.args = (text,)
        error.result = code if code in slack_errors.WORDS else "failed"
        self.trouble[TOKEN if slack_errors.concerns_token(code) else conversation] = text

    async def find(self, thread: Thread, id_: str) -> Mapping[str, Any] | None:
        """The message with an id, if it arrived; None also where Slack does not let us look."""
        conversation = await self._id_of(thread.conversation)
        if conversation is None:
            return None
        method = "conversations.replies" if thread.ts else "conversations.history"
        below = {"ts": thread.ts} if thread.ts else {}
        cursor = ""
        while True:
            try:
                page = await self.call(
                    method,
                    conversation,
                    oldest=f"{thread.sending_since - _SKEW_SECONDS:.6f}",
                    include_all_metadata=True,
                    limit=_PAGE,
                    **below,
                    **({"cursor": cursor} if cursor else {}),
                )
            except NotDeliveredError as error:
                if not getattr(error, "code", ""):
                    raise
                _log.warning("cannot look for a message that may have arrived", error=str(error))
                return None
            for message in page.get("messages", ()):
                metadata = message.get("metadata") or {}
                if (metadata.get("event_payload") or {}).get("id") == id_:
                    return {"ts": message["ts"], "channel": conversation}
            cursor = (page.get("response_metadata") or {}).get("next_cursor", "")
            if not cursor:
                return None

    async def _id_of(self, conversation: str) -> str | None:
        """The id of a conversation, by its name; None: it is not known."""
        if not conversation.startswith("#"):
            return conversation
        known = await self._memory.read(f"slack/conversation/{conversation}")
        if known is not None:
            return str(known["id"])
        try:
            found = await slack_check.find_channel(self.web, conversation.removeprefix("#"))
        except NotDeliveredError as error:
            if not getattr(error, "code", ""):
                raise
            _log.warning("cannot look for a channel by its name", error=str(error))
            return None
        return None if found is None else str(found["id"])

    async def remember_id(self, conversation: str, id_: str) -> None:
        """Keep the id of a conversation that Slack's answer has told."""
        if conversation == id_ or self._ids.get(conversation) == id_:
            return
        key = f"slack/conversation/{conversation}"
        if await self._memory.read(key) != {"id": id_}:
            await self._memory.write(key, {"id": id_})
        self._ids[conversation] = id_
