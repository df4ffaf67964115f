"""Left-to-right decoding with local rules: masking, token-level temperature, nucleus, greedy.

Each is cheap and none is the posterior: masking forgets how hard a prefix is to complete, a token-level
temperature renormalises at every step, a nucleus cuts what the posterior may need. They share the legal
moves with everything else, so their samples are valid.
"""

from __future__ import annotations

import numpy as np

from baselines.draws import Draws, moves_without_tool, unweighted
from posteriori import decoding
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.rows import Rows
from posteriori.seams import Prompt


def sample(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    lm: LanguageModel | None = None,
    prompt_ids: list[int] | None = None,
) -> Draws:
    """n samples of the base LM over the legal moves: local masking, tempering or nucleus sampling.

    Args:
        problem, prompt: what to sample.
        n: samples.
        seed: of the draws.
        temperature: token-level.
        top_p: mass of the nucleus.
        lm: None: the problem's base LM.
        prompt_ids: what the LM sees before Z; None: what the policy sees.
    """
    moves = problem.moves(prompt)
    ids = problem.policy_ids(prompt) if prompt_ids is None else prompt_ids
    drawn = decoding.sample(lm or problem.lm, ids, moves, n, seed, temperature, top_p)
    return unweighted(
        problem,
        prompt,
        [list(sample.tokens) for sample in drawn],
        np.array([sample.total_log_q for sample in drawn]),
        decoding.token_forwards(ids, drawn),
    )


def greedy(problem: Problem, prompt: Prompt, n: int, seed: int) -> Draws:
    """The most probable legal move at every step; n copies of one Z, for there is nothing random in it."""
    moves = moves_without_tool(problem, prompt, "greedy decoding")
    rows = Rows(problem.lm, problem.policy_ids(prompt), moves)
    tokens: list[int] = []
    state = 0
    while len(tokens) < moves.max_tokens:
        column = int(moves.scores(rows.logits, [(len(tokens), state)])[0].argmax())
        if column == len(moves.alphabet):
            break
        token = int(moves.alphabet[column])
        tokens.append(token)
        state = moves.step(state, token)
        if len(tokens) < moves.max_tokens:
            rows.advance([token])
    return unweighted(problem, prompt, [list(tokens) for _ in range(n)], None, rows.token_forwards)
