"""How much is taken on: size of a request, requests in flight, seconds for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, ClientGone, response

T = TypeVar("T")


class InFlight:
    """Counts the requests that draw or score.

    Args:
        most: at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.refused = 0

    def check(self) -> None:
        """Refuse one more than ``most``.

        Raises:
            ApiError: 429.
        """
        if self.count >= self.most:
            self.refused += 1
            fix = "Wait for Retry-After, then try again."
            raise ApiError(429, "busy", f"{self.count} requests are in flight.", fix)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request; raises like :meth:`check`."""
        self.check()
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


def timed_out(seconds: float) -> ApiError:
    """The answer took too long (504)."""
    fix = "Ask for fewer samples, or stream them."
    return ApiError(504, "timeout", f"There was no answer within {seconds:g} s.", fix)


async def answered(request: Request, work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
    """The result of ``work``, cancelled when its client leaves or time is up.

    Raises:
        ApiError: 504.
        ClientGone: nobody waits any more.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(
            {task, left}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        raise ClientGone if left.done() else timed_out(timeout_seconds)
    finally:
        for waiting in (task, left):
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({waiting})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class SameMachine:
    """Guards a service without keys from pages in this machine's browser; an ASGI middleware.

    A page may reach loopback under a DNS name of its own, or post a form to it; neither is what the
    machine's user asked for.

    Args:
        app: what is protected.
        hosts: names under which the service may be addressed.
        origins: of pages that may change things here.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self.app if refusal is None else response(refusal))(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if urlsplit(f"//{host}").hostname not in self.hosts:
            fix = f"Address it as {', '.join(sorted(self.hosts))}, or give it API keys."
            return ApiError(400, "wrong_host", f"This service is not {host!r}.", fix, "Host")
        harmless = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if harmless or origin is None or origin in self.origins or urlsplit(origin).netloc == host:
            return None
        fix = "Allow it with --cors, or give the service API keys."
        return ApiError(403, "cross_origin", f"A page of {origin!r} asks.", fix, "Origin")


def _is_text(content: bytes) -> bool:
    """Can what this JSON says be sent back? Half a surrogate pair may be escaped, but never encoded."""
    if b"\\ud" not in content.lower():
        return True
    try:
        json.dumps(json.loads(content), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):  # no JSON: said where it is read
        return True
    return True


class BodyLimit:
    """Refuses bodies beyond a size, announced or not, and text that is none; an ASGI middleware.

    Args:
        app: what is protected.
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self.app = app
        self.most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.most_bytes:
            await self._refuse(scope, receive, send)
            return
        # Read here, so that one that is too long is refused before anything looks at it.
        messages: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if size > self.most_bytes:
                await self._refuse(scope, receive, send)
                return
        if not _is_text(b"".join(message.get("body", b"") for message in messages)):
            what = "The body holds half of a surrogate pair, which is no character."
            refusal = ApiError(400, "invalid_json", what, "Send well-formed text.")
            await response(refusal)(scope, receive, send)
            return
        pending = iter(messages)

        async def replay() -> Message:
            return next(pending, None) or await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = ApiError(
            413,
            "too_large",
            f"The request body has more than {self.most_bytes} bytes.",
            "Send less at a time.",
        )
        await response(refusal)(scope, receive, send)
