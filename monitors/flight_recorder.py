"""Dumps of torch's flight recorder, merged over ranks: which rank has not entered a collective.

The problem: a hang shows where ranks wait, and often not for whom: all stacks say `all_reduce`. The
flight recorder of a process group numbers its collectives, so the rank that is behind shows.

The design: a dump is a pickle of plain containers. Pickles may run code, so a dump is read only if
each of its opcodes builds plain data, and its size is limited. Of each process group the newest
collectives are kept. In a group, the first collective that some rank waits in is looked at: members
that have not reached its number did not enter it; members with another operation or size at that
number have taken another way through the script.

Limits: point-to-point operations are not numbered by group, and are left out. A group whose members
are not known (gloo's dumps leave them out) has those ranks that have shown it.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from babysit.flight_record import MOST_BYTES

KEPT = 3
"""Collectives of a group that are kept: the last that ended, the next one, and the newest."""
GROUPS = 16
"""Process groups of a rank that are kept, those with a collective under way before others."""
_NAMED = 8
_TEXT = 80
_PLAIN = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "MEMOIZE",
        "BINPUT",
        "BINGET",
        "LONG_BINPUT",
        "LONG_BINGET",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "LONG1",
        "BININT",
        "BININT1",
        "BININT2",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
    }
)
"""Opcodes that build containers, numbers and text, and call nothing: of protocols 2 to 5."""
_PUTS = frozenset({"BINPUT", "LONG_BINPUT"})


class FlightRecordError(ValueError):
    """A dump is more than plain data, too large, or not of a flight recorder."""


class Call(BaseModel):
    """One collective as one rank has recorded it."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(ge=0, lt=2**63)
    """Sequence number in its group, from 1 on."""
    operation: str
    """Such as `nccl:all_reduce`."""
    sizes: str = ""
    """Sizes of its inputs."""
    ended: bool = False


class GroupRecord(BaseModel):
    """The newest collectives of a process group on one rank."""

    model_config = ConfigDict(frozen=True)

    group: str
    """Name, and what it is for: `0 default_pg`."""
    members: tuple[int, int, int] | None = None
    """First rank of the group, last one, and the distance between two; None: not known.

    A list would be as long as the world, on each rank of it."""
    calls: tuple[Call, ...] = Field(default=(), max_length=KEPT)
    """Oldest first."""

    @property
    def newest(self) -> int:
        """Number of the newest collective; 0: none."""
        return self.calls[-1].number if self.calls else 0


class _Plain(pickle.Unpickler):
    """Refuses everything with a name of its own, whatever :func:`_check` may have missed."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse all classes and functions.

        Raises:
            FlightRecordError: Always.
        """
        raise FlightRecordError(
            f"a flight record is plain data, but this one names {module}.{name}"
        )


def read(data: bytes) -> tuple[GroupRecord, ...]:
    """The process groups of a dump.

    Raises:
        FlightRecordError: It cannot be read, or not without danger.
    """
    if len(data) > MOST_BYTES:
        raise FlightRecordError(f"a flight record of {len(data)} bytes; at most {MOST_BYTES}")
    try:
        _check(data)
        return _groups(_Plain(io.BytesIO(data)).load())
    except FlightRecordError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        # Its text may hold nested containers of the dump, written out without an end.
        raise FlightRecordError(f"no flight record: {type(error).__name__}") from error


