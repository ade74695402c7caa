"""A link that is slow, that stalls or that breaks: a relay of TCP between two real programs."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with which a socket that is closed resets its connection."""


@dataclass
class Relay:
    """Passes bytes on at most at a rate, and from a number of bytes on not, or no longer.

    Each direction of each connection is counted alone.
    """

    target: tuple[str, int]
    bytes_per_second: float = float("inf")
    stalls_after: float = float("inf")
    breaks_after: float = float("inf")
    port: int = 0
    _closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and end those that stall."""
        self._closed.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, self._reached() as far:
            back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
            back.start()
            self._pass_on(near, far)
            back.join()

    def _reached(self) -> socket.socket:
        """A connection to the target, which may begin to listen a moment later."""
        while True:
            try:
                return socket.create_connection(self.target)
            except ConnectionRefusedError:
                if self._closed.wait(0.05):
                    raise

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        begin, count = time.perf_counter(), 0
        with contextlib.suppress(OSError):  # one of the two ends is gone
            while data := source.recv(16384):
                count += len(data)
                if count > self.stalls_after:
                    self._closed.wait()
                    break
                if count > self.breaks_after:
                    for each in (source, target):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        each.shutdown(socket.SHUT_RD)  # wakes the other direction
                        each.close()
                    return
                ahead = count / self.bytes_per_second - (time.perf_counter() - begin)
                time.sleep(max(0.0, ahead))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
