"""Chains of a sampler on held-out sums: right answers, valid calls, and what the reward says of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import Problem
from posteriori.seams import Engine, Prompt, Sample, SampleRequest

REQUESTS_IN_FLIGHT = 16

THOUGHT_TOKENS = 48
"""Room for a chain of five operands with results and the answer behind it."""

_CHAIN = re.compile(r" -?\d+ [+-] \d+ = -?\d+(, -?\d+ [+-] \d+ = -?\d+)*")
_LAST_RESULT = re.compile(r"= (-?\d+)$")
_STATED = re.compile(r"The answer is (-?\d+)\.")


@dataclass(frozen=True)
class Chain:
    """One sampled Z and the integer it ends in; None where there is none to be read."""

    text: str
    answer: int | None
    tokens: Sequence[int]


def draw(
    engine: Engine,
    requests: Sequence[tuple[Sequence[int], LegalMoves]],
    n: int,
    version: int,
    seed: int,
) -> list[list[Sample]]:
    """n samples for each (prompt, legal moves), from q as it is, at temperature 1."""
    waiting = deque(
        SampleRequest(str(i), ids, moves, n, adapter_version=version, seed=seed * 100_003 + i)
        for i, (ids, moves) in enumerate(requests)
    )
    finished: dict[str, list[Sample]] = {}
    while waiting or engine.unfinished:
        while waiting and engine.unfinished < REQUESTS_IN_FLIGHT:
            engine.submit(waiting.popleft())
        for group in engine.step():
            finished[group.request.id] = group.samples
    return [finished[str(i)] for i in range(len(requests))]


def chains(
    engine: Engine, problem: Problem, n: int, version: int, seed: int
) -> dict[str, list[Chain]]:
    """n chains with the calculator for each X of a problem."""
    requests = [(problem.policy_ids(prompt), problem.moves(prompt)) for prompt in problem.prompts]
    drawn = draw(engine, requests, n, version, seed)
    return {
        prompt.id: [_chain(problem.lm, sample, last_result) for sample in samples]
        for prompt, samples in zip(problem.prompts, drawn, strict=True)
    }


def thoughts(
    engine: Engine, problem: Problem, lm: LanguageModel, shots: str, n: int, seed: int
) -> dict[str, list[Chain]]:
    """n chains of thought for each X: worked examples in the prompt, any text, no calculator."""
    stop = int(lm.tokenizer.eos_token_id)
    alphabet = [i for i in range(lm.vocabulary_size) if i != stop and i not in lm.special_ids]
    moves = LegalMoves.free(alphabet, stop, 1, THOUGHT_TOKENS)
    requests = [(lm.context(f"{shots} {p.fields['x']}"), moves) for p in problem.prompts]
    drawn = draw(engine, requests, n, 0, seed)
    return {
        prompt.id: [_chain(lm, sample, _stated) for sample in samples]
        for prompt, samples in zip(problem.prompts, drawn, strict=True)
    }


def _chain(lm: LanguageModel, sample: Sample, read: Callable[[str], int | None]) -> Chain:
    text = lm.text(sample.tokens)
    return Chain(text, read(text), sample.tokens)


def _stated(text: str) -> int | None:
    """The first answer that a text states in words."""
    found = _STATED.search(text)
    return int(found[1]) if found else None


def accuracy(problem: Problem, drawn: Mapping[str, Sequence[Chain]]) -> dict[str, float]:
    """``right``, ``unparsed`` and ``valid``: shares of all chains.

    A chain is right if it ends in the answer; one without a number at its end is unparsed, and wrong;
    a valid one is made of answered calls of two operands and nothing else.
    """
    every = [
        (chain, int(problem.by_id[identity].fields["answer"]))
        for identity, found in drawn.items()
        for chain in found
    ]
    return {
        "right": float(np.mean([chain.answer == answer for chain, answer in every])),
        "unparsed": float(np.mean([chain.answer is None for chain, _ in every])),
        "valid": float(np.mean([is_valid(chain.text) for chain, _ in every])),
    }


def last_result(text: str) -> int | None:
    """The tool's last result, if the chain ends in it."""
    found = _LAST_RESULT.search(text)
    return int(found[1]) if found else None


def is_valid(text: str) -> bool:
    """Answered calls of two operands, and nothing else?"""
    return _CHAIN.fullmatch(text) is not None


def log_rewards(
    problem: Problem, drawn: Mapping[str, Sequence[Chain]], items: int = 20
) -> list[float]:
    """log R of the first chain of the first X's, nats."""
    found = []
    for prompt in problem.prompts[:items]:
        scores = problem.reward.log_reward(prompt, [drawn[prompt.id][0].tokens])
        found.append(float(scores[0][-1]))
    return found


def written(problem: Problem, prompt: Prompt, actions: str) -> Chain:
    """A Z given by the text of its actions."""
    tokens = problem.moves(prompt).execute(problem.lm.encode(actions))
    return Chain(problem.text(tokens), None, tokens)


def right_chain(expression: str) -> str:
    """Actions of the chain that reduces a sum from the left."""
    left, *rest = expression.split()
    value, calls = int(left), []
    for sign, right in zip(rest[::2], rest[1::2], strict=True):
        calls.append(f" {value} {sign} {right} =")
        value += int(right) if sign == "+" else -int(right)
    return ",".join(calls)
