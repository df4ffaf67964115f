"""A part of a run whose host's clock is wrong: run under libfaketime, it writes what actors write.

LD_PRELOAD=libfaketimeMT.so.1 FAKETIME=-11m python -m tests.faults.other_clock REDIS_URL
"""

from __future__ import annotations

import json
import sys
import time

from replay.backoff import NotYet, wait_for
from replay.connection import connect
from replay.redis_buffer import RedisBuffer
from replay.registry import RunRegistry
from tests.replay.build import config, trajectory


def main(redis_url: str) -> None:
    client = connect(redis_url)
    registry, buffer = RunRegistry(client, "r"), RedisBuffer(client, "r", config())
    registry.beat("actor-elsewhere", {"state": "sampling"})
    registry.event("tick", "from elsewhere")
    polls = iter(range(3))
    waited = wait_for("a while", lambda: next(polls, NotYet("x")), 5.0)
    print(
        json.dumps(
            {
                "unix_seconds": time.time(),
                "claim": registry.claim("gold", "actor-elsewhere", 60.0),
                "inserted": buffer.insert([trajectory([k], version=3) for k in range(5)]).inserted,
                "waited": waited,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
