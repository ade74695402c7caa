"""Free ports for the rendezvous."""

from __future__ import annotations

import random
import socket

PORTS = range(20000, 32000)
"""Ports below Linux's ephemeral ones (from 32768), which outgoing connections may take."""
_TRIES = 200


def free_port(chance: random.Random) -> int:
    """A random port that is free now (workers share hosts); 0: none found in 200 attempts.

    Another process may still take the port before rank 0 listens on it.
    """
    for port in chance.sample(PORTS, _TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    return 0
