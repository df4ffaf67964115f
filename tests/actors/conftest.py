"""Engines over the tiny model, and log q by a naive loop to hold them against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.self_test import random_adapter
from actors.transformers_engine import TransformersEngine
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, Engine, Sample, SampledGroup, SampleRequest

RANK = 8
MAX_ADAPTERS = 3

_versions = itertools.count(1)


@pytest.fixture(scope="session")
def vllm_engine(tiny_lm_path: Path) -> Iterator[Engine]:
    """The one vLLM engine of this process."""
    from actors.vllm_engine import VllmEngine

    engine = VllmEngine(
        tiny_lm_path, lora_rank=RANK, max_adapters=MAX_ADAPTERS, max_model_tokens=64
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def transformers_engine(tiny_lm_path: Path) -> Iterator[Engine]:
    """The engine without vLLM."""
    engine = TransformersEngine(
        tiny_lm_path, lora_rank=RANK, max_adapters=MAX_ADAPTERS, max_model_tokens=64, device="cpu"
    )
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every implementation of the seam; idle and without adapters before and after each test."""
    engine: Engine = request.getfixturevalue(f"{request.param}_engine")
    assert engine.unfinished == 0
    assert engine.adapter_versions == ()
    yield engine
    while engine.unfinished:  # of a failed test
        engine.step()
    for version in engine.adapter_versions:
        engine.remove_adapter(version)


@pytest.fixture
def fresh_version() -> Callable[[], int]:
    """Versions no other test uses, ascending."""
    return lambda: next(_versions)


@pytest.fixture(scope="session")
def adapted_models(
    tiny_lm_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, torch.nn.Module]]:
    """Two random adapters: directory, and the model with it, by name."""
    made = {}
    for seed, name in enumerate(("first", "second"), start=1):
        model = LanguageModel.load(str(tiny_lm_path)).model
        directory = tmp_path_factory.mktemp("adapters") / name
        made[name] = (directory, random_adapter(model, directory, rank=RANK, scale=0.3, seed=seed))
    return made


def draw(
    engine: Engine,
    prompt_ids: list[int],
    moves: LegalMoves,
    n: int,
    *,
    behaviour: Behaviour | None = None,
    version: int = 0,
    seed: int | None = 0,
) -> list[Sample]:
    """Samples of one request, with nothing else in flight."""
    engine.submit(
        SampleRequest("only", prompt_ids, moves, n, behaviour or Behaviour(), version, seed)
    )
    return run(engine)["only"].samples


def run(engine: Engine) -> dict[str, SampledGroup]:
    """Step until nothing is in flight."""
    finished = {}
    while engine.unfinished:
        for group in engine.step():
            finished[group.request.id] = group
    return finished


def naive_log_q(
    model: torch.nn.Module,
    prompt_ids: list[int],
    tokens: list[int],
    moves: LegalMoves,
    behaviour: Behaviour | None = None,
) -> tuple[list[float], list[float]]:
    """log q of each token and of ⊤ at each prefix: one forward and one plain loop a prefix.

    Checks tool outputs on the way: their tokens cost nothing, and ⊤ is illegal before them.
    """
    behaviour = behaviour or Behaviour()
    log_q, log_q_stop, state, actions = [], [], 0, 0
    said: list[int] = []
    for length in range(len(tokens) + 1):
        if said:
            assert tokens[length] == said.pop(0)
            log_q.append(0.0)
            log_q_stop.append(-np.inf)
            continue
        with torch.no_grad():
            logits = (
                model(torch.tensor([[*prompt_ids, *tokens[:length]]]))
                .logits[0, -1]
                .double()
                .numpy()
            )
        legal = [
            int(token)
            for token, allowed in zip(moves.column_tokens, moves.row(actions, state), strict=True)
            if allowed
        ]
        promised = dict(zip(moves.column_tokens, moves.promises(actions, state), strict=True))
        weight = {
            token: float(np.exp((logits[token] + promised[token]) / behaviour.temperature))
            for token in legal
        }
        total = sum(weight.values())
        q = {
            token: (1 - behaviour.epsilon) * weight[token] / total + behaviour.epsilon / len(legal)
            for token in legal
        }
        log_q_stop.append(float(np.log(q[moves.stop])) if moves.stop in q else -np.inf)
        if length < len(tokens):
            log_q.append(float(np.log(q[tokens[length]])))
            state = moves.step(state, tokens[length])
            actions += 1
            said = list(moves.answer(tokens[: length + 1]))
    return log_q, log_q_stop
