"""The engine a run file asks for, no larger than its problems need."""

from __future__ import annotations

from collections.abc import Sequence

from actors.adapter_follower import ADAPTER_SLOTS
from actors.self_test import TOLERANCE_NATS
from posteriori.config import RunConfig
from posteriori.lm import model_path
from posteriori.problems import Problem
from posteriori.seams import Engine

MAX_SEQUENCES = 256
"""Decoded together at most; the rest of the requests in flight wait inside the engine."""

GPU_MEMORY_SHARE = 0.6
"""Of the actor's part of a GPU; the frozen reward model needs the rest."""


def coarsest_dtype(config: RunConfig) -> str:
    """What limits how closely the engine's log q can equal that of the run's base LM, for the self-test."""
    vllm = config.sampling.vllm
    if vllm.quantization is not None:
        return "quantised"
    return max((config.dtype, vllm.dtype or config.dtype), key=TOLERANCE_NATS.__getitem__)


def start_engine(
    config: RunConfig, problems: Sequence[Problem], seed: int, device: str | None = None
) -> Engine:
    """Start the configured engine for the run's base model, adapter rank and longest sequence.

    Args:
        config: the run file.
        problems: whose X's and longest Z's it is to serve.
        seed: of requests without one.
        device: of the transformers engine; None: a GPU if the run file gives actors one.

    Raises:
        UserError: the model cannot be loaded or served.
    """
    longest = max(
        len(problem.policy_ids(prompt)) + max(problem.moves(prompt).longest, 1)
        for problem in problems
        for prompt in (*problem.prompts, *problem.test_prompts)
    )
    sampling = config.sampling
    if sampling.engine == "transformers":
        from actors.transformers_engine import TransformersEngine

        return TransformersEngine(
            model_path(config.model),
            lora_rank=config.learner.lora_rank,
            max_adapters=ADAPTER_SLOTS,
            dtype=config.dtype,
            max_model_tokens=longest,
            device=device or ("cuda" if sampling.gpus_per_actor > 0 else "cpu"),
            seed=seed,
        )
    from actors.vllm_engine import VllmEngine

    return VllmEngine(
        model_path(config.model),
        lora_rank=config.learner.lora_rank,
        max_adapters=sampling.vllm.max_adapters,
        dtype=sampling.vllm.dtype or config.dtype,
        quantization=sampling.vllm.quantization,
        tensor_parallel=sampling.vllm.tensor_parallel,
        prefix_caching=sampling.vllm.prefix_caching,
        max_model_tokens=longest,
        seed=seed,
        max_sequences=min(sampling.group_size * sampling.groups_in_flight, MAX_SEQUENCES),
        gpu_memory_utilization=GPU_MEMORY_SHARE * min(sampling.gpus_per_actor or 1.0, 1.0),
    )
