"""The link to another node: latency and throughput of TCP, both ways at once.

The problem: a slow cable, port or route slows down each collective, and no node can see it alone.
The design: an all-gather of two. One node of a pair listens, the other connects and measures; what
it measures belongs to both, and the control plane pairs each with others before it blames one.

Limits: a single TCP stream between two processes, over the network by which the agents reach each
other: no RDMA, and no card of 100 Gbit/s or more in full. A partner that does not come, is not
there or leaves says nothing about this node: then nothing was measured.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

from jobs.checks.measurement import LATENCY, RATE, Measurement, Stopwatch, Task

WAIT_SECONDS = 300.0
"""Time that the partner gets to come: its agent may have to pull an image first."""
CONNECT_SECONDS = 30.0
"""Time to reach a node whose agent says that it listens. An estimate of ours: TCP repeats a lost
SYN after 1, 3, 7 and 15 s."""
STALL_SECONDS = 10.0
"""Silence in the middle of a measurement, from which on the link has failed. An estimate of ours:
TCP repeats a lost segment within 0.2 to 3 s."""
LONGEST_SECONDS = 60.0
"""Time of an exchange of `seconds`, with what lies in buffers on the way when it ends."""
ROUND_TRIPS = 200
_HELLO = struct.Struct("!16sd")
_MAGIC = b"babysit link 1\n\0"
_RATE = struct.Struct("!d")
_PING = bytes(64)
_CHUNK = bytes(256 * 1024)
_GIGA, _MICRO = 1e9, 1e6
_SECONDS = {False: 0.5, True: 2.0}


class _GoneError(Exception):
    """The partner has closed the connection."""


def link(task: Task) -> list[Measurement]:
    """Measure the link to the peer, or be the peer of the node that measures."""
    return _connect(task) if task.peer else _listen(task)


# --- the node that measures ---------------------------------------------------------------------


def _connect(task: Task) -> list[Measurement]:
    seconds = _SECONDS[task.thorough]
    try:
        with _reached(task.peer, seconds) as control:
            latency = _round_trip(control)
            with _reached(task.peer, seconds) as data:
                mine = _exchanged(data, seconds)
            (theirs,) = _RATE.unpack(_received(control, _RATE.size))
    except _UnreachableError as error:
        return [error.found]
    except TimeoutError:
        why = f"nothing moved for {STALL_SECONDS:g} s, or there was no end in {LONGEST_SECONDS:g} s"
        return [Measurement(check=RATE, problem=f"the exchange with {task.peer} stalled: {why}")]
    except (_GoneError, ConnectionError):
        return [Measurement(check=RATE, skipped=f"{task.peer} closed the connection")]
    except OSError as error:
        why = f"the connection to {task.peer} broke: {error.strerror or error}"
        return [Measurement(check=RATE, problem=why)]
    rate = 8 * min(mine, theirs) / _GIGA
    return [
        Measurement(check=RATE, figure=rate, unit="Gbit/s", device="TCP"),
        Measurement(check=LATENCY, figure=latency * _MICRO, unit="us", device="TCP"),
    ]


class _UnreachableError(Exception):
    """No connection to the partner: a fault of the link, or a partner that is not there."""

    def __init__(self, found: Measurement) -> None:
        super().__init__(found.problem or found.skipped)
        self.found = found


@contextlib.contextmanager
def _reached(peer: str, seconds: float) -> Iterator[socket.socket]:
    """A connection to the peer, which may begin to listen a moment later than it said.

    Raises:
        _UnreachableError: There is none in time.
    """
    host, _, port = peer.rpartition(":")
    watch, error = Stopwatch(), OSError("no time")
    while (left := CONNECT_SECONDS - watch.seconds) > 0:
        try:
            found = socket.create_connection((host, int(port)), timeout=left)
        except OSError as failed:
            error = failed
            time.sleep(min(0.1, left))
            continue
        with found:
            found.settimeout(STALL_SECONDS)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.sendall(_HELLO.pack(_MAGIC, seconds))
            yield found
        return
    why = f"no connection to {peer} within {CONNECT_SECONDS:g} s: {error.strerror or error}"
    # A machine that refuses is there: its program has ended.
    harmless = isinstance(error, ConnectionRefusedError | socket.gaierror)
    problem, skipped = ("", why) if harmless else (why, "")
    raise _UnreachableError(Measurement(check=RATE, problem=problem, skipped=skipped)) from error


def _round_trip(control: socket.socket) -> float:
    """Seconds of the quickest round trip: what a busy processor adds is left out.

    Raises:
        TimeoutError: All together take too long.
    """
    best, whole = float("inf"), Stopwatch()
    for _ in range(ROUND_TRIPS):
        if whole.seconds > LONGEST_SECONDS:
            raise TimeoutError
        watch = Stopwatch()
        control.sendall(_PING)
        _received(control, len(_PING))
        best = min(best, watch.seconds)
    return best


# --- the node that listens ----------------------------------------------------------------------


def _listen(task: Task) -> list[Measurement]:
    """Serve one partner. The result says only whether it came."""
    try:
        server = _server(task)
    except OSError as error:
        why = f"port {task.port} cannot be listened on: {error.strerror or error}"
        return [Measurement(check="link", skipped=why)]
    with server:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            control, _ = _accepted(server, deadline)
        except TimeoutError:
            why = f"no partner came within {WAIT_SECONDS:g} s"
            return [Measurement(check="link", skipped=why)]
        # From here on the partner knows what went wrong, and says it.
        with control, contextlib.suppress(OSError, _GoneError):
            for _ in range(ROUND_TRIPS):
                control.sendall(_received(control, len(_PING)))
            data, seconds = _accepted(server, time.monotonic() + STALL_SECONDS)
            with data:
                control.sendall(_RATE.pack(_exchanged(data, seconds)))
    return [Measurement(check="link")]


def _server(task: Task) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        task.address, task.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=8)


def _accepted(server: socket.socket, deadline: float) -> tuple[socket.socket, float]:
    """A connection of the partner, and the seconds that it wants to measure; strangers are closed.

    Raises:
        TimeoutError: It did not come.
    """
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        found, _ = server.accept()
        found.settimeout(STALL_SECONDS)
        try:
            magic, seconds = _HELLO.unpack(_received(found, _HELLO.size))
        except (OSError, _GoneError):
            magic, seconds = b"", 0.0
        if magic == _MAGIC and 0 < seconds <= LONGEST_SECONDS:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found, seconds
        found.close()
    raise TimeoutError


# --- both ---------------------------------------------------------------------------------------


def _exchanged(data: socket.socket, seconds: float) -> float:
    """Send for this time while the partner does the same; bytes received in a second.

    Raises:
        TimeoutError: Nothing went either way for a while, or the end did not come.
        OSError: The partner has closed the connection.
    """
    failed: list[OSError] = []
    sender = threading.Thread(target=_send, args=(data, seconds, failed))
    watch = Stopwatch()
    sender.start()
    try:
        buffer, count = bytearray(len(_CHUNK)), 0
        while got := data.recv_into(buffer):
            count += got
            if watch.seconds > seconds + LONGEST_SECONDS:
                raise TimeoutError
        took = watch.seconds
    finally:
        sender.join()
    if failed:
        raise failed[0]
    return count / took


def _send(data: socket.socket, seconds: float, failed: list[OSError]) -> None:
    watch = Stopwatch()
    try:
        while watch.seconds < seconds:
            data.sendall(_CHUNK)
        data.shutdown(socket.SHUT_WR)
    except OSError as error:
        failed.append(error)
        with contextlib.suppress(OSError):
            data.shutdown(socket.SHUT_RDWR)  # so that the receiver ends, too


def _received(connection: socket.socket, count: int) -> bytes:
    """Exactly this many bytes.

    Raises:
        _GoneError: The partner has closed the connection before.
        TimeoutError: Nothing came for a while.
    """
    found = bytearray()
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise _GoneError
        found += part
    return bytes(found)
