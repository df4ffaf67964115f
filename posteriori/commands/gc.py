"""``posteriori gc``: remove what dead runs left on a Redis that several runs share."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from posteriori.errors import UserError


def gc(redis_url: str, runs: Sequence[str], really: bool, console: Console) -> None:
    """Show the runs on a server, and with ``really`` remove the dead ones.

    Args:
        redis_url: of the server.
        runs: only these; empty: all that are known to be dead. One whose registry is on another server (a
            shard) has to be named.
        really: remove them, and do not only say so.
        console: where to.

    Raises:
        UserError: the server does not answer, or a run that is named lives or is not there.
    """
    from replay.connection import connect
    from replay.garbage import remove, survey

    client = connect(redis_url)
    found = {remains.run: remains for remains in survey(client)}
    for run in runs:
        if run not in found:
            raise UserError(
                f"There is no run {run!r} on this server.",
                f"There are: {', '.join(found) or 'none'}.",
            )
        if found[run].live:
            raise UserError(
                f"Run {run!r} lives: its driver or a component has been heard of.",
                "Stop it first.",
            )
    chosen = [r for r in found.values() if not r.live and (r.run in runs if runs else r.known)]
    table = Table("run", "state", "silent for", "keys", "MiB", "")
    for remains in found.values():
        silent = remains.silent_seconds
        table.add_row(
            remains.run,
            "live" if remains.live else ("dead" if remains.known else "unknown"),
            "–" if silent is None else f"{silent:,.0f} s",
            f"{remains.keys:,}",
            f"{remains.size_bytes / 2**20:.1f}",
            "" if remains not in chosen else ("removed" if really else "would be removed"),
        )
    if really:
        for remains in chosen:
            remove(client, remains.run)
    console.print(table)
    if chosen and not really:
        console.print("Nothing was removed; --yes does it.", highlight=False)
