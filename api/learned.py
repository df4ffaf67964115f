"""log Z(x) as the learner's table has it, from the newest checkpoint of a run."""

from __future__ import annotations

import json

from safetensors import SafetensorError, safe_open

from posteriori.commands.run_control import RunControl


def learned_log_z(run: RunControl, problem: str, prompt: str) -> float | None:
    """The entry of one X; None: no checkpoint yet, no table (``learner.root: group``), or an X without one."""
    for path in sorted((run.directory.path / "checkpoints").glob("step-*"), reverse=True):
        try:
            keys = json.loads((path / "state.json").read_bytes())["log_z_keys"]
            if [problem, prompt] not in keys:
                return None
            with safe_open(path / "state.safetensors", framework="numpy") as tensors:
                value = float(tensors.get_tensor("log_z")[keys.index([problem, prompt])])
        except (OSError, ValueError, KeyError, SafetensorError):  # swept, or being written
            continue
        return value if value == value else None
    return None
