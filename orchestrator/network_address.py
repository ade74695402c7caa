"""Addresses that leave this machine, and those that do not."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_PLAIN = {"http", "ws"}


def is_loopback(host: str) -> bool:
    """True if the host is this machine by its own name for itself; False for all other names."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_plain(url: str) -> bool:
    """True if what is sent to the URL crosses a network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme in _PLAIN and not is_loopback(parts.hostname or "")
