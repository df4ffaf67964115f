"""Freed memory goes back to the operating system, also where a block in use lies above it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from posteriori.freed_memory import allocator

PROGRAM = """
import sys, time
import psutil
from posteriori import freed_memory

def resident():
    return psutil.Process().memory_info().rss / 2**20

blocks = [bytes(1000) for _ in range(200_000)]
last = blocks[-1]
full = resident()
blocks.clear()
kept = resident()
freed_memory.TRIM_SECONDS = 0.05
if not freed_memory.return_freed_memory():
    print("no glibc")
    sys.exit()
deadline = time.monotonic() + 60
while resident() > full - 150 and time.monotonic() < deadline:
    time.sleep(0.05)
print(full - kept, full - resident())
"""

JEMALLOC_IN_USE = """
import ctypes
read = ctypes.CDLL(None).mallctl
background, decay = ctypes.c_bool(), ctypes.c_ssize_t()
for name, value in ((b"opt.background_thread", background), (b"opt.dirty_decay_ms", decay)):
    size = ctypes.c_size_t(ctypes.sizeof(value))
    assert read(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0
print(background.value, decay.value)
"""


def test_freed_pages_below_a_block_in_use_are_returned() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    if ended.stdout == "no glibc\n":
        pytest.skip("this C library is not glibc")
    by_itself, after_trim = map(float, ended.stdout.split())
    assert by_itself < 50  # of some 200 MiB
    assert after_trim > 150


def test_the_allocator_is_in_use_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # vLLM sets it where it has been started
    environment = allocator()
    if not environment:
        pytest.skip("Ray brings no jemalloc here")
    ended = subprocess.run(
        [sys.executable, "-c", JEMALLOC_IN_USE],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert ended.stdout == "True 5000\n" and ended.stderr == ""


def test_what_the_user_preloads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc.so")
    assert allocator() == {}