def _check(data: bytes) -> None:
    """Refuse opcodes that call something, and places in the memo that only waste memory."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _PLAIN:
            raise FlightRecordError(
                f"a flight record is plain data, but this one has {opcode.name}"
            )
        if opcode.name in _PUTS and _number(argument) > len(data):
            raise FlightRecordError(f"the memo of a flight record ends at {argument}")


def _groups(dump: Mapping[str, Any]) -> tuple[GroupRecord, ...]:
    calls: dict[str, list[Call]] = {}
    for entry in dump["entries"]:
        if entry.get("is_p2p"):
            continue
        name, purpose = map(_text, entry["process_group"])
        known, call = calls.setdefault(f"{name} {purpose}", []), _call(entry)
        if call.number == 1 and known and known[-1].number > 1:
            known.clear()  # the group was destroyed, and made again under its name
        known.append(call)
    configs = dump.get("pg_config") or {}
    found = [
        GroupRecord(
            group=group,
            members=_members(configs.get(group.partition(" ")[0])),
            calls=_kept(each),
        )
        for group, each in calls.items()
    ]
    found.sort(key=lambda record: record.calls[-1].ended)
    return tuple(found[:GROUPS])


def _kept(calls: Sequence[Call]) -> tuple[Call, ...]:
    """The last call that ended, the next one and the newest; calls before it have ended, too.

    Collectives of a group run in order; one that has raised an error never counts as ended.
    """
    by_number = {call.number: call for call in sorted(calls, key=lambda call: call.number)}
    ended = max((number for number, call in by_number.items() if call.ended), default=0)
    waiting = [number for number in by_number if number > ended]
    return tuple(by_number[n] for n in sorted({ended, *waiting[:1], max(by_number)}) if n)


def _call(entry: Mapping[str, Any]) -> Call:
    return Call(
        number=_number(entry["collective_seq_id"]),
        operation=_text(entry["profiling_name"]),
        sizes=_sizes(entry.get("input_sizes")),
        ended=entry.get("retired") is True or entry.get("state") == "completed",
    )


def _number(value: object) -> int:
    """A number as it is: a nested list may be short in a dump, and endless in a message.

    Raises:
        TypeError: The value is of another type.
    """
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} in place of a number")
    return value


def _text(value: object) -> str:
    """The beginning of a text.

    Raises:
        TypeError: The value is of another type.
    """
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return value[:_TEXT]


def _sizes(value: object) -> str:
    """Sizes of tensors, as `4x8, 16`; of many tensors the first few."""
    tensors = itertools.islice(value, _NAMED) if isinstance(value, list | tuple) else ()
    return ", ".join(
        "x".join(str(size) for size in tensor[:_NAMED] if isinstance(size, int))
        for tensor in tensors
        if isinstance(tensor, list | tuple)
    )[:_TEXT]


def _members(config: object) -> tuple[int, int, int] | None:
    """Ranks of a group, `"[0, 8, 16]"` in the dump; None: not evenly spaced, or not there."""
    listed = config.get("ranks") if isinstance(config, dict) else None
    ranks = (
        [int(rank) for rank in re.findall(r"\d{1,9}", listed)] if isinstance(listed, str) else []
    )
    steps = {after - before for before, after in itertools.pairwise(ranks)}
    if not ranks or len(steps) > 1 or min(steps, default=1) < 1:
        return None
    return ranks[0], ranks[-1], steps.pop() if steps else 1


class Absence(NamedTuple):
    """The collective in which a run stands still, and the ranks that keep the others waiting."""

    group: str
    call: Call
    waiting: tuple[int, ...]
    absent: tuple[int, ...]
    """Ranks that did not enter it."""
    astray: tuple[int, ...]
    """Ranks that entered another one, or one of another size, under the same number."""
    last: str
    """The last collective of the first absent rank."""
    other: str
    """The one of the first rank that went astray."""

    @property
    def sentence(self) -> str:
        """For people."""
        what = _named(self.call)
        text = f"flight recorder: {_ranks(self.waiting)} in {what} of group {self.group}"
        if self.astray:
            return f"{text}; {_ranks(self.astray)} called {self.other} under the same number"
        if self.absent:
            verb = "has" if len(self.absent) == 1 else "have"
            after = f"; the last one there is {self.last}" if self.last else ""
            return f"{text}; {_ranks(self.absent)} {verb} not entered it{after}"
        return f"{text}; every rank has entered it"


def merge(by_rank: Mapping[int, Sequence[GroupRecord]]) -> Absence | None:
    """The first collective of any group that keeps ranks waiting; None: no rank waits in one.

    A collective with a culprit is preferred; else the one that most ranks wait in.

    Args:
        by_rank: The groups of each rank whose dump could be read.
    """
    groups: dict[str, dict[int, GroupRecord]] = {}
    for rank, records in by_rank.items():
        for record in records:
            groups.setdefault(record.group, {})[rank] = record
    whole = frozenset(rank for rank, records in by_rank.items() if len(records) < GROUPS)
    found = [_stands(name, groups[name], whole) for name in sorted(groups)]
    return max((each for each in found if each is not None), key=_weight, default=None)


def _weight(absence: Absence) -> tuple[bool, int]:
    return bool(absence.absent or absence.astray), len(absence.waiting)


def _stands(name: str, there: Mapping[int, GroupRecord], whole: frozenset[int]) -> Absence | None:
    """Where a group stands; `whole`: ranks whose dump has all groups that they have used."""
    pending = [call.number for each in there.values() for call in each.calls if not call.ended]
    if not pending:
        return None
    number = min(pending)
    waiting = {
        rank: call
        for rank, record in there.items()
        for call in record.calls
        if call.number == number and not call.ended
    }
    kinds = Counter(_kind(call) for call in waiting.values())
    common = max(kinds, key=lambda kind: (kinds[kind], kind))
    usual = [rank for rank, call in waiting.items() if _kind(call) == common]
    astray = sorted(waiting.keys() - set(usual)) if 2 * len(usual) > len(waiting) else []
    absent = sorted(
        {rank for rank, record in there.items() if record.newest < number}
        | (_listed(there) - there.keys()) & whole
    )
    behind = there.get(absent[0]) if absent else None
    return Absence(
        group=name,
        call=waiting[usual[0]],
        waiting=tuple(sorted(usual if astray else waiting)),
        absent=tuple(absent),
        astray=tuple(astray),
        last=_named(behind.calls[-1]) if behind is not None else "",
        other=_named(waiting[astray[0]]) if astray else "",
    )


def _listed(there: Mapping[int, GroupRecord]) -> set[int]:
    """Members of a group as its first rank that knows them lists them."""
    known = next((each.members for each in there.values() if each.members is not None), None)
    return set() if known is None else set(range(known[0], known[1] + 1, known[2]))


_UNEVEN = re.compile(r"scatter|gather|all_?to_?all|split", re.IGNORECASE)
"""Collectives whose inputs may differ by rank."""


def _kind(call: Call) -> tuple[str, str]:
    """Equal for calls that belong together."""
    return call.operation, "" if _UNEVEN.search(call.operation) else call.sizes


def _named(call: Call) -> str:
    return f"{call.operation} no. {call.number}"


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:_NAMED]))
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {named}{more}"
