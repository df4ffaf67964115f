"""Problems: from a run file's declaration to prompts, legal moves and log R."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from posteriori import templates
from posteriori.config import ProblemConfig, RewardTerm, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import automata, constrained, infilling, product, tempered
from posteriori.problems.problem import Problem
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt

__all__ = ["Problem", "build_problem", "build_problems"]

_TERMS: dict[str, Callable[[ProblemConfig], tuple[RewardTerm, ...]]] = {
    "tempered": tempered.terms,
    "constrained": constrained.terms,
    "infilling": infilling.terms,
    "product": product.terms,
}


def build_problems(config: RunConfig, lm: LanguageModel) -> list[Problem]:
    """Every problem of a run, checked against the policy's base model.

    Raises:
        UserError: see ``build_problem``.
    """
    reward_models: dict[str, LanguageModel] = {}

    def load(name: str | None) -> LanguageModel:
        if name is None or name == lm.name:
            return lm
        if name not in reward_models:
            reward_models[name] = LanguageModel.load(
                name, dtype=config.dtype, device=str(lm.model.device)
            )
        return reward_models[name]

    return [build_problem(problem, lm, load) for problem in config.problems]


def build_problem(
    config: ProblemConfig,
    lm: LanguageModel,
    load: Callable[[str | None], LanguageModel] | None = None,
) -> Problem:
    """One problem, checked against the policy's base model.

    Args:
        config: its section of the run file.
        lm: the policy's base model.
        load: reward model by name; None names the base model.

    Raises:
        UserError: prompts, templates, alphabet, constraint or lengths do not fit; says which and the fix.
    """
    if config.factory is not None:
        return _from_factory(config, lm)
    prompts = _read_prompts(config)
    legal = _legal_moves(config, lm)
    terms = _TERMS[config.kind](config)
    for prompt in prompts:
        where = f"Problem {config.name!r}, prompt {prompt.id!r}"
        templates.check(config.policy_prompt, set(prompt.fields), where)
        if "z" in templates.fields(config.policy_prompt):
            raise UserError(
                f"{where}: policy_prompt holds {{z}}.", "The policy samples Z behind its prompt."
            )
        for term in terms:
            templates.check(term.context, set(prompt.fields), where)
            templates.check(term.target, set(prompt.fields), where)
            if ("{z}" in term.context) and ("{z}" in term.target):
                raise UserError(
                    f"{where}: {{z}} is in both context and target.", "Use {z} once in a term."
                )
    models = [load(term.model) if load else lm for term in terms]
    for model in models:
        if model is not lm and model.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
            raise UserError(
                f"Problem {config.name!r}: reward model {model.name} has another tokenizer than {lm.name}.",
                "Choose a reward model with the policy's tokenizer.",
            )
    reward = ProductReward(terms, models, lambda prompt: legal)

    def policy_ids(prompt: Prompt) -> list[int]:
        return lm.context(templates.fill(config.policy_prompt, prompt.fields).before)

    problem = Problem(config.name, prompts, reward, lm, policy_ids, lambda prompt: legal)
    for prompt in prompts:
        sizes = [(lm, len(problem.policy_ids(prompt)) + config.max_tokens)]
        sizes += [(model, reward.longest(prompt)) for model in models]
        for model, size in sizes:
            if size > model.context_tokens:
                raise UserError(
                    f"Problem {config.name!r}, prompt {prompt.id!r} needs up to {size} tokens, but the context of "
                    f"{model.name} is {model.context_tokens}.",
                    "Lower max_tokens or shorten the prompt.",
                )
    return problem


def _from_factory(config: ProblemConfig, lm: LanguageModel) -> Problem:
    module_name, _, attribute = (config.factory or "").partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as cause:
        raise UserError(
            f"Problem {config.name!r}: cannot import factory {config.factory!r}: {cause}.",
            "Write it as package.module:function and run where that module can be imported.",
        ) from cause
    problem = factory(config, lm)
    if not isinstance(problem, Problem):
        raise UserError(
            f"Problem {config.name!r}: {config.factory} returned {type(problem).__name__}.",
            "Return a posteriori.problems.Problem.",
        )
    return problem


def _read_prompts(config: ProblemConfig) -> list[Prompt]:
    rows: Sequence[dict[str, str]]
    if isinstance(config.prompts, Path):
        rows = _read_lines(config.prompts)
    else:
        rows = config.prompts
    if not rows:
        raise UserError(
            f"Problem {config.name!r} has no prompts.", "Give at least one, such as {x: Once}."
        )
    prompts = []
    for index, row in enumerate(rows):
        identity = row.get("id", str(index))
        prompts.append(Prompt(identity, {key: value for key, value in row.items() if key != "id"}))
    if len({prompt.id for prompt in prompts}) != len(prompts):
        raise UserError(
            f"Problem {config.name!r}: two prompts have the same id.", "Give each its own id."
        )
    return prompts


def _read_lines(path: Path) -> list[dict[str, str]]:
    """JSON objects of strings, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as cause:
        raise UserError(
            f"Cannot read prompts from {path}: {cause.strerror}.", "Check the path."
        ) from cause
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as cause:
            raise UserError(
                f"{path}, line {number} is not JSON: {cause.msg}.", "Mend the line."
            ) from cause
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            raise UserError(
                f"{path}, line {number} is not an object of strings.",
                'Write one object a line, such as {"x": "Once upon a time"}.',
            )
        rows.append(row)
    return rows


def _legal_moves(config: ProblemConfig, lm: LanguageModel) -> LegalMoves:
    if config.stop is not None:
        stop = lm.one_token(config.stop, "Terminator")
    elif lm.tokenizer.eos_token_id is not None:
        stop = int(lm.tokenizer.eos_token_id)
    else:
        raise UserError(
            f"{lm.name} has no end-of-sequence token.",
            "Name the terminator with `stop`, such as '.'.",
        )
    if config.alphabet == "vocabulary":
        alphabet = [i for i in range(lm.vocabulary_size) if i != stop and i not in lm.special_ids]
    else:
        alphabet = [lm.one_token(text, "Alphabet entry") for text in config.alphabet]
    if config.constraint is None:
        return LegalMoves.free(alphabet, stop, config.min_tokens, config.max_tokens)
    if config.constraint.regex is not None:
        automaton = automata.from_regex(config.constraint.regex, [lm.text([i]) for i in alphabet])
    else:
        required = [lm.one_token(text, "Required token") for text in config.constraint.contains]
        automaton = automata.containing(required, alphabet)
    next_state, accepting = automaton
    return LegalMoves(
        alphabet=np.asarray(alphabet, dtype=np.int64),
        stop=stop,
        min_tokens=config.min_tokens,
        max_tokens=config.max_tokens,
        next_state=next_state,
        accepting=accepting,
    )
