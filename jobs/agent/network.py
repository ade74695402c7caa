"""Ports for the rendezvous."""

from __future__ import annotations

import random
import socket

PORTS = range(20000, 32000)
"""Below Linux's ephemeral ports (32768 up), lest an outgoing connection takes one meanwhile."""
_TRIES = 200


def free_port(chance: random.Random) -> int:
    """A random port nobody listens on now (workers share hosts); 0 when none was found."""
    for port in chance.sample(PORTS, _TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    return 0
