"""The Slack channel: one message for each problem, edited as it changes, with a thread below it.

The problem: notices and updates come from the outbox: at least once, many together, in any order,
while Slack may be away and this server may die between a call and its answer. People must see each
problem once, in its true state.

The design: everything about one problem goes through one lock and one :class:`Thread`, which is
stored. What came while a call was under way goes into the next one together, so that 200 nodes
behind one switch are one message and one edit. Before something new is sent, its id is stored as
being sent, and travels as metadata of the message. If a thread is found with an id that is still
being sent, the message is looked for in Slack before it is sent again.

Limits: a message that somebody deleted is sent again. Without the scope to read the channel's
history, what is unclear is sent again: a notice twice is better than none.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import structlog

from jobs.clock import Clock
from monitors.types import Severity
from orchestrator.alerts import slack_blocks, slack_buttons, slack_check, slack_errors
from orchestrator.alerts.countdowns import Countdowns
from orchestrator.alerts.keyed_locks import KeyedLocks
from orchestrator.alerts.port import AlertMemory, DictMemory, NotDeliveredError
from orchestrator.alerts.slack_calls import FINAL, GONE, SlackCalls
from orchestrator.alerts.threads import Item, Thread, at_least, severity_of
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.states import IncidentState

_log = structlog.get_logger(__name__)
_EVENT_TYPE = "babysit_notice"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlackSettings:
    """How the channel sends."""

    conversation: str
    """Channel by name or id, where a run names none."""
    severity: Severity = Severity.WARNING
    """The least severe that is sent."""
    link: str = ""
    mention: str = ""
    buttons: bool = False
    """Messages about incidents have buttons, which somebody listens to."""


class SlackChannel:
    """Shows incidents and notices in Slack.

    Attributes:
        trouble: By channel, or `token` for all of them: why nothing arrives, and what to do.
    """

    channel = "slack"
    ignored_fields: Mapping[str, str] = {}

    def __init__(self, web: Callable[[Clock], slack_check.Web], settings: SlackSettings) -> None:
        self._make_web, self._settings = web, settings
        self.trouble: dict[str, str] = {}
        self._memory: AlertMemory = DictMemory()
        self._countdowns = Countdowns(self._memory)
        self._calls: SlackCalls | None = None
        self._clock: Clock | None = None
        self._locks = KeyedLocks()
        self._arrived: defaultdict[str, dict[str, Item]] = defaultdict(dict)
        """Items that are not shown yet, by problem and id."""

    async def start(self, memory: AlertMemory, clock: Clock) -> None:
        """Begin with a memory; nothing is sent yet."""
        self._memory, self._clock = memory, clock
        self._calls = SlackCalls(self._make_web(clock), memory, self.trouble)
        self._countdowns = Countdowns(memory)

    async def close(self) -> None:
        """Close the connections."""
        if self._calls is not None:
            await self._calls.web.close()

    async def notify(self, notice: Notify) -> None:
        """Send a notice: a message of its own, or below the message of its problem.

        Raises:
            NotDeliveredError: It may not have arrived. A second call looks before it sends.
        """
        await self._deliver(notice)

    async def update(self, update: IncidentUpdate) -> None:
        """Show an incident as it is now; raises as `notify` does."""
        await self._deliver(update)

    async def check(self) -> str:
        """Look whether the token, its scopes and the default channel are in order.

        Raises:
            NotDeliveredError: They are not; the message has the fix.
        """
        return await slack_check.check(self._slack.web, self._settings.conversation)

    async def tend(self, leads: Callable[[], bool]) -> None:
        """Count the minutes down in messages that ask, while this server leads, until cancelled."""
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        await self._countdowns.run(self._clock, leads, self._show_time_left)

    async def _show_time_left(self, key: str) -> None:
        """Edit the message of a thread, if a remedy still waits for an answer in it."""
        async with self._locks.of(key):
            thread = await self._thread(key)
            await self._countdowns.note(thread)
            if thread.ts and thread.starts_at is not None:
                await self._edit(thread)
                await self._store(thread)

    async def _deliver(self, item: Item) -> None:
        report = isinstance(item, Notify) and item.report
        if not (report or at_least(severity_of(item), self._settings.severity)):
            return
        key = await self._key(item)
        arrived = self._arrived[key]
        arrived[item.id] = item
        async with self._locks.of(key):
            if item.id not in arrived:
                return  # another call has taken it along
            thread = await self._thread(key)
            batch = [each for each in arrived.values() if each.id not in thread.seen]
            if batch:
                thread.take(batch)
                if thread.counts_down or thread.starts_at is not None:
                    await self._countdowns.note(thread)
                thread.counts_down = thread.starts_at is not None
                await self._send_all(thread, batch)
            for id_ in [each.id for each in batch] + [item.id]:
                arrived.pop(id_, None)
            if not arrived and self._arrived.get(key) is arrived:
                del self._arrived[key]

    async def _key(self, item: Item) -> str:
        """The key of the thread of an item: runs with other channels have other threads."""
        if item.problem == item.dedup_key:
            return item.dedup_key
        first = await self._thread(item.problem)
        place = item.channel or self._settings.conversation
        return item.problem if first.wanted in {"", place} else item.dedup_key

    async def _thread(self, key: str) -> Thread:
        body = await self._memory.read(f"slack/{key}")
        thread = Thread(key=key) if body is None else Thread.model_validate(body)
        if thread.place:
            self._slack.names[thread.conversation] = thread.place
        return thread

    async def _store(self, thread: Thread) -> None:
        items = [*thread.updates.values(), *([thread.notice] if thread.notice else [])]
        run = next((item.run for item in items), None)
        body = thread.model_dump(mode="json")
        await self._memory.write(f"slack/{thread.key}", body, run=run)

    async def _send_all(self, thread: Thread, batch: Sequence[Item]) -> None:
        """Bring the message of a thread up to date, and say below it what is new."""
        if not thread.conversation:
            wanted = next((each.channel for each in batch if each.channel), None)
            thread.wanted = wanted or self._settings.conversation
            thread.conversation = thread.place = thread.wanted
        if thread.ts:
            await self._edit(thread)
        if not thread.ts:
            await self._begin(thread, batch)
            await self._edit(thread)  # no effect, unless an earlier try had sent less
        for notice in batch:
            if isinstance(notice, Notify) and notice.id not in thread.seen:
                mention = self._mention(thread, notice.severity, notice)
                message = slack_blocks.reply(notice.text, mention=mention)
                await self._post(thread, message, notice.id)
        await self._name_runs(thread)
        if thread.said and thread.standing != thread.said:
            newest = next(e.id for e in reversed(batch) if isinstance(e, IncidentUpdate))
            text = slack_blocks.standing(thread)
            await self._post(thread, slack_blocks.reply(text), f"{newest}/standing")
        thread.said = thread.standing
        thread.dealt_with(*(each.id for each in batch))
        await self._store(thread)

    async def _name_runs(self, thread: Thread) -> None:
        """Say below the message of several runs which ones they are, and which of them are over."""
        runs = thread.runs
        if len(runs) == 1:
            return
        if new := [run for run in runs if run not in thread.named]:
            text = slack_blocks.joined(thread, new)
            number = len(thread.named)
            await self._post(thread, slack_blocks.reply(text), f"{thread.key}/runs/{number}")
            thread.named = [*thread.named, *new]
        for run, name in runs.items():
            own = thread.of_run(run)
            head = own.head
            over = head is not None and head.incident.state is IncidentState.RESOLVED
            if over and run not in thread.ended:
                text = f"{name}: {slack_blocks.standing(own)}"
                await self._post(thread, slack_blocks.reply(text), f"{thread.key}/ended/{run}")
                thread.ended = [*thread.ended, run]

    async def _begin(self, thread: Thread, batch: Sequence[Item]) -> None:
        """Send the message of a thread; if its own channel cannot be reached, to the default one.

        The message has the first notice in it, which is then dealt with.
        """
        first = batch[0]
        notice = next((each for each in batch if isinstance(each, Notify)), None)
        thread.notice = thread.notice or notice
        message_id = thread.sending.removesuffix("/parent") or first.id
        try:
            await self._post(thread, self._parent(thread), f"{message_id}/parent")
        except NotDeliveredError as error:
            code, default = getattr(error, "code", ""), self._settings.conversation
            elsewhere = thread.conversation != default
            if not (elsewhere and slack_errors.concerns_conversation(code)):
                raise
            thread.note = f"This was for {thread.conversation}. {error}"
            thread.conversation = thread.place = default
            await self._post(thread, self._parent(thread), f"{message_id}/parent")

    def _parent(self, thread: Thread) -> slack_blocks.Message:
        head = thread.head
        ended = head is not None and head.incident.state is IncidentState.RESOLVED
        notice = thread.notice
        mention = "" if ended else self._mention(thread, thread.severity, notice)
        now = self._clock.now() if self._clock is not None else None
        message = slack_blocks.parent(thread, link=self._settings.link, mention=mention, now=now)
        if self._settings.buttons and head is not None:
            message.blocks.extend(slack_buttons.actions(list(thread.updates.values())))
        return message

    def _mention(self, thread: Thread, severity: Severity, notice: Notify | None) -> str:
        """The mention for a message; nobody is pinged about an act of a person.

        A silence is about the runs that had the problem when somebody asked for it: a run that has
        it later pings. An escalation names whom it pings instead of those of the settings.
        """
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        by_hand = notice is not None and notice.actor.startswith("operator:")
        if severity is not Severity.CRITICAL or by_hand:
            return ""
        about = thread if notice is None or notice.run is None else thread.of_run(notice.run)
        if about.silenced(self._clock.now()):
            return ""
        return (notice.mention if notice else "") or self._settings.mention

    async def _edit(self, thread: Thread) -> None:
        """Edit the message; forget it if it is gone, so that it is sent again."""
        message = self._parent(thread)
        if message.text == thread.shown:
            return
        try:
            await self._slack.call(
                "chat.update",
                thread.conversation,
                ts=thread.ts,
                text=message.text,
                blocks=message.blocks,
            )
        except NotDeliveredError as error:
            code = getattr(error, "code", "")
            if code in GONE:
                thread.ts = thread.sending = ""
            elif code not in FINAL:
                raise
        thread.shown = message.text

    async def _post(self, thread: Thread, message: slack_blocks.Message, id_: str) -> None:
        """Send a message of a thread, once: the first one, or one below it."""
        if id_ in thread.seen:
            return
        found = await self._slack.find(thread, id_) if thread.sending == id_ else None
        looked_up = found is not None
        if found is None:
            thread.sending, thread.sending_since = id_, self._now()
            await self._store(thread)
            below = {"thread_ts": thread.ts} if thread.ts else {}
            try:
                found = await self._slack.call(
                    "chat.postMessage",
                    thread.conversation,
                    text=message.text,
                    blocks=message.blocks,
                    metadata={"event_type": _EVENT_TYPE, "event_payload": {"id": id_}},
                    unfurl_links=False,
                    **below,
                )
            except NotDeliveredError as error:
                if getattr(error, "code", ""):  # it was refused: it was not sent
                    thread.sending = ""
                    await self._store(thread)
                raise
            await self._slack.remember_id(thread.conversation, str(found["channel"]))
        if not thread.ts:
            thread.ts = str(found["ts"])
            thread.shown = "" if looked_up else message.text
            thread.conversation = str(found["channel"])
            self._slack.names[thread.conversation] = thread.place
            if thread.notice is not None:  # it is in the message: stored with it, or told twice
                thread.dealt_with(thread.notice.id)
        thread.dealt_with(id_)
        await self._store(thread)

    def _now(self) -> float:
        assert self._clock is not None  # noqa: S101 (`start` comes first)
        return self._clock.now().timestamp()

    @property
    def _slack(self) -> SlackCalls:
        assert self._calls is not None  # noqa: S101 (`start` comes first)
        return self._calls
