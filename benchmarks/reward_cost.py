"""What log R costs: scoring ÷ sampling in a rollout actor, and prefix rewards ÷ one padded row for each prefix.

    python -m benchmarks.reward_cost

Scoring and sampling take turns in one rollout worker on vLLM (transformers with ``--quick``), as they do in a run;
each pair is a stretch of some seconds. A term ``{z}{y}`` scores a copy of y behind each prefix of z: here in one
token tree, there in a batch of padded rows x z₁:ᵢ y, the way it is done without trees.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.engines import start_engine
from actors.rollout import RolloutWorker
from actors.self_test import random_adapter
from benchmarks.measure import Report, Row, Target, in_turn, main
from benchmarks.models import models
from posteriori.config import RunConfig, parse
from posteriori.lm import LanguageModel
from posteriori.problems import Problem, build_problem, build_problems
from replay.memory_adapters import MemoryAdapters
from replay.memory_buffer import MemoryBuffer

X_TOKENS, PREFIXES, Y_TOKENS = 24, 20, 20
THREADS = 1
"""Of torch, as in a run file that says nothing: the engine has the other core."""

X = "Mia found a wallet in the park. It was full of money, and there was nobody around. Mia took a"
PROBLEMS: dict[str, dict[str, Any]] = {
    "tempered, {z}{stop}": {
        "kind": "tempered",
        "temperature": 0.8,
        "prompts": [{"x": X}],
        "max_tokens": PREFIXES,
    },
    "infilling, {z}{y}": {
        "kind": "infilling",
        "prompts": [{"x": "Mia found a", "y": ". The wallet was full of money."}],
        "max_tokens": 5,
    },
}
"""X as long as below; and what README.md shows."""


def per_prefix_loop(
    lm: LanguageModel, x: list[int], zs: Sequence[list[int]], y: list[int], *, sliced: bool = False
) -> NDArray[np.float64]:
    """log p(z₁:ᵢ y | x), i = 1 … n, by a batch of padded rows for each z; [number of z's, n].

    ``sliced``: the LM head is applied behind x alone, not everywhere.
    """
    found = []
    device = lm.model.device
    for z in zs:
        rows = [x + z[:end] + y for end in range(1, len(z) + 1)]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=device)
        start = len(x) - 1
        with torch.no_grad():
            keep = longest - start if sliced else 0
            logits = lm.model(tokens, attention_mask=mask, logits_to_keep=keep).logits
            logits = logits if sliced else logits[:, start:]
            log_p = logits[:, :-1].float().log_softmax(dim=-1)
            edges = log_p.gather(2, tokens[:, start + 1 :, None]).squeeze(2)
            edges = edges.masked_fill(mask[:, start + 1 :] == 0, 0.0)
        found.append(edges.double().sum(dim=1).cpu().numpy())
    return np.stack(found)


def random_infilling(lm: LanguageModel) -> tuple[Problem, list[int], list[int]]:
    """p(z y | x) for texts of random words, exactly as long as asked; the problem, x and y."""
    random = np.random.default_rng(0)
    words = [
        t
        for t in range(lm.vocabulary_size)
        if lm.text([t])[1:].isalpha() and t not in lm.special_ids
    ]

    def text(tokens: int) -> str:
        while True:
            found = lm.text(random.choice(words, tokens).tolist())
            if len(lm.encode(found)) == tokens:
                return found

    bos = lm.bos is not None
    fields = {"x": text(X_TOKENS - bos), "y": text(Y_TOKENS)}
    settings = {
        "name": "infilling",
        "kind": "infilling",
        "prompts": [fields],
        "max_tokens": PREFIXES,
    }
    config = parse({"run": "benchmark", "model": "pocket", "problems": [settings]}).problems[0]
    return build_problem(config, lm), lm.context(fields["x"]), lm.encode(fields["y"])


def prefix_rewards(lm: LanguageModel, quick: bool) -> list[Row]:
    """The tree ÷ the loop, for one trajectory and for eight."""
    problem, x, y = random_infilling(lm)
    prompt = problem.prompts[0]
    random = np.random.default_rng(1)
    alphabet = problem.moves(prompt).alphabet
    rows = []
    for count, target in ((1, 0.3), (8, 0.7)):
        zs = [random.choice(alphabet, PREFIXES).tolist() for _ in range(count)]
        ours = np.stack(problem.reward.log_reward(prompt, zs))[:, 1:]
        np.testing.assert_allclose(ours, per_prefix_loop(lm, x, zs, y), rtol=_tolerance(lm))
        trees = partial(problem.reward.log_reward, prompt, zs)
        loop = partial(per_prefix_loop, lm, x, zs, y)
        name = f"{lm.name}: prefix rewards ÷ padded loop, {count} trajector{'y' if count == 1 else 'ies'}"
        pairs = 2 if quick else max(3, 24 // count)
        rows.append(in_turn(name, trees, loop, pairs=pairs, target=Target(target)))
        behind_x = partial(loop, sliced=True)
        rows.append(in_turn(f"{name} with its head behind x alone", trees, behind_x, pairs=pairs))
    return rows


def _tolerance(lm: LanguageModel) -> float:
    return 1e-4 if lm.model.dtype == torch.float32 else 3e-2


def run_config(name: str, engine: str) -> RunConfig:
    """The run file of one problem, with the defaults of a run."""
    return parse(
        {
            "run": "benchmark",
            "model": "pocket",
            "problems": [{"name": "measured", **PROBLEMS[name]}],
            "sampling": {"engine": engine},
            "replay": {"slack_trajectories": 10**9},
        }
    )


def scoring_share(lm: LanguageModel, quick: bool) -> list[Row]:
    """Seconds of scoring ÷ seconds of sampling of one rollout worker, for problems of both kinds."""
    stretches, seconds = (2, 0.3) if quick else (5, 5.0)
    configs = {name: run_config(name, "transformers" if quick else "vllm") for name in PROBLEMS}
    # One engine for both: it is started for the longest text.
    everything = [p for config in configs.values() for p in build_problems(config, lm)]
    engine = start_engine(next(iter(configs.values())), everything, seed=0)
    rows = []
    try:
        for name, config in configs.items():
            with tempfile.TemporaryDirectory() as folder:
                adapters = MemoryAdapters("benchmark")
                random_adapter(
                    LanguageModel.load("pocket").model, Path(folder) / "made", rank=16, scale=0.05
                )
                files = {p.name: p.read_bytes() for p in (Path(folder) / "made").iterdir()}
                adapters.publish(1, files)
                worker = RolloutWorker(
                    "actor", engine, MemoryBuffer(config.replay, seed=0), adapters,
                    build_problems(config, lm), config.sampling, seed=0, adapter_directory=Path(folder) / "mine",
                )  # fmt: skip
                spent = [_stretch(worker, seconds) for _ in range(stretches + 1)][1:]
                worker.run(stop=lambda: True)
                for version in engine.adapter_versions:  # a worker expects an engine without any
                    engine.remove_adapter(version)
            sampling, scoring = np.median(spent, axis=0)
            ratios = [scored / sampled for sampled, scored in spent]
            rows.append(
                Row(f"pocket: scoring ÷ sampling, {name}", ratios, Target(0.3), scoring, sampling)
            )
    finally:
        engine.close()
    return rows


def _stretch(worker: RolloutWorker, seconds: float) -> tuple[float, float]:
    """Seconds that the worker sampled and scored in a stretch of so many."""
    before = dict(worker.counts.seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end or worker.counts.seconds["scoring"] == before["scoring"]:
        worker.turn()
    after = worker.counts.seconds
    return after["sampling"] - before["sampling"], after["scoring"] - before["scoring"]


def measure(quick: bool = False) -> Report:
    """All rows."""
    torch.set_num_threads(THREADS)
    pocket = LanguageModel.load("pocket")
    rows = scoring_share(pocket, quick)
    for lm in models(quick):
        rows += prefix_rewards(lm, quick)
    sizes = {"x tokens": X_TOKENS, "prefixes": PREFIXES, "y tokens": Y_TOKENS}
    return Report(rows, {**sizes, "engine": "transformers" if quick else "vllm"})


if __name__ == "__main__":
    main("reward_cost", __doc__ or "", measure)
