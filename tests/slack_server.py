"""A stand-in for Slack that follows its documented contract, as far as babysit uses it.

HTTP on a free port of this machine: `chat.postMessage`, `chat.update`, `conversations.history`,
`conversations.replies`, `conversations.list`, `auth.test`. Errors come as HTTP 200 with `ok: false`
and a code, rate limits as HTTP 429 with Retry-After, and an outage as a refused connection, an HTTP
500 or an answer that is lost after the call took effect.

Contract: https://docs.slack.dev/reference/methods and /apis/web-api/rate-limits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections import Counter
from typing import Any, Self

from aiohttp import web

TOKEN, APP_TOKEN = "xoxb-test", "xapp-test"
_MAX_SECTION, _MAX_FIELD, _MAX_BLOCKS = 3000, 2000, 50


@dataclasses.dataclass
class Conversation:
    id: str
    name: str
    archived: bool = False
    member: bool = True
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Messages with a `ts`; a reply has a `thread_ts` of another message."""

    def parents(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if m.get("thread_ts", m["ts"]) == m["ts"]]

    def replies(self, ts: str) -> list[dict[str, Any]]:
        return [m for m in self.messages if m.get("thread_ts") == ts and m["ts"] != ts]


class SlackServer:
    """Slack, with knobs for what may go wrong."""

    def __init__(self, *names: str, begins: int = 1_767_225_600) -> None:
        self.conversations = {
            f"C{number:08d}": Conversation(f"C{number:08d}", name)
            for number, name in enumerate(names or ("training",), 1)
        }
        self.calls: Counter[str] = Counter()
        self.scopes = {"chat:write", "channels:history", "groups:history", "channels:read"}
        self.revoked = False
        self.lose_answers = 0
        """Calls of chat.postMessage that take effect, and whose connection then breaks."""
        self.refuse_with_500 = 0
        self.limit: list[float] = []
        """Retry-After of the next calls of chat methods, in seconds; empty: no limit is met."""
        self.url = ""
        self.links: list[web.WebSocketResponse] = []
        """Open connections of Socket Mode, the newest last."""
        self.acknowledged: dict[str, asyncio.Event] = {}
        """By envelope."""
        self.ephemeral: list[dict[str, Any]] = []
        """Messages that one person alone sees."""
        self._ts = itertools.count(begins)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_route("*", "/api/{method}", self._handle)
        app.router.add_get("/link/{number}", self._link)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/api/"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def only(self) -> Conversation:
        (conversation,) = self.conversations.values()
        return conversation

    def named(self, name: str) -> Conversation:
        return next(c for c in self.conversations.values() if c.name == name)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        self.calls[method] += 1
        if request.content_type == "application/json":
            arguments = await request.json()
        else:
            arguments = {**request.query, **await request.post()}
        if self.refuse_with_500:
            self.refuse_with_500 -= 1
            return web.Response(status=500, text="upstream", content_type="text/html")
        if method.startswith("chat.") and self.limit:
            retry = {"Retry-After": f"{self.limit.pop(0):.0f}"}
            body = {"ok": False, "error": "ratelimited"}
            return web.json_response(body, status=429, headers=retry)
        answer = self._answer(method, request.headers.get("Authorization", ""), arguments)
        if method == "chat.postMessage" and answer["ok"] and self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response(answer, headers={"X-OAuth-Scopes": ",".join(sorted(self.scopes))})

    def _answer(self, method: str, auth: str, arguments: dict[str, Any]) -> dict[str, Any]:
        needed = {
            "chat.postMessage": "chat:write",
            "chat.update": "chat:write",
            "conversations.history": "channels:history",
            "conversations.replies": "channels:history",
            "conversations.list": "channels:read",
        }
        if self.revoked:
            return _error("token_revoked")
        wanted = APP_TOKEN if method == "apps.connections.open" else TOKEN
        if auth != f"Bearer {wanted}":
            return _error("invalid_auth" if auth else "not_authed")
        scope = needed.get(method)
        if scope is not None and scope not in self.scopes:
            provided = ",".join(sorted(self.scopes))
            return {**_error("missing_scope"), "needed": scope, "provided": provided}
        handler = getattr(self, "_" + method.replace(".", "_"), None)
        if handler is None:
            return _error("unknown_method")
        return handler(arguments)

    # Socket Mode: https://docs.slack.dev/apis/events-api/using-socket-mode

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        link = web.WebSocketResponse()
        await link.prepare(request)
        await link.send_json({"type": "hello", "num_connections": len(self.links) + 1})
        self.links.append(link)
        async for message in link:
            self.acknowledged.setdefault(message.json()["envelope_id"], asyncio.Event()).set()
        self.links.remove(link)
        return link

    async def click(self, button: dict[str, Any], user: str, *, envelope: str) -> None:
        """Send a click on a button of a message, and wait for its acknowledgement."""
        acknowledged = self.acknowledged.setdefault(envelope, asyncio.Event())
        payload = {
            "type": "block_actions",
            "user": {"id": user, "username": "whatever-they-like"},
            "channel": {"id": self.only.id},
            "actions": [{**button, "action_ts": envelope}],
        }
        await self.links[-1].send_json(
            {
                "type": "interactive",
                "envelope_id": envelope,
                "payload": payload,
                "accepts_response_payload": False,
            }
        )
        await acknowledged.wait()

    async def refresh(self) -> None:
        """Ask the client for a new connection, as Slack does every few hours."""
        await self.links[-1].send_json({"type": "disconnect", "reason": "refresh_requested"})

    def _apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        url = self.url.replace("http:", "ws:").replace("/api/", f"/link/{next(self._ts)}")
        return {"ok": True, "url": url}

    def _chat_postEphemeral(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.ephemeral.append(arguments)
        return {"ok": True, "message_ts": "1.2"}

    def _auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "user": "babysit", "team": "Test", "bot_id": "B1", "user_id": "U1"}

    def _conversations_list(self, arguments: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"id": c.id, "name": c.name, "is_archived": c.archived, "is_member": c.member}
            for c in self.conversations.values()
        ]
        return _page("channels", found, arguments)

    def _find(self, name: str, *, writing: bool) -> Conversation | str:
        known = self.conversations.get(name)
        if known is None and writing:  # names are for chat.postMessage alone
            wanted = name.removeprefix("#")
            known = next((c for c in self.conversations.values() if c.name == wanted), None)
        if known is None:
            return "channel_not_found"
        if not known.member:
            return "not_in_channel"
        return "is_archived" if writing and known.archived else known

    def _chat_postMessage(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        conversation = self._find(arguments.get("channel", ""), writing=True)
        if isinstance(conversation, str):
            return _error(conversation)
        if problem := _problem(arguments):
            return _error(problem)
        message = {
            "ts": f"{next(self._ts)}.000100",
            "text": arguments["text"],
            "blocks": _parsed(arguments.get("blocks")),
            "metadata": _parsed(arguments.get("metadata")),
        }
        if thread := arguments.get("thread_ts"):
            message["thread_ts"] = thread
        conversation.messages.append(message)
        return {"ok": True, "channel": conversation.id, "ts": message["ts"], "message": message}

    def _chat_update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        conversation = self.conversations.get(arguments.get("channel", ""))
        if conversation is None:
            return _error("channel_not_found")
        if problem := _problem(arguments):
            return _error(problem)
        for message in conversation.messages:
            if message["ts"] == arguments.get("ts"):
                message |= {"text": arguments["text"], "blocks": _parsed(arguments.get("blocks"))}
                message["edited"] = True
                return {"ok": True, "channel": conversation.id, "ts": message["ts"]}
        return _error("message_not_found")

    def _conversations_history(self, arguments: dict[str, Any]) -> dict[str, Any]:
        conversation = self._find(arguments.get("channel", ""), writing=False)
        if isinstance(conversation, str):
            return _error(conversation)
        return _page("messages", conversation.parents()[::-1], arguments)

    def _conversations_replies(self, arguments: dict[str, Any]) -> dict[str, Any]:
        conversation = self._find(arguments.get("channel", ""), writing=False)
        if isinstance(conversation, str):
            return _error(conversation)
        ts = arguments.get("ts", "")
        if all(message["ts"] != ts for message in conversation.messages):
            return _error("thread_not_found")
        parent = [m for m in conversation.messages if m["ts"] == ts]
        return _page("messages", parent + conversation.replies(ts), arguments)


def _error(code: str) -> dict[str, Any]:
    return {"ok": False, "error": code}


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _page(name: str, found: list[dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """One page of a list, as Slack's cursors have it; metadata only for who asks for it."""
    oldest = float(arguments.get("oldest") or 0)
    found = [each for each in found if float(each.get("ts", oldest + 1)) > oldest]
    begin, size = int(arguments.get("cursor") or 0), int(arguments.get("limit") or 100)
    page = [dict(each) for each in found[begin : begin + size]]
    if str(arguments.get("include_all_metadata", "")).lower() not in {"1", "true"}:
        for each in page:
            each.pop("metadata", None)
    more = str(begin + size) if begin + size < len(found) else ""
    return {"ok": True, name: page, "response_metadata": {"next_cursor": more}}


def _problem(arguments: dict[str, Any]) -> str:
    """What is wrong with a message; empty: nothing is."""
    if not arguments.get("text"):
        return "no_text"
    if len(arguments["text"]) > 40_000:
        return "msg_too_long"
    blocks = _parsed(arguments.get("blocks")) or []
    if len(blocks) > _MAX_BLOCKS:
        return "invalid_blocks"
    for block in blocks:
        text, fields = block.get("text"), block.get("fields", [])
        too_long = text is not None and not 0 < len(text["text"]) <= _MAX_SECTION
        bad_fields = len(fields) > 10 or any(not 0 < len(f["text"]) <= _MAX_FIELD for f in fields)
        bad_elements = block["type"] == "context" and not 0 < len(block["elements"]) <= 10
        if (
            too_long
            or bad_fields
            or bad_elements
            or (text is None and not fields and block["type"] == "section")
        ):
            return "invalid_blocks"
    return ""
