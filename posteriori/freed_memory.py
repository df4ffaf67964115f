"""Gives freed memory back to the operating system, in processes that run for days.

glibc's malloc keeps an arena for every few threads and what was freed inside it. Processes with the threads of
Ray, torch and Redis clients, of which none takes many objects for long, grow by that for hours.
"""

from __future__ import annotations

import ctypes
import functools
import threading

ARENAS = 2
TRIM_SECONDS = 30.0
M_ARENA_MAX = -8
"""``mallopt``'s name for the number of arenas, from malloc.h."""


@functools.cache
def return_freed_memory() -> bool:
    """From now on, with few arenas, return free pages every ``TRIM_SECONDS``; once a process.

    Returns:
        whether that can be done: the C library is glibc.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return False
    libc.mallopt(M_ARENA_MAX, ARENAS)
    threading.Thread(target=_trim, args=(libc,), name="trim", daemon=True).start()
    return True


def _trim(libc: ctypes.CDLL) -> None:
    pause = threading.Event()
    while not pause.wait(TRIM_SECONDS):
        libc.malloc_trim(ctypes.c_size_t(0))
