"""Takes a file out of the page cache, so that the next read comes from its medium.

A file that has just been written is still in memory: reading it back would compare memory with
itself. So its dirty pages are flushed, its clean pages are dropped, and the kernel is asked whether
they are gone. On NFS this makes the client read from the server, which may still have it in memory.

Not guaranteed: a cache below the kernel (of a disk, a RAID controller or a storage server) may
answer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

DROPPED: Final = "cache dropped"
MEMORY: Final = "memory"
CACHED: Final = "page cache"
_IN_MEMORY = {0x01021994, 0x858458F6}
"""`f_type` of tmpfs and ramfs (statfs(2))."""
_MAP_FAILED = ctypes.c_void_p(-1).value


def drop(descriptor: int, size: int) -> str:
    """Flush and drop the pages of an open file. Blocks.

    Args:
        descriptor: Of the file, open for reading.
        size: Bytes, more than 0.

    Returns:
        `DROPPED`: no page of it is in memory. `MEMORY`: its file system has no other medium.
        `CACHED`: at least one page stayed, since the file system or another reader keeps it.

    Raises:
        OSError: The file cannot be flushed.
    """
    if _kind(descriptor) in _IN_MEMORY:
        return MEMORY
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return CACHED if _resident(descriptor, size) else DROPPED


def _kind(descriptor: int) -> int:
    """`f_type` of the file system of an open file; 0 if it cannot be had."""
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fstatfs(descriptor, buffer) != 0:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value)


def _resident(descriptor: int, size: int) -> bool:
    """True if a page of the file is in memory, or if nobody can say."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(
        None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)
    )
    if address == _MAP_FAILED:
        return True
    try:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) != 0:
            return True
        return any(page & 1 for page in pages)
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
