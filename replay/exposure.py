"""Refuse a Redis that strangers can use: whoever writes to the buffer decides what is learned."""

from __future__ import annotations

import ipaddress
from typing import cast
from urllib.parse import urlsplit

import redis

from posteriori.errors import UserError
from replay.address import has_credentials, without_password
from replay.connection import storage_errors

EVERYWHERE = ("*", "-::*", "0.0.0.0", "::")


def refuse_open(client: redis.Redis, redis_url: str) -> None:
    """Refuse a server beyond loopback that let us in without asking who we are.

    Args:
        client: connected by ``redis_url``.
        redis_url: resolved.

    Raises:
        UserError: it is on another machine, or listens for other machines, and wants no password.
        StorageUnreachable: it does not answer.
    """
    parts = urlsplit(redis_url)
    if parts.scheme == "unix" or has_credentials(redis_url):
        return
    hosts = [item.rpartition(":")[0] or item for item in parts.netloc.split(",")]
    remote = [host for host in hosts if not is_loopback(host)]
    if not remote and not _listens_beyond_loopback(client):
        return
    raise UserError(
        f"Redis at {without_password(redis_url)} can be reached from other machines and asks for no password.",
        "Give it one (`requirepass`, or `--user` for an ACL) and put it into the address or "
        "POSTERIORI_REDIS_PASSWORD; or have it `bind 127.0.0.1`.",
    )


def is_loopback(host: str) -> bool:
    """Is this name or address this machine's own?"""
    bare = host.strip("[]")
    if bare in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _listens_beyond_loopback(client: redis.Redis) -> bool:
    """By its own settings; a server that does not show them is one that restricts its clients."""
    try:
        with storage_errors(client):
            settings = cast(dict[str, str], client.config_get("bind", "protected-mode"))
    except redis.ResponseError:
        return False
    if settings.get("protected-mode") == "yes":
        return False  # without a password it answers loopback alone
    bound = settings.get("bind", "").split()
    return not bound or any(
        address in EVERYWHERE or not is_loopback(address.lstrip("-")) for address in bound
    )
