"""Who may ask: API keys with scopes, compared in constant time.

Scopes: ``sample`` draws and scores, ``run`` launches, scales and stops runs, ``metrics`` reads /metrics,
``admin`` does all. Without keys everybody may do everything, which is only accepted where nobody else can connect.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.errors import ApiError
from api.settings import ServeSettings
from posteriori.errors import UserError

SCOPES = ("sample", "run", "metrics", "admin")
ENVIRONMENT = "POSTERIORI_API_KEYS"
LEAST_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Key:
    """A holder by name, what it may do, and the digest of its secret."""

    name: str
    scopes: frozenset[str]
    digest: bytes

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


EVERYBODY = Key("anonymous", frozenset({"admin"}), b"")


def read_keys(
    settings: ServeSettings, environment: Mapping[str, str] = os.environ
) -> tuple[Key, ...]:
    """Keys of the file and the environment.

    The file is YAML, ``{NAME: {key: SECRET, scopes: [sample, run]}}``; the environment variable
    POSTERIORI_API_KEYS is ``NAME:SECRET:sample+run`` items separated by commas.

    Raises:
        UserError: malformed, or no keys on an address that others can reach.
    """
    keys = [
        _from_item(item) for item in environment.get(ENVIRONMENT, "").split(",") if item.strip()
    ]
    if settings.keys_file is not None:
        keys += _from_file(settings.keys_file)
    if not keys and not settings.on_loopback:
        raise UserError(
            f"{settings.host} can be reached from other machines, and there are no API keys.",
            f"Give --keys FILE or {ENVIRONMENT}, or listen on 127.0.0.1.",
        )
    return tuple(keys)


def _from_item(item: str) -> Key:
    parts = item.strip().split(":")
    if len(parts) != 3:
        raise UserError(
            f"An item of {ENVIRONMENT} is not NAME:SECRET:SCOPE+SCOPE.", "Write it like that."
        )
    return _key(parts[0], parts[1], parts[2].split("+"))


def _from_file(file: Path) -> list[Key]:
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        return [_key(name, str(row["key"]), list(row["scopes"])) for name, row in content.items()]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as cause:
        raise UserError(
            f"Cannot read API keys from {file}: {type(cause).__name__}.",
            "Write NAME: {key: SECRET, scopes: [sample, run]}, one a line.",
        ) from cause


def _key(name: str, secret: str, scopes: list[str]) -> Key:
    if len(secret) < LEAST_KEY_CHARACTERS or not scopes or not set(scopes) <= set(SCOPES):
        raise UserError(
            f"API key {name!r} has fewer than {LEAST_KEY_CHARACTERS} characters, or other scopes than "
            f"{', '.join(SCOPES)}.",
            "Make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`.",
        )
    return Key(name, frozenset(scopes), _digest(secret))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def holder(keys: tuple[Key, ...], secret: str | None) -> Key:
    """Whose secret this is; every key is compared, in the same time.

    Raises:
        ApiError: nobody's (401).
    """
    if not keys:
        return EVERYBODY
    digest = _digest(secret or "")
    matches = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    if secret is None or not matches:
        what = "There is no API key." if secret is None else "Unknown API key."
        fix = "Send `Authorization: Bearer KEY`."
        raise ApiError(401, "unauthorised", what, fix, "Authorization")
    return matches[0]


_bearer = HTTPBearer(auto_error=False, description="An API key; none is needed on loopback.")


def needs(scope: str) -> Any:
    """A dependency: the request's key has this scope."""

    def check(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> Key:
        keys: tuple[Key, ...] = request.app.state.keys
        key = holder(keys, credentials.credentials if credentials else None)
        request.state.key = key.name
        if not key.may(scope):
            have = ", ".join(sorted(key.scopes))
            raise ApiError(
                403,
                "missing_scope",
                f"API key {key.name!r} has the scopes {have}.",
                f"Use a key with the scope {scope}.",
                "Authorization",
            )
        return key

    checked: Callable[..., Key] = check
    return Depends(checked)
