"""Functions of the user's, named in the run file as ``module:function``."""

from __future__ import annotations

import importlib
from typing import Any

from posteriori.errors import UserError


def imported(path: str, role: str, where: str) -> Any:
    """The function behind an import path.

    Args:
        path: ``package.module:function``.
        role: what errors call it, such as "predicate".
        where: what it belongs to, such as "Problem 'p'".

    Raises:
        UserError: there is no such module or attribute, or it cannot be called.
    """
    module_name, _, attribute = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise UserError(
            f"{where}: cannot import {role} {path!r}: {cause}.",
            "Write it as package.module:function and run where that module can be imported.",
        ) from cause
    if not callable(function):
        raise UserError(
            f"{where}: {role} {path!r} is {type(function).__name__}, not a function.",
            "Name a function.",
        )
    return function
