"""The page: static files that speak to the routes as any other client does."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "page"

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for anew, and answered by 304 unless it has changed
}


class Files(StaticFiles):
    """Files that run nothing and load nothing but what this service serves."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The file with the page's headers."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response


router = APIRouter(include_in_schema=False)
files = Files(directory=FOLDER)


@router.get("/")
@router.head("/")
async def index(request: Request) -> Response:
    """The page itself."""
    return await files.get_response("index.html", request.scope)


def install(app: FastAPI) -> None:
    """Serve the page at ``/`` and its parts below ``/page``."""
    app.include_router(router)
    app.mount("/page", files, name="page")
