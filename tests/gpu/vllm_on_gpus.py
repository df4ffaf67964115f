"""Starts a vLLM engine on GPUs and holds it against transformers; exits 0 if they agree.

    python -m tests.gpu.vllm_on_gpus NEW_DIRECTORY GPUS

In bfloat16, the only kind of adapter that vLLM's kernels for GPUs take besides float16. What is exact there is
that draws follow the log q that the engine reports; how near that is to transformers', the self-test bounds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import chisquare

from actors.self_test import TOLERANCE_NATS, random_adapter, reference_log_q, self_test
from actors.vllm_engine import VllmEngine
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, SampledGroup, SampleRequest
from tests.actors.conftest import draw, run
from tests.tiny import write_tiny_lm

DTYPE = "bfloat16"
DRAWS = 4096


def check_follows_reported_q(group: SampledGroup) -> float:
    """χ² of the frequencies against the reported log q; p-value. Rare strings are pooled."""
    counts: dict[tuple[int, ...], int] = {}
    log_q: dict[tuple[int, ...], float] = {}
    for sample in group.samples:
        z = tuple(sample.tokens)
        counts[z] = counts.get(z, 0) + 1
        log_q[z] = sample.total_log_q
    n = len(group.samples)
    expected = {z: n * np.exp(value) for z, value in log_q.items()}
    often = [z for z in counts if expected[z] >= 10]
    observed = [counts[z] for z in often]
    predicted = [expected[z] for z in often]
    rest = n - sum(predicted)
    assert rest > -0.01 * n, "the reported probabilities of the strings drawn sum to more than 1"
    observed.append(n - sum(observed))
    predicted.append(max(rest, 1e-9))
    if observed[-1] < 10:
        observed, predicted = observed[:-1], predicted[:-1]
    scale = sum(observed) / sum(predicted)
    return float(chisquare(observed, np.array(predicted) * scale).pvalue)


def main(directory: Path, gpus: int) -> None:
    """All checks on one engine."""
    # Two heads for two GPUs; flatter weights, since bfloat16 rounds large logits by more than the self-test allows.
    write_tiny_lm(directory, heads=2, spread=0.2)
    began = time.monotonic()
    engine = VllmEngine(
        directory,
        lora_rank=8,
        tensor_parallel=gpus,
        max_adapters=2,
        dtype=DTYPE,
        max_model_tokens=64,
        max_sequences=256,
        gpu_memory_utilization=0.1,
    )
    print(f"engine ready after {time.monotonic() - began:.0f} s")
    lm = LanguageModel.load(str(directory), dtype=DTYPE)
    moves = LegalMoves.free([lm.one_token(w, "word") for w in (" cat", " dog", " sat")], 1, 1, 4)
    prompt = lm.context(" the")
    gap = self_test(engine, lm.model, prompt, moves, rank=8, dtype=DTYPE)
    print(f"largest gap {gap:.2g} nats")

    models = {0: lm.model}
    for version in (1, 2):
        adapter = directory / f"adapter-{version}"
        base = LanguageModel.load(str(directory), dtype=DTYPE).model
        models[version] = random_adapter(base, adapter, rank=8, scale=0.3, seed=version)
        engine.add_adapter(version, adapter)
    for version in models:
        engine.submit(
            SampleRequest(f"{version}", prompt, moves, DRAWS, Behaviour(), version, version)
        )
    groups = run(engine)  # all in one batch
    for version in models:
        group = groups[f"{version}"]
        p = check_follows_reported_q(group)
        print(f"version {version}: p = {p:.3f}")
        assert p > 1e-4, f"draws of version {version} do not follow the reported log q"
        gaps = np.concatenate(
            [
                sample.log_q - reference_log_q(models[version], prompt, sample.tokens, moves)[0]
                for sample in group.samples[:64]
            ]
        )
        print(f"version {version}: gaps of {np.abs(gaps).mean():.2g} nats a token")
        assert np.abs(gaps).mean() < TOLERANCE_NATS[DTYPE] / 2, (
            f"version {version} is another model"
        )
    first, second = (draw(engine, prompt, moves, 64, version=1, seed=7) for _ in range(2))
    assert [z.tokens for z in first] == [z.tokens for z in second], "seeds"
    engine.remove_adapter(1)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
