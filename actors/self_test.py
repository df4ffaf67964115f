"""Before an actor samples: does its engine really apply the adapter it is given?

An engine that ignores an adapter, or applies part of it, samples happily from the wrong policy. A
random adapter must change log q, and what the engine reports must equal what transformers computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.behaviour import behaviour_log_q
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, Engine, SampledGroup, SampleRequest

TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.03, "quantised": 0.5}
"""Largest |log q(engine) − log q(transformers)| per token, by dtype: two kernels round differently.
A quantised base is another model by as much as 4 bits make it one; what is tested there is the adapter."""

SELF_TEST_VERSION = 2**40
"""Adapter version that no run reaches."""

_MIN_CHANGE = 10.0
"""The random adapter must move log q by this many tolerances, or the test would prove nothing."""


@torch.no_grad()
def reference_log_q(
    model: Any,
    prompt_ids: Sequence[int],
    tokens: Sequence[int],
    moves: LegalMoves,
    behaviour: Behaviour | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log q of a Z by one transformers forward: what any engine must report.

    Args:
        model: Hugging Face causal LM, adapter active or not.
        prompt_ids: the policy's prompt, not empty.
        tokens: z₁ … zₙ, tool outputs included.
        moves: legal moves.
        behaviour: default: the policy itself.

    Returns:
        log q of each token [n], 0 in tool outputs, and of ⊤ at every prefix [n + 1].
    """
    behaviour = behaviour or Behaviour()
    ids = torch.tensor([[*map(int, prompt_ids), *tokens]], device=model.device)
    logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 :].float().cpu()
    columns_of = torch.from_numpy(moves.column_tokens)
    scores = moves.path_scores(logits[:, columns_of].double().numpy(), tokens)
    decides = np.flatnonzero(np.isfinite(scores).any(axis=1))
    moved = behaviour_log_q(
        torch.from_numpy(scores[decides]),
        torch.full((len(decides), 1), behaviour.temperature),
        torch.full((len(decides), 1), behaviour.epsilon),
    ).double()
    log_q, log_q_stop = np.zeros(len(tokens)), np.full(len(tokens) + 1, -np.inf)
    log_q_stop[decides] = moved[:, -1]
    columns = [moves.columns[int(tokens[place])] for place in decides[:-1]]
    log_q[decides[:-1]] = moved[range(len(columns)), columns]
    return log_q, log_q_stop


def random_adapter(model: Any, directory: Path, *, rank: int, scale: float, seed: int = 0) -> Any:
    """Wrap ``model`` in a LoRA adapter with random, non-zero A and B, and save it.

    Args:
        model: Hugging Face causal LM; wrapped in place until ``.unload()`` of the result.
        directory: where to write the PEFT directory.
        rank: LoRA rank.
        scale: standard deviation of the entries of B; A keeps PEFT's initialisation.
        seed: of the entries.

    Returns:
        The PEFT model with the adapter active.
    """
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                spread = scale if ".lora_B." in name else weight.shape[1] ** -0.5
                noise = torch.randn(weight.shape, generator=generator) * spread
                weight.copy_(noise.to(weight))
    adapted.save_pretrained(directory)
    return adapted


def unconstrained(moves: LegalMoves, vocabulary_size: int) -> LegalMoves:
    """Moves that leave the model a choice, whatever the problem allows: any token, up to four."""
    tokens = [token for token in range(vocabulary_size) if token != moves.stop]
    return LegalMoves.free(tokens, moves.stop, 1, max(1, min(4, moves.max_tokens)))


def self_test(
    engine: Engine,
    model: Any,
    prompt_ids: Sequence[int],
    moves: LegalMoves,
    *,
    rank: int,
    dtype: str,
    samples: int = 4,
) -> float:
    """Check that the engine serves a random adapter as transformers computes it.

    Args:
        engine: idle, with a free adapter slot; left as it was.
        model: the same base model in transformers; left as it was.
        prompt_ids: a prompt to sample from.
        moves: its legal moves.
        rank: LoRA rank of the run.
        dtype: of both, or ``quantised``, for the tolerance.
        samples: samples compared, with and without the adapter.

    Returns:
        The largest gap per token found, in nats.

    Raises:
        UserError: names the gap.
    """
    tolerance = TOLERANCE_NATS[dtype]
    with TemporaryDirectory(prefix="posteriori-self-test-") as parent:
        base = _draw(engine, "self-test-base", prompt_ids, moves, samples, 0)
        gap = _gap(base, model, prompt_ids, moves)
        scale, change = 0.02, 0.0
        # How strongly a random adapter acts depends on the model: double it until it shows.
        while change < _MIN_CHANGE * tolerance and scale < 4.0:
            scale *= 2.0
            directory = Path(parent) / f"scale-{scale:g}"
            adapted = random_adapter(model, directory, rank=rank, scale=scale)
            change = _gap(base, adapted, prompt_ids, moves)
            adapted.unload()
        engine.add_adapter(SELF_TEST_VERSION, directory)
        try:
            sampled = _draw(
                engine, "self-test-adapter", prompt_ids, moves, samples, SELF_TEST_VERSION
            )
        finally:
            engine.remove_adapter(SELF_TEST_VERSION)
        adapted = random_adapter(model, directory, rank=rank, scale=scale)
        adapter_gap = _gap(sampled, adapted, prompt_ids, moves)
        adapted.unload()
    fix = "Do not train on this engine: set `sampling.engine: transformers`, or another dtype."
    if gap > tolerance:
        raise UserError(
            f"Self-test: log q of the base LM differs from transformers by {gap:.3g} nats per token "
            f"(at most {tolerance:g} is rounding).",
            fix,
        )
    if adapter_gap > tolerance:
        raise UserError(
            f"Self-test: under a random adapter the engine's log q differs from transformers by "
            f"{adapter_gap:.3g} nats per token (at most {tolerance:g} is rounding; the adapter "
            f"itself moves log q by {change:.3g}).",
            fix,
        )
    if change < _MIN_CHANGE * tolerance:
        raise UserError(
            f"Self-test: random adapters change log q by at most {change:.3g} nats, too little to "
            "tell whether the engine applies them.",
            "Use a prompt or an alphabet that leaves the model a choice.",
        )
    return max(gap, adapter_gap)


def _draw(
    engine: Engine, name: str, prompt_ids: Sequence[int], moves: LegalMoves, n: int, version: int
) -> SampledGroup:
    engine.submit(SampleRequest(name, prompt_ids, moves, n, adapter_version=version, seed=1))
    while True:
        for group in engine.step():
            if group.request.id == name:
                return group


def _gap(group: SampledGroup, model: Any, prompt_ids: Sequence[int], moves: LegalMoves) -> float:
    """Largest |difference| of log q between the engine's report and transformers."""
    gap = 0.0
    for sample in group.samples:
        log_q, log_q_stop = reference_log_q(model, prompt_ids, sample.tokens, moves)
        stop_legal = np.isfinite(log_q_stop)
        if not np.array_equal(stop_legal, np.isfinite(sample.log_q_stop)):
            return float("inf")
        difference = np.concatenate(
            [log_q - sample.log_q, log_q_stop[stop_legal] - sample.log_q_stop[stop_legal]]
        )
        gap = max(gap, float(np.abs(difference).max()))
    return gap
