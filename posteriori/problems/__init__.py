"""Problems: from a run file's declaration to prompts, legal moves and log R."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from posteriori import templates
from posteriori.config import ProblemConfig, RewardTerm, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import automata, constrained, infilling, product, tempered
from posteriori.problems.gold import read_gold
from posteriori.problems.problem import Problem
from posteriori.problems.prompts import read_prompts, refuse_trained
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
    test_prompts = read_prompts(config, config.test_prompts, "test-")
    if config.factory is not None:
        problem = _from_factory(config, lm)
    else:
        problem = _declared(config, lm, load, read_prompts(config, config.prompts), test_prompts)
    if test_prompts:
        problem = replace(problem, test_prompts=test_prompts)
        refuse_trained(problem)
    return replace(problem, gold=read_gold(config.gold, problem)) if config.gold else problem


def _declared(
    config: ProblemConfig,
    lm: LanguageModel,
    load: Callable[[str | None], LanguageModel] | None,
    prompts: Sequence[Prompt],
    test_prompts: Sequence[Prompt],
) -> Problem:
    """A problem whose reward is a product of likelihoods; raises like ``build_problem``."""
    legal = _legal_moves(config, lm)
    terms = _TERMS[config.kind](config)
    for prompt in (*prompts, *test_prompts):
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
    for prompt in (*prompts, *test_prompts):
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
