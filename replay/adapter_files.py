"""The files of an adapter: which names are safe, their checksum, and how they reach a directory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from posteriori.errors import CorruptPayload, UserError
from replay.connection import disk_errors

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Plain file names: no separator, no leading dot, so no file lands outside its directory."""


def check_publishable(version: int, files: Mapping[str, bytes]) -> None:
    """Refuse what no fetch could write back.

    Raises:
        UserError: the version is not positive, there is no file, or a name is unsafe.
    """
    if version < 1:
        raise UserError(f"Adapter version {version}.", "Versions start at 1; 0 is the base model.")
    if not files:
        raise UserError(f"Adapter version {version} has no files.", "Publish a PEFT directory.")
    for name in files:
        if not SAFE_NAME.fullmatch(name):
            raise UserError(
                f"Adapter version {version} has a file named {name!r}.",
                "Use letters, digits, `.`, `_` and `-`; adapters are flat directories.",
            )


def checksum(files: Mapping[str, bytes]) -> str:
    """blake2b over names, lengths and contents; 32 hexadecimal characters."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def adapter_directory(run: str, version: int, expected_checksum: str, parent: Path) -> Path:
    """Where a version is cached; the checksum keeps namesakes of an earlier run apart."""
    return parent / f"{run}-v{version}-{expected_checksum[:12]}"


def write_directory(files: Mapping[str, bytes], expected_checksum: str, directory: Path) -> None:
    """Write files to a new directory, complete or not at all.

    Raises:
        CorruptPayload: contents or names are not those that were published.
        StorageFull: no space on the disk.
    """
    unsafe = [name for name in files if not SAFE_NAME.fullmatch(name)]
    if unsafe or checksum(files) != expected_checksum:
        raise CorruptPayload(
            f"The stored files of adapter {directory.name} do not match their checksum.",
            "Prune this version and publish a new one from the last checkpoint.",
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".fetch-", dir=directory.parent))
    try:
        with disk_errors(directory.parent):
            for name, content in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        temporary.chmod(0o755)
        temporary.rename(directory)
    except OSError:
        # Another process of this machine was first; its directory is complete, as ours would be.
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def never_published(version: int, latest: int) -> UserError:
    """The error for a version that is not stored."""
    if version > latest:
        return UserError(
            f"Adapter version {version} was never published; the newest is {latest}.",
            "Ask for a published version.",
        )
    return UserError(
        f"Adapter version {version} has been pruned; the newest is {latest}.",
        "Pin versions that must be kept, or ask for the newest.",
    )


def not_newer(version: int, latest: int) -> UserError:
    """The error for a version that was used before."""
    return UserError(
        f"Adapter version {version} is not greater than the latest, {latest}.",
        "Publish under a new number: a version never changes and is never reused.",
    )
