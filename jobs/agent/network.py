"""Free ports for the rendezvous."""

from __future__ import annotations

import random
import socket

PORTS = range(20000, 32000)
"""Ports below Linux's ephemeral ones (from 32768), which outgoing connections may take."""
_TRIES = 200


def free_port(chance: random.Random) -> int:
    """A random port that is free now (workers share hosts); 0: none found in 200 attempts.

    It is free for IPv4 and, where the host has it, IPv6: rank 0 listens on both. Another process
    may still take the port before rank 0 does.
    """
    dual = socket.has_dualstack_ipv6()
    for port in chance.sample(PORTS, _TRIES):
        with socket.socket(socket.AF_INET6 if dual else socket.AF_INET) as probe:
            try:
                if dual:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("", port))
            except OSError:
                continue
            return port
    return 0
