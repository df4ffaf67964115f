"""Lua scripts that ship beside the code."""

from __future__ import annotations

from importlib.resources import files

import redis
from redis.commands.core import Script


def load_script(client: redis.Redis, *names: str) -> Script:
    """``lua/{name}.lua``, several joined in order, run by digest and sent again when unknown."""
    directory = files("replay") / "lua"
    source = [(directory / f"{name}.lua").read_text("utf-8") for name in names]
    return client.register_script("\n".join(source))
