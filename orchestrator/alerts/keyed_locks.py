"""Locks by key: what concerns one incident is sent in turn, and other incidents do not wait."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class KeyedLocks:
    """A lock for each key, for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """The lock of a key. Those who wait for it get it in the order in which they came."""
        return self._locks.setdefault(key, asyncio.Lock())
