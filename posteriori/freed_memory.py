"""Gives freed memory back to the operating system, in processes that run for days.

Two things make a process with the threads of Ray, torch and Redis clients grow for hours that keeps nothing itself.
glibc's malloc keeps what was freed in each of many arenas. And Python looks for unreachable cycles (an adapter
written by safetensors leaves some) only when new objects are a quarter of all old ones, of which torch and
transformers bring half a million.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import threading
from importlib.util import find_spec
from pathlib import Path

ARENAS = 2
TRIM_SECONDS = 30.0
JEMALLOC = "background_thread:true,dirty_decay_ms:5000,muzzy_decay_ms:0"
M_ARENA_MAX = -8
"""``mallopt``'s name for the number of arenas, from malloc.h."""


def allocator() -> dict[str, str]:
    """Environment of a process that computes with torch: with the jemalloc that Ray brings along, where it does.

    Activations of many sizes leave holes in glibc's heap: a learner's peak is twice what it needs, and with jemalloc
    1.14 times, at the same speed (``benchmarks/memory.py``). It returns what has been free for a few seconds, even
    where nobody allocates any more. What the user preloads already stays as it is.
    """
    ray = find_spec("ray")
    if ray is None or ray.origin is None or os.environ.get("LD_PRELOAD"):
        return {}
    library = Path(ray.origin).parent / "core" / "libjemalloc.so"
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": JEMALLOC} if library.exists() else {}


def computing(threads: int) -> dict[str, dict[str, str]]:
    """``runtime_env`` of a Ray actor that computes with torch: its threads, and :func:`allocator`."""
    count = str(threads)
    return {"env_vars": {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, **allocator()}}


@functools.cache
def return_freed_memory() -> bool:
    """From now on collect cycles and return free pages every ``TRIM_SECONDS``; once a process.

    What is there at the first collection is taken for lasting and not looked at again: collections are quick.

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
        gc.collect()
        if not gc.get_freeze_count():
            gc.freeze()
        libc.malloc_trim(ctypes.c_size_t(0))
