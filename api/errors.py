"""What goes wrong, as HTTP: status, machine-readable code, the field, the problem and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from posteriori.commands.run_control import NotLive
from posteriori.errors import StorageUnreachable, UserError, WaitTimeout
from posteriori.messages import ErrorBody, ErrorDetail

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is malformed."},
    401: {"model": ErrorBody, "description": "No API key, or an unknown one."},
    403: {"model": ErrorBody, "description": "The API key lacks a scope."},
    404: {"model": ErrorBody, "description": "Unknown run, problem, prompt or version."},
    409: {"model": ErrorBody, "description": "The run's state or base model does not allow it."},
    413: {"model": ErrorBody, "description": "The request body is too large."},
    422: {"model": ErrorBody, "description": "A field is wrong."},
    429: {"model": ErrorBody, "description": "Too much is in flight; see Retry-After."},
    503: {"model": ErrorBody, "description": "Engine or storage is not there; see Retry-After."},
    504: {"model": ErrorBody, "description": "It took longer than the server allows."},
}
"""Documented on every route."""

RETRY_AFTER_SECONDS = 2

S = TypeVar("S", str, str | None)


class ApiError(UserError):
    """A refusal with its HTTP status.

    Args:
        status: HTTP status.
        code: for programs; never changes its meaning.
        problem: what is wrong, with the offending value.
        fix: what to do about it.
        field: the part of the request that is wrong.
    """

    def __init__(
        self, status: int, code: str, problem: str, fix: str, field: str | None = None
    ) -> None:
        super().__init__(problem, fix)
        self.status = status
        self.code = code
        self.field = field


class ClientGone(Exception):
    """The client left before its answer; nobody reads the response."""


def wrong(code: str, problem: str, fix: str, field: str | None = None) -> ApiError:
    """A field of the request is wrong (422)."""
    return ApiError(422, code, problem, fix, field)


def unknown(what: str, name: object, known: Sequence[object], field: str) -> ApiError:
    """There is no such thing (404)."""
    listed = ", ".join(str(item) for item in list(known)[:20]) or "none"
    return ApiError(
        404, f"unknown_{what}", f"There is no {what} {name!r}.", f"Known: {listed}.", field
    )


def as_api_error(error: UserError, field: str | None = None) -> ApiError:
    """The status and code of an error of the vocabulary, and the field that it is about, if one is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StorageUnreachable):
        return ApiError(503, "storage_unreachable", error.problem, error.fix)
    if isinstance(error, NotLive):
        return ApiError(409, "not_live", error.problem, error.fix, "run")
    if isinstance(error, WaitTimeout):
        return ApiError(504, "timeout", error.problem, error.fix)
    code = "infeasible" if "log Z = -inf" in error.problem else "invalid"
    return ApiError(422, code, error.problem, error.fix, field)


def body(error: ApiError) -> ErrorBody:
    """The response's body."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return ErrorBody(
        error=ErrorDetail(
            code=error.code,
            field=_utf8(error.field),
            problem=_utf8(error.problem),
            fix=_utf8(error.fix),
            message=_utf8(str(error)),
            type=kind,
            param=_utf8(error.field),
        )
    )


def _utf8(text: S) -> S:
    """The text as UTF-8 can hold it: half a surrogate pair may come in, but not go out."""
    return text if text is None else text.encode("utf-8", "replace").decode()


def response(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response of an error; 429 and 503 say when to come back."""
    found = dict(headers or {})
    if error.status in (429, 503):
        found["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if error.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(error).model_dump(), error.status, headers=found)


def install(app: FastAPI) -> None:
    """Answer every error in one shape."""

    @app.exception_handler(UserError)
    async def _user_error(_: Request, error: UserError) -> JSONResponse:
        return response(as_api_error(error))

    @app.exception_handler(ClientGone)
    async def _client_gone(_: Request, __: ClientGone) -> JSONResponse:
        return JSONResponse({}, 499)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return response(_from_validation(request, error))

    @app.exception_handler(Exception)
    async def _mistake(request: Request, _: Exception) -> JSONResponse:
        # Ours: the cause is in the log, under this id, and is nobody else's business.
        identity = request.scope.get("state", {}).get("request_id")
        fix = f"Report it with the log of request {identity}."
        return response(ApiError(500, "internal", "The service made a mistake.", fix))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed"}
        fix = "See /docs for the routes and what they take."
        code = codes.get(error.status_code, "http_error")
        refused = ApiError(error.status_code, code, f"{error.detail}.", fix)
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of a path whose methods are routes of their own: all of them
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response(refused, headers)


def _methods(request: Request) -> set[str]:
    """The methods of a path."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found


def events_schema(*kinds: str) -> dict[str, Any]:
    """Server-sent events in the document: what each of them is."""
    kind = {"type": "string", "enum": list(kinds)} if kinds else {"type": "string"}
    fields = {"event": kind, "id": {"type": "string"}, "data": {"type": "string"}}
    return {"schema": {"type": "object", "properties": fields, "required": ["data"]}}


def documented(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with errors as JSON on routes that answer in another type too."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, found in operation["responses"].items():
                if status.startswith(("4", "5")):
                    (schema,) = found["content"].values()
                    found["content"] = {"application/json": schema}
    return document


def _from_validation(request: Request, error: RequestValidationError) -> ApiError:
    # A misspelt key may also make the right one missing: name the misspelling. Of a union, name what is
    # wrong with the member that fits best, not that it is no other member.
    found = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", -len(e["loc"])))
    location = [str(part) for part in found["loc"][1:] if not _names_a_type(str(part))]
    field = ".".join(location) or None
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"The body is not JSON: {message}.", "Send JSON.")
    if found["type"] == "extra_forbidden":
        known = _known_keys(request) if len(location) == 1 else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        fix = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
        return wrong(
            "unknown_key", f"Unknown key `{field}`.", fix if known else "Remove it.", field
        )
    where = f"`{field}`: " if field else ""
    return wrong("invalid_field", f"{where}{message}.", "Correct it; see /docs.", field)


def _names_a_type(part: str) -> bool:
    """Is this part of a location the member of a union that was tried, and no key?"""
    return part in ("str", "int", "ProblemConfig") or "[" in part


def _known_keys(request: Request) -> list[str]:
    body_field = getattr(request.scope.get("route"), "body_field", None)
    annotation = body_field.field_info.annotation if body_field is not None else None
    return list(getattr(annotation, "model_fields", {}))
