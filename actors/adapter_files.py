"""What an adapter directory must look like to be served, checked before an engine touches it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

from posteriori.config import VLLM_LORA_RANKS
from posteriori.errors import UserError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def engine_rank(rank: int) -> int:
    """Smallest rank vLLM reserves slots for that holds an adapter of ``rank``.

    Raises:
        UserError: no such rank.
    """
    for served in VLLM_LORA_RANKS:
        if served >= rank:
            return served
    raise UserError(
        f"LoRA rank {rank} cannot be served; the largest rank is {VLLM_LORA_RANKS[-1]}.",
        "Lower `lora_rank`.",
    )


def check_slot(version: int, loaded: Collection[int], slots: int) -> None:
    """Refuse a version that is loaded already, and one more adapter than there are slots.

    Raises:
        UserError: says which.
    """
    if version < 1 or version in loaded:
        raise UserError(
            f"Adapter version {version} is not new and positive.", "Publish a greater version."
        )
    if len(loaded) == slots:
        raise UserError(f"All {slots} adapter slots are taken.", "Remove an unused version.")


def check_adapter(directory: Path, max_rank: int) -> None:
    """Refuse an adapter that an engine would load wrongly, or not at all.

    Args:
        directory: PEFT directory.
        max_rank: largest rank the engine has slots for.

    Raises:
        UserError: names the file, or the key of its configuration, that is wrong.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise UserError(
                f"The adapter {directory} has no {name}.", "Publish a complete PEFT directory."
            )
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(directory / WEIGHTS_FILE, framework="numpy"):
            pass  # the header alone tells a truncated file
    except (ValueError, SafetensorError) as cause:
        raise UserError(
            f"The adapter {directory} is damaged: {cause}.", "Publish it again as a new version."
        ) from cause
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    for rank in ranks:
        if not isinstance(rank, int) or not 0 < rank <= max_rank:
            raise UserError(
                f"The adapter {directory} has LoRA rank {rank!r}, but the engine has slots for rank "
                f"{max_rank}.",
                "Start the engine with a larger `lora_rank`, or train a smaller adapter.",
            )
    # vLLM serves low-rank updates of the layers' projections and nothing else.
    unserved = [
        key
        for key in ("use_dora", "lora_bias", "modules_to_save", "layer_replication")
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        unserved.append("bias")
    targets = config.get("target_modules") or []
    unserved += [
        name
        for name in ("lm_head", "embed_tokens")
        if any(name == str(target).rsplit(".", 1)[-1] for target in targets)
    ]
    if unserved:
        raise UserError(
            f"The adapter {directory} uses {', '.join(unserved)}, which cannot be served.",
            "Train plain LoRA on the attention and MLP projections.",
        )
