"""Silence raises suspicion; evidence convicts: what two looks at every rank of a silent run say.

A run is restarted at once only where a rank cannot go on: it is stopped, dead or stuck in its
device's driver, or it waits for a lock or a pipe that nobody will serve while its peers wait for it
in a collective. Whatever moves, or waits for data, storage or the network, is *slow*: it may be a
long validation, an upload, a compilation. It is left alone until a generous limit. CPU time of a
main thread that stays in one collective proves nothing, as collectives spin.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from babysit.wire import Phase
from monitors.stacks import (
    Cluster,
    Look,
    cluster,
    collective_of,
    is_library,
    parts_of,
    place_of,
    short_name,
)


class Doing(StrEnum):
    """The activity of one rank, as its stack and process state show it."""

    GONE = "is dead"
    STOPPED = "is stopped"
    DRIVER = "is stuck in the driver of its device"
    STUCK = "waits for an event that cannot come"
    WAITING = "waits in a collective"
    DEBUGGED = "is held by a debugger"
    STORAGE = "waits for storage"
    LOADING = "waits for data"
    MOVING = "moves"
    PAUSED = "waits"
    UNREADABLE = "could not be read"
    SILENT = "is on a node whose agent does not answer"
    RAISED = "has died of an exception, but other threads keep its process"
    ENDED = "has ended with exit code 0"


CANNOT_GO_ON = frozenset({Doing.GONE, Doing.STOPPED, Doing.DRIVER})
"""By themselves, whatever the others do."""

_DRIVER_CHANNEL = re.compile(r"^_?(?:nv|uvm|os_acquire|rm_|amdgpu|kfd|drm_|dma_fence|hl_|neuron)")
"""Wait channels of drivers: NVIDIA, AMD, DRM, Habana, AWS Neuron. Others in state D are storage."""
_LOCK_OR_PIPE = ("futex", "pipe_read", "anon_pipe_read", "wait_for_partner")
_DEVICE_WAIT = re.compile(
    r"_engine_run_backward|\bsynchronize\b|clip_grad_norm_|recv_forward|recv_backward|send_forward"
    r"|send_backward|wait_stream|_cuda_synchronize|cudaDeviceSynchronize",
)
"""Functions in which ranks of a GPU job wait for collectives that were launched before."""
_DEVICE_LINE = re.compile(
    r"\.(?:item|tolist|cpu|numpy|synchronize|wait|to|any|all|nonzero)\(|\b(?:float|int|bool|print)\("
    r"|\bis(?:nan|finite|inf)\("
)
"""Lines that wait for what the device computes before, in a library that has no Python frame."""
_HANDLE_LINE = re.compile(r"\.wait\(")
"""A wait for the handle of a collective. Those of Python's own locks have frames of their own."""
_FILE_AND_LINE = re.compile(r"^.*[(/]|\)$")
_BACKWARD = "_engine_run_backward"
"""DistributedDataParallel waits in the backward pass for its reductions, without a Python frame."""
_DATA = re.compile(r"_try_get_data|_next_data|_get_data|\bfetch \(|dataloader\.py|data_loader\.py")


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Facts about the ranks besides the looks at them.

    Attributes:
        nodes: Rank → its node.
        phases: Rank → a :class:`babysit.wire.Phase` value, as it last said.
        steps: Rank → the last step it ended.
        ended: Ranks that have ended with exit code 0.
        absent: Ranks whose agent did not answer.
    """

    nodes: Mapping[int, str] = dataclasses.field(default_factory=dict)
    phases: Mapping[int, str] = dataclasses.field(default_factory=dict)
    steps: Mapping[int, int] = dataclasses.field(default_factory=dict)
    ended: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a suspicion: is the run hung, and which ranks are to blame."""

    convicted: bool
    """The run cannot go on by itself. Otherwise it is slow."""
    ranks: tuple[int, ...]
    """The culprits; empty: nobody is blamed (a network, or nothing that can be told)."""
    node: str | None
    """Where all culprits are on one node: that."""
    users: bool
    """The script did it: a rank ended early, or the ranks wait in different places."""
    signature: str
    """Equal for the same pause: the activity of the culprits, and its place."""
    sentence: str
    """The verdict in a sentence, for people."""
    raised: str = ""
    """Traceback of the exception of which a culprit has died; empty: of none."""
    all_wait: bool = False  # every rank waits in a collective

    @property
    def rank(self) -> int | None:
        """The culprit, where it is a single one."""
        return self.ranks[0] if len(self.ranks) == 1 else None


