"""One item of a data set, and the line it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from posteriori.errors import UserError


@dataclass(frozen=True)
class Record:
    """Fields of one X, such as ``x`` and ``y``, and where they stand.

    Attributes:
        fields: text by name, as templates use them.
        where: ``file, line n``, for messages.
    """

    fields: Mapping[str, str]
    where: str


def place(path: Path, line: int) -> str:
    """``file, line n``."""
    return f"{path}, line {line}"


def malformed(where: str, what: str, expected: str) -> UserError:
    """The error of a line that cannot be read: file, line, what is wrong, what was expected."""
    return UserError(f"{where}: {what}.", f"Expected {expected}; mend the line or remove it.")
