"""One engine behind a Ray Serve deployment, and the shelf from which all of them take adapters.

What crosses between the app and its replicas goes through Ray, inside one cluster that asks who one is.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.draws import Adapter, Draw, Finished
from api.errors import as_api_error
from api.service import engine_host
from api.settings import ServeSettings
from posteriori.errors import UserError
from posteriori.freed_memory import return_freed_memory
from posteriori.moves import LegalMoves

log = logging.getLogger(__name__)

ADAPTERS_ON_SHELF = 64
START_POLL_SECONDS = 0.1
WARM_UP = Draw([0], LegalMoves.free([0, 1], 2, 1, 1), 1, 0)
"""One token, of any model: when it has been drawn, its adapter is loaded."""


@dataclass(frozen=True)
class Refusal:
    """A draw that cannot be served, as data: an exception would lose its fields on the way."""

    status: int
    code: str
    problem: str
    fix: str
    field: str | None


@dataclass(frozen=True)
class Lacking:
    """The shelf does not hold this adapter (any more)."""

    key: str


class Shelf:
    """Adapter files by key, newest last; a Ray actor."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, dict[str, bytes]] = OrderedDict()

    def put(self, key: str, files: dict[str, bytes]) -> None:
        """Keep the files of an adapter."""
        self._files[key] = files
        if len(self._files) > ADAPTERS_ON_SHELF:
            self._files.popitem(last=False)

    def get(self, key: str) -> dict[str, bytes] | None:
        """The files; None: not here."""
        return self._files.get(key)


class EngineReplica:
    """An engine that draws for the app, wherever Ray has put it.

    Args:
        settings: of the service, as JSON holds them.
        shelf: handle of the :class:`Shelf`.

    Raises:
        RuntimeError: the engine does not start.
    """

    def __init__(self, settings: dict[str, Any], shelf: Any) -> None:
        return_freed_memory()
        self._settings = ServeSettings.model_validate(settings)
        self._shelf = shelf
        self._folder = tempfile.TemporaryDirectory(prefix="posteriori-replica-")
        self._adapters: dict[str, Adapter] = {}
        self._host = engine_host(self._settings)
        self._host.start()
        while self._host.not_ready is not None:
            if self._host.restarts:
                raise RuntimeError(self._host.not_ready)
            time.sleep(START_POLL_SECONDS)

    async def load(self, key: str) -> None:
        """Have the engine load an adapter, between two steps of the draws it is at."""
        adapter = await self._fetch(key)
        if adapter is None:
            log.warning("adapter %s is not on the shelf", key)
            return
        try:
            async with aclosing(self._host.samples_of([WARM_UP], adapter)) as found:
                async for _ in found:
                    pass
        except UserError:
            # Whoever asks for this adapter is told; the others need not wait for it.
            log.exception("adapter %s cannot be loaded", key)

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that is ill three times in a row.

        Raises:
            RuntimeError: the engine does not answer.
        """
        if self._host.not_ready is not None:
            raise RuntimeError(self._host.not_ready)

    async def draw(
        self, key: str | None, draws: Sequence[tuple[int, Draw]]
    ) -> AsyncGenerator[Finished | Refusal | Lacking, None]:
        """Samples of these draws under their indices, as they finish; nothing follows a refusal."""
        adapter = None if key is None else await self._fetch(key)
        if key is not None and adapter is None:
            yield Lacking(key)
            return
        try:
            wanted = [draw for _, draw in draws]
            async with aclosing(self._host.samples_of(wanted, adapter)) as finished:
                async for place, samples in finished:
                    yield draws[place][0], samples
        except UserError as error:
            found = as_api_error(error)
            yield Refusal(found.status, found.code, found.problem, found.fix, found.field)

    async def _fetch(self, key: str) -> Adapter | None:
        if key not in self._adapters:
            files: dict[str, bytes] | None = await self._shelf.get.remote(key)
            if files is None:
                return None
            # Two draws may fetch at once: the same bytes under names of their own.
            directory = Path(await asyncio.to_thread(_write, self._folder.name, files))
            self._adapters.setdefault(key, Adapter(key, directory))
        return self._adapters[key]


def _write(parent: str, files: dict[str, bytes]) -> str:
    directory = tempfile.mkdtemp(dir=parent)
    for name, content in files.items():
        (Path(directory) / name).write_bytes(content)
    return directory