def judge(looks: Sequence[Look], scene: Scene | None = None) -> Verdict:
    """Say whether a silent run can go on by itself, and who keeps it.

    Args:
        looks: One for each rank that could be looked at.
        scene: What else is known.
    """
    scene = scene or Scene()
    # A rank that has ended with 0 has not died, whatever a look at its process says.
    seen = {look.rank: look for look in looks if look.rank not in scene.ended}
    doing = {rank: _doing(look, scene.phases.get(rank, "")) for rank, look in seen.items()}
    doing |= dict.fromkeys(scene.absent - seen.keys(), Doing.SILENT)
    ended = sorted(scene.ended - doing.keys())
    waiting = _ranks(doing, {Doing.WAITING})
    # A handler of its exit, or another thread, may write the last save: then it has its time.
    died = {r for r in _ranks(doing, {Doing.RAISED}) if _by_stack(seen[r], "") is Doing.STUCK}
    cannot = sorted(died.union(_ranks(doing, CANNOT_GO_ON)))
    if cannot:
        return _verdict(cannot, doing, seen, scene, convicted=True)
    outside = [rank for rank in sorted(doing) if rank not in waiting]
    if waiting and outside:
        proven = all(doing[rank] is Doing.STUCK for rank in outside)
        return _verdict(outside, doing, seen, scene, convicted=proven)
    if waiting and ended and not outside:
        return _verdict(
            ended, doing | dict.fromkeys(ended, Doing.ENDED), seen, scene, convicted=True
        )
    if waiting and len(waiting) == len(doing):
        return dataclasses.replace(_all_wait(doing, seen, scene), all_wait=True)
    return _verdict(outside or list(doing), doing, seen, scene, convicted=False)


def _doing(look: Look, phase: str) -> Doing:
    return _by_state(look) or _by_stack(look, phase)


def _by_state(look: Look) -> Doing | None:
    """The activity that the process state proves; None for an ordinary state."""
    if look.process_state in {"X", "Z"}:
        return Doing.GONE
    if look.raised:
        return Doing.RAISED
    if look.traced or look.process_state == "t":
        return Doing.DEBUGGED
    if look.process_state == "T":
        return Doing.STOPPED
    if look.process_state == "D":
        channel = look.wait_channel
        return Doing.DRIVER if _DRIVER_CHANNEL.match(channel) else Doing.STORAGE
    return None


def _by_stack(look: Look, phase: str) -> Doing:
    works = bool(look.helpers) or look.cpu_seconds >= _COMPUTES_SECONDS
    if not look.frames:
        return Doing.MOVING if works else Doing.UNREADABLE
    if _waits_in(look):
        return Doing.WAITING
    if look.frames_later:
        return Doing.MOVING
    if phase == Phase.LOADING or any(_DATA.search(frame) for frame in look.frames[:6]):
        return Doing.STUCK if look.dead_children and not look.helpers else Doing.LOADING
    if works:
        return Doing.MOVING
    if look.deadline and look.wait_channel.startswith("futex"):
        return Doing.PAUSED
    return Doing.STUCK if look.wait_channel.startswith(_LOCK_OR_PIPE) else Doing.PAUSED


_COMPUTES_SECONDS = 0.02
"""CPU time between the looks that is work, in a main thread outside a collective."""


def _waits_in(look: Look) -> str:
    """The collective in which the main thread is at both looks; empty: none."""
    later = look.frames_later or look.frames
    before, after = collective_of(look.frames), collective_of(later)
    if before and before == after:
        return before
    if look.on_gpu and not look.helpers:
        device = [_device_wait(frames) for frames in (look.frames, later)]
        if device[0] == device[1] and device[0]:
            return device[0]
    return "" if look.frames_later or look.helpers else _native_wait(look)


def _native_wait(look: Look) -> str:
    """The wait of a rank that stands at one line of its script, in a library; empty: none."""
    function, file = parts_of(look.frames[0])
    if look.on_gpu and (found := _DEVICE_LINE.search(look.line)):
        return f"{found.group().strip('.(')} ({short_name(file)})"
    is_still = look.cpu_seconds < _COMPUTES_SECONDS and look.wait_channel.startswith("futex")
    if is_still and function == _BACKWARD:
        return function
    if is_still and not is_library(file) and _HANDLE_LINE.search(look.line):
        return f"wait ({_FILE_AND_LINE.sub('', look.frames[0])})"
    return ""


def _device_wait(frames: Iterable[str]) -> str:
    found = map(_DEVICE_WAIT.search, list(frames)[:4])
    return next((match.group() for match in found if match), "")


def _ranks(doing: Mapping[int, Doing], kinds: Iterable[Doing]) -> list[int]:
    wanted = set(kinds)
    return sorted(rank for rank, what in doing.items() if what in wanted)


def _all_wait(doing: Mapping[int, Doing], seen: Mapping[int, Look], scene: Scene) -> Verdict:
    """Every rank waits in a collective: in the same one it is the network, else the script."""
    places: dict[str, list[int]] = {}
    for rank, look in sorted(seen.items()):
        places.setdefault(_waits_in(look), []).append(rank)
    if len(places) == 1:
        (place,) = places
        if (odd := _at_another_line(place, seen)) is not None:
            return _verdict([odd], doing, seen, scene, convicted=False)
        return Verdict(
            convicted=False,
            ranks=(),
            node=None,
            users=False,
            signature=f"all in {place}",
            sentence=f"all {len(seen)} ranks wait in the same collective, {place}: the network or"
            " storage under it, so no rank is blamed",
        )
    groups = sorted(places.values(), key=lambda ranks: (len(ranks), ranks))
    smallest = groups[0]
    if len(groups[1]) == len(smallest):  # halves: the ranks that are behind, if they can be told
        behind = sorted(groups, key=lambda ranks: min(scene.steps.get(r, 0) for r in ranks))
        steps = [min(scene.steps.get(r, 0) for r in ranks) for ranks in behind]
        smallest = behind[0] if steps[0] < steps[1] else []
    return dataclasses.replace(_verdict(smallest, doing, seen, scene, convicted=False), users=True)


