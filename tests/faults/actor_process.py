"""A rollout actor as a process of its own, without Ray: what runs on a host that is cut off.

python -m tests.faults.actor_process CONFIG.json REDIS_URL NAME DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from actors.ray_actor import Rollout

if __name__ == "__main__":
    config, redis_url, name, directory = sys.argv[1:]
    Rollout(json.loads(Path(config).read_text()), redis_url, name, directory).run()
