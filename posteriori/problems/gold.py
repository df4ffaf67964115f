"""Known Z's of a problem's X's: reference answers, gold rationales, or those of a prompt that shows Y.

They enter the replay buffer once a run, as trajectories like any other: drawn by the buffer's shares,
so that a gold Z of high reward comes back often and one of low reward only when draws are uniform, and
evicted when its X has no room for younger ones. They are not pinned: the posterior decides what they
are worth, and a pinned Z of low reward would take draws for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posteriori import templates
from posteriori.config import GoldConfig
from posteriori.data import read
from posteriori.data.records import malformed
from posteriori.errors import UserError
from posteriori.problems.problem import Problem
from posteriori.seams import Prompt

Gold = dict[str, list[list[int]]]
"""Token ids of Z's without ⊤, by id of a training prompt."""


def read_gold(config: GoldConfig, problem: Problem) -> Gold:
    """Gold Z's of a run file, tokenised and checked; each once for an X.

    Args:
        config: where they come from.
        problem: whose X's and legal moves they must fit.

    Raises:
        UserError: there are none, a line is malformed, names no X, or a Z is not a path of legal moves.
    """
    if config.template is not None:
        pairs = _from_template(config.template, problem)
    else:
        assert config.file is not None  # the configuration holds exactly one of the two
        pairs = _from_file(config.file, problem)
    gold: Gold = {}
    for prompt, text in pairs:
        tokens = tokenised(problem, prompt, text)
        known = gold.setdefault(prompt.id, [])
        if tokens not in known:
            known.append(tokens)
    if not gold:
        raise UserError(
            f"Problem {problem.name!r}: no prompt has all fields of the gold template {config.template!r}.",
            "Name fields that some prompts have.",
        )
    return gold


def tokenised(problem: Problem, prompt: Prompt, text: str) -> list[int]:
    """Canonical token ids of a Z, of its actions where a tool answers.

    Raises:
        UserError: it is not a complete path of legal moves; says where it leaves them.
    """
    tokens = problem.lm.encode(text)
    moves = problem.moves(prompt)
    try:
        complete = bool(moves.stop_legal(moves.execute(tokens))[-1])
        wrong = "may not end there"
    except ValueError as cause:
        complete, wrong = False, str(cause)
    if not complete:
        raise UserError(
            f"Problem {problem.name!r}, prompt {prompt.id!r}: gold Z {text!r} is no legal Z: {wrong}.",
            "Check its leading space, `alphabet`, `constraint`, `min_tokens` and `max_tokens`.",
        )
    return tokens


def _from_template(template: str, problem: Problem) -> Sequence[tuple[Prompt, str]]:
    names = templates.fields(template)
    return [
        (prompt, templates.fill(template, prompt.fields).before)
        for prompt in problem.prompts
        if names <= set(prompt.fields)
    ]


def _from_file(path: Path, problem: Problem) -> Sequence[tuple[Prompt, str]]:
    pairs = []
    for record in read(path, "objects"):
        if set(record.fields) != {"id", "z"}:
            raise malformed(record.where, f"fields {', '.join(record.fields)}", "`id` and `z`")
        prompt = problem.by_id.get(record.fields["id"])
        if prompt is None:
            raise malformed(
                record.where, f"no prompt {record.fields['id']!r}", "the id of a training prompt"
            )
        pairs.append((prompt, record.fields["z"]))
    return pairs