_ROOTED = re.compile(r"broadcast|(?<!reduce_)scatter|(?<!all_)gather|\breduce\b|send|recv")
"""Collectives with a root: scripts call them on a line of its own for the root."""


def _at_another_line(place: str, seen: Mapping[int, Look]) -> int | None:
    """The one rank that is in the same collective as all others, called elsewhere in the script.

    It has left one out, or is a call ahead. With fewer than three ranks nobody is the odd one.
    """
    lines: dict[str, list[int]] = {}
    for rank, look in seen.items():
        lines.setdefault(place_of(look.frames), []).append(rank)
    if len(lines) != 2 or len(seen) < 3 or _ROOTED.search(place):
        return None
    few, _ = sorted(lines.values(), key=len)
    return few[0] if len(few) == 1 else None


def _verdict(
    ranks: Iterable[int],
    doing: Mapping[int, Doing],
    seen: Mapping[int, Look],
    scene: Scene,
    *,
    convicted: bool,
) -> Verdict:
    culprits = tuple(sorted(ranks))
    nodes = {scene.nodes.get(rank) for rank in culprits}
    node = nodes.pop() if len(nodes) == 1 else None
    kinds = {doing[rank] for rank in culprits}
    looked = [seen[rank] for rank in culprits if rank in seen]
    where = sorted({_last_line(look.raised) or place_of(look.frames) for look in looked})
    blamed = culprits if len(culprits) < len(doing) or len(doing) == 1 or convicted else ()
    return Verdict(
        convicted=convicted,
        ranks=blamed,
        node=node if blamed else None,
        users=Doing.ENDED in kinds,
        raised=next((look.raised for look in looked if look.raised), ""),
        signature="; ".join([*sorted(kinds), *where[:2]]),
        sentence=_sentence(culprits, node, doing, seen, scene),
    )


def _sentence(
    culprits: Sequence[int],
    node: str | None,
    doing: Mapping[int, Doing],
    seen: Mapping[int, Look],
    scene: Scene,
) -> str:
    parts = []
    for what in Doing:
        ranks = [rank for rank in culprits if doing[rank] is what]
        if ranks:
            parts.append(_part(ranks, what, seen, scene))
    if node and len(culprits) > 1:
        parts[0] += f" (all on {node})"
    rest = [look for rank, look in seen.items() if rank not in culprits]
    parts += [_crowd(group, seen[group.ranks[0]]) for group in cluster(rest)]
    return "; ".join(parts)


def _part(ranks: Sequence[int], what: Doing, seen: Mapping[int, Look], scene: Scene) -> str:
    several = len(ranks) > 1
    names = f"{'ranks' if several else 'rank'} {', '.join(map(str, ranks[:8]))}"
    names += f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    said = _plural(what) if several else what.value
    if what is Doing.ENDED:
        at = scene.steps.get(ranks[0])
        return f"{names} {said}{'' if at is None else f' after step {at}'}, while others go on"
    if (look := seen.get(ranks[0])) is None:
        return f"{names} {said}"
    where = place_of(look.frames) if look.frames else look.error
    if what is Doing.RAISED:
        return f"{names} {said}: {_last_line(look.raised)}"
    named = look.dead_children if what is Doing.STUCK else look.helpers
    detail = "" if what in CANNOT_GO_ON else look.waits_for or ", ".join(named[:2])
    tail = f" in {where}" if look.frames else (f" ({where})" if where else "")
    if what is Doing.WAITING:
        tail = f" {_waits_in(look)}" + tail
    return f"{names} {said}{tail}" + (f" [{detail}]" if detail else "")


def _last_line(text: str) -> str:
    return next(reversed(text.splitlines()), "")


_PLURALS = {"is": "are", "has": "have", "waits": "wait", "moves": "move", "could": "could"}


def _plural(what: Doing) -> str:
    first, _, rest = what.value.partition(" ")
    return f"{_PLURALS[first]} {rest}".rstrip()


def _crowd(group: Cluster, one: Look) -> str:
    count = len(group.ranks)
    who = f"{count} other {'rank' if count == 1 else 'ranks'}"
    if waiting := group.waiting or (_waits_in(one) if one.frames else ""):
        return f"{who} {'waits' if count == 1 else 'wait'} in {waiting}"
    return f"{who} {'is' if count == 1 else 'are'} in {group.where}"
