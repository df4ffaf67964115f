"""Servers of a test's own, and what this machine must offer for some faults."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.server import EmbeddedServer

SYNC_NOTES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Notes how long the file was when a sync of it began: what a host that dies afterwards still has. */
static int synced(int descriptor, const char *name) {
    struct stat before;
    int regular = fstat(descriptor, &before) == 0 && S_ISREG(before.st_mode);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(descriptor);
    const char *notes = getenv("SYNC_NOTES");
    if (result == 0 && regular && notes) {
        int file = open(notes, O_WRONLY | O_CREAT, 0600);
        long long size = before.st_size;
        if (pwrite(file, &size, sizeof size, 0) < 0) abort();
        close(file);
    }
    return result;
}

int fdatasync(int descriptor) { return synced(descriptor, "fdatasync"); }
int fsync(int descriptor) { return synced(descriptor, "fsync"); }
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "redis", capacity_bytes=2**26) as server:
        yield server


@pytest.fixture(scope="session")
def sync_notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that, preloaded, writes down how much of a file has reached the disk."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the library that watches fdatasync")
    directory = tmp_path_factory.mktemp("sync")
    (directory / "sync_notes.c").write_text(SYNC_NOTES)
    library = directory / "sync_notes.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(directory / "sync_notes.c"), "-ldl"],
        check=True,
    )
    return library


@pytest.fixture(scope="session")
def faketime() -> Path:
    """libfaketime: gives one process another wall clock."""
    for library in sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")):
        return library
    pytest.skip("no libfaketime; Debian: apt install faketime")
