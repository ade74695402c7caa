"""Reads lines of the kernel's log: which device and which process they are about.

Formats: the NVIDIA driver's `NVRM: Xid (PCI:0000:1b:00): 79, pid=…, …` (older ones without `PCI:`,
newer ones with a function after the slot), NVSwitch's `SXid (PCI:…): 20034, Fatal, …`, and the
prefixes of PCI drivers such as `mlx5_core 0000:1a:00.0` and `amdgpu 0000:83:00.0`.

The kernel repeats names that programs give themselves (15 characters, `PR_SET_NAME`) or that their
files have. A program called `kernel BUG at x` that crashes must not take its node away, so such
names are taken out before a line is judged. Limits: only lines that are known to hold names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = re.compile(
    r"""
    ^(?:traps:\ )?.{1,15}?\[\d+\](?=:?\ )            # NAME[812]: segfault at 0 ip …
    | ^(?:mmap:\ )?.{1,15}?\ \(\d+\)(?=:?\ )         # NAME (812): drop_caches: 3
    | ^.{1,15}?(?=\ invoked\ oom-killer|:\ page\ allocation\ failure|/\d+:\ potentially\ unexp)
    | ^(?:audit:|oom-kill:|Memory\ cgroup\ stats\ for\ |Tasks\ in\ |\[\s*\d+\]\s).*
    | (?<=^process\ )'.*'(?=\ (?:started|launched))  # process 'DIRECTORY/FILE' started with …
    | (?<=INFO:\ task\ ).{1,15}?:\d+(?=\ blocked)
    | (?<=\d\ )\(.{0,15}?\)(?=,?\ (?:total-vm|score|UID))  # Killed process 812 (NAME) total-vm: …
    | (?<=\#(?:AC|DB):\ ).{1,15}?/\d+(?=\ took)      # x86/split lock detection
    | \[.{1,15}?:\d+\]$                              # soft lockup - CPU#3 stuck for 22s! [NAME:812]
    | (?<=\bcomm\ ).{1,15} | (?<=\bComm:\ ).{1,15} | `.{1,15}?'
    """,
    re.VERBOSE,
)


class Xid(NamedTuple):
    """One Xid of the NVIDIA driver."""

    code: int
    device: str
    """PCI address, such as `0000:1b:00`."""
    pid: int | None
    detail: str
    """The rest of the line, after the number."""


_ADDRESS = r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}"
_XID = re.compile(
    rf"NVRM: Xid \((?:PCI:)?(?P<address>{_ADDRESS})(?:\.[0-7])?\): (?P<code>\d{{1,4}})\b[, ]*"
    r"(?P<detail>.*)",
    re.IGNORECASE,
)
_PID = re.compile(r"\bpid[= ]'?(?P<pid>\d+)\b|\b[Kk]illed process (?P<killed>\d+)\b")
_DEVICES = (
    re.compile(rf"\(PCI:(?P<device>{_ADDRESS})(?:\.[0-7])?\)", re.IGNORECASE),
    re.compile(rf"(?:GPU at |GPU )PCI:(?P<device>{_ADDRESS})", re.IGNORECASE),
    re.compile(
        rf"(?:\b[a-z][\w-]* |\bGPU )(?P<device>{_ADDRESS})\.[0-7]\b|\bGPU (?P<bare>{_ADDRESS})\b",
        re.IGNORECASE,
    ),
    re.compile(r"\bEDAC (?P<device>MC\d+)\b|\b(?P<cpu>CPU ?#?\d+)\b"),
    re.compile(
        r"\bdev(?:ice)? \(?(?P<device>[a-z][\w-]{2,20})\)?"
        r"|\((?P<mounted>(?:sd|nvme|dm-|md|vd|xvd|loop)[\w-]*)\)"
        r"|\bnvme (?P<nvme>nvme\d+)\b|\b(?P<nic>(?:eth|en|ib|bond|mlx5_)\w+): "
    ),
)


def without_names(text: str) -> str:
    """The line with `…` in place of the names of programs, of their files and cgroups."""
    return _NAMES.sub("…", text)


def xid(text: str) -> Xid | None:
    """The Xid that a line holds; None if it holds none."""
    found = _XID.search(text)
    if found is None:
        return None
    pid = _PID.search(found["detail"])
    return Xid(
        code=int(found["code"]),
        device=address(found["address"]),
        pid=int(pid["pid"]) if pid and pid["pid"] else None,
        detail=found["detail"],
    )


def address(text: str) -> str:
    """A PCI address as it is compared: in small letters, with a domain of four digits."""
    text = text.lower()
    if text.count(":") == 1:
        return f"0000:{text}"
    domain, rest = text.split(":", 1)
    return f"{domain[-4:]}:{rest}"


def device(text: str) -> str:
    """The device that a line is about, in its own words; empty: it names none."""
    for pattern in _DEVICES:
        found = pattern.search(text)
        if found is not None:
            word = next(group for group in found.groups() if group)
            return address(word) if ":" in word else word
    return ""


def pid(text: str) -> int | None:
    """The process that a line names; None: it names none."""
    found = _PID.search(text)
    return int(found["pid"] or found["killed"]) if found else None
