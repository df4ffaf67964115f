"""Addresses of Redis: one server, one behind Sentinels, or a cluster; with TLS, user and password.

    redis://[USER:PASSWORD@]HOST:PORT/DB      rediss:// the same over TLS      unix://[USER:PASSWORD@]/PATH
    redis+sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]/SERVICE[/DB]       rediss+sentinel://
    redis+cluster://[USER:PASSWORD@]HOST:PORT                                  rediss+cluster://
    environment                               POSTERIORI_REDIS_URL

All keys of a run share a hash tag, hence a slot: on a cluster a run lives on one primary, and runs spread.
Options of TLS are query parameters, such as ``?ssl_ca_certs=/etc/ca.pem``; of Sentinels,
``?sentinel_username=…&sentinel_password=…``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from posteriori.errors import UserError

ENVIRONMENT = "environment"
"""Value of ``replay.redis_url`` that keeps address and password out of the run file."""
URL_VARIABLE = "POSTERIORI_REDIS_URL"
PASSWORD_VARIABLE = "POSTERIORI_REDIS_PASSWORD"
PASSWORD_FILE_VARIABLE = "POSTERIORI_REDIS_PASSWORD_FILE"
DEFAULT_SENTINEL_PORT = 26379
FORMS = (
    "`embedded`, `environment`, redis://HOST:PORT/0, rediss://…, unix:///PATH, "
    "redis+sentinel://HOST:PORT/SERVICE or redis+cluster://HOST:PORT"
)


def resolve(redis_url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The address itself, of ``environment`` too, with the password that the environment adds to it.

    Raises:
        UserError: the variable is missing, or its password file cannot be read.
    """
    if redis_url != ENVIRONMENT:
        return redis_url
    found = environment.get(URL_VARIABLE)
    if not found:
        raise UserError(
            f"redis_url is `environment`, and {URL_VARIABLE} is not set.",
            f"Set it on this machine, with {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE} beside it.",
        )
    secret = environment.get(PASSWORD_VARIABLE)
    file = environment.get(PASSWORD_FILE_VARIABLE)
    if secret is None and file is not None:
        try:
            secret = Path(file).read_text(encoding="utf-8").strip()
        except OSError as cause:
            raise UserError(
                f"Cannot read {PASSWORD_FILE_VARIABLE} {file}: {cause.strerror}.",
                "Mount the secret there, readable for this user.",
            ) from cause
    try:
        parts = urlsplit(found)
    except ValueError as cause:
        raise not_an_address(found) from cause
    if not secret or parts.password is not None:
        return found
    credentials = f"{parts.username or ''}:{quote(secret, safe='')}"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{credentials}@{host}"))


def without_password(redis_url: str) -> str:
    """The address as it may be shown to anyone: no credentials, no query."""
    scheme, separator, rest = redis_url.partition("://")
    if not separator:
        # A word, or an address whose scheme was forgotten.
        return redis_url if "@" not in redis_url else "…"
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in authority:
        # An unescaped / or ? in the password, or an @ in the query: nothing after it is safe to show.
        return f"{scheme}://…"
    path = rest[len(authority) :].partition("?")[0].partition("#")[0]
    return f"{scheme}://{authority.rpartition('@')[2]}{path}"


def not_an_address(redis_url: str) -> UserError:
    """The error for a malformed address; parsers' own words may hold parts of a password."""
    return UserError(
        f"redis_url {without_password(redis_url)} is not an address.",
        f"Write {FORMS}; in a password write %40 for @, %2F for / and so on.",
    )


def has_credentials(redis_url: str) -> bool:
    """Does the address say who connects: by a password, or by a certificate?"""
    parts = urlsplit(redis_url)
    certificate = parts.scheme.startswith("rediss") and "ssl_certfile" in parse_qs(parts.query)
    return bool(parts.password) or certificate


def client(redis_url: str, retry: Retry, **options: Any) -> redis.Redis:
    """A client that has not connected yet.

    Args:
        redis_url: resolved.
        retry: of lost connections.
        options: of every connection.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(redis_url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind == "":
        return redis.Redis.from_url(redis_url, retry=retry, **options)
    if scheme not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        raise ValueError(f"{parts.scheme} is unknown")
    if kind == "cluster":
        plain = urlunsplit(parts._replace(scheme=scheme))
        # Commands, streams and scripts are those of one server, as long as all keys share a slot.
        return RedisCluster.from_url(plain, retry=retry, **options)  # type: ignore[return-value]
    return _behind_sentinels(redis_url, scheme == "rediss", retry, options)


def _behind_sentinels(
    redis_url: str, tls: bool, retry: Retry, options: dict[str, Any]
) -> redis.Redis:
    parts = urlsplit(redis_url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the path names no service: write …/SERVICE or …/SERVICE/DB")
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    # What redis-py makes of query parameters, of TLS among them.
    query = parse_qs(parts.query)
    of_sentinels = {
        name.removeprefix("sentinel_"): values[-1]
        for name, values in query.items()
        if name.startswith("sentinel_")
    }
    rest = {name: v[-1] for name, v in query.items() if not name.startswith("sentinel_")}
    parse: Callable[[str], Any] = parse_url
    parsed = parse(f"{'rediss' if tls else 'redis'}://localhost/?{urlencode(rest)}")
    ours = ("host", "port", "db", "connection_class")
    common: dict[str, Any] = {k: v for k, v in parsed.items() if k not in ours}
    if tls:
        common["ssl"] = True
    sentinels = [
        (host, int(port or DEFAULT_SENTINEL_PORT))
        for host, _, port in (item.rpartition(":") for item in _with_ports(hosts))
    ]
    timeouts = {k: v for k, v in options.items() if k.startswith("socket_")}
    watched: Callable[..., Any] = Sentinel
    found = watched(sentinels, sentinel_kwargs={**common, **timeouts, **of_sentinels})
    client: redis.Redis = found.master_for(
        service,
        db=int(database or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        retry=retry,
        **common,
        **options,
    )
    return client


def _with_ports(hosts: str) -> list[str]:
    items = [item for item in hosts.split(",") if item]
    return [item if ":" in item else f"{item}:{DEFAULT_SENTINEL_PORT}" for item in items]
