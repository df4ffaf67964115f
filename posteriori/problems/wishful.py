"""Label-revealed rationales: Z's that the base LM writes when it is shown the Y they are to explain.

A prompt that reveals Y makes a rationale that fits Y likely at once, whereas sampling without Y may never
find one. The Z's seed the replay buffer as gold (paper, section 4.3); they are proposals, not targets:
log R decides what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from posteriori import templates
from posteriori.decoding import sample
from posteriori.lm import LanguageModel
from posteriori.problems.problem import Problem
from posteriori.seams import Prompt


def alphanumeric(text: str) -> bool:
    """May a token of this text stand in a rationale? Words and numbers, with their leading space."""
    return text.strip().isalnum()


def wishful(
    problem: Problem,
    prompt: Prompt,
    reveal: str,
    n: int,
    seed: int,
    *,
    lm: LanguageModel | None = None,
    keep: Callable[[str], bool] = alphanumeric,
) -> list[list[int]]:
    """Distinct legal Z's drawn with Y revealed, each cut before its first token that is not kept.

    Args:
        problem: whose legal moves the Z's are.
        prompt: X with its Y.
        reveal: template of what the LM reads, such as ``"{x} {y}, because it is"``.
        n: draws; draws that are equal, or illegal once they are cut, make the result shorter.
        seed: of the draws.
        lm: who writes; None: the policy's base model.
        keep: of the text of a token.
    """
    writer = lm or problem.lm
    moves = problem.moves(prompt)
    context = writer.context(templates.fill(reveal, prompt.fields).before)
    found: dict[tuple[int, ...], None] = {}
    for drawn in sample(writer, context, moves, n, seed):
        tokens = list(moves.actions(drawn.tokens))
        cut = next((i for i, t in enumerate(tokens) if not keep(writer.text([t]))), len(tokens))
        kept = tokens[:cut]
        try:
            legal = bool(moves.stop_legal(moves.execute(kept))[-1])
        except ValueError:
            legal = False
        if legal:
            found[tuple(kept)] = None
    return [list(z) for z in found]


def with_wishful(problem: Problem, reveal: str, n: int, seed: int) -> Problem:
    """The problem with n label-revealed draws of every training X among its gold Z's.

    Args:
        problem: its gold Z's, if it has any, stay.
        reveal: see :func:`wishful`.
        n: draws for each X.
        seed: of the first X; the others count on from it.
    """
    gold = {identity: [list(z) for z in known] for identity, known in problem.gold.items()}
    for index, prompt in enumerate(problem.prompts):
        known = gold.setdefault(prompt.id, [])
        known += [z for z in wishful(problem, prompt, reveal, n, seed + index) if z not in known]
    return replace(problem, gold={identity: known for identity, known in gold.items() if known})
