"""All performance benchmarks, one after the other, each in a process of its own.

    python -m benchmarks.performance            # make bench
    python -m benchmarks.performance --quick    # that all of them run

What they measure and what came out: ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

MODULES: tuple[str, ...] = (
    "reward_cost",
    "learner_efficiency",
    "objective_cost",
    "memory",
    "replay_buffer",
    "sampler_efficiency",
    "adapter_publish",
    "real_actors",
    "scaling",
    "serving",
    "start_up",
    "time_to_fidelity",
)
"""In this order; each is `python -m benchmarks.NAME` with ``--quick`` and ``--out``."""


def main() -> None:
    """Run them; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = ["--quick"] if parser.parse_args().quick else []
    for name in MODULES:
        print(f"\n### {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)


if __name__ == "__main__":
    main()
