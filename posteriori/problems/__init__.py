"""Problems: from a run file's declaration to prompts, legal moves and log R."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from posteriori import lookahead, templates
from posteriori.config import ProblemConfig, RewardTerm, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.problems import (
    automata,
    constrained,
    contrastive,
    infilling,
    preference,
    product,
    reasoning,
    reverse,
    soft,
    tempered,
    uniform,
)
from posteriori.problems.gold import read_gold
from posteriori.problems.imports import imported
from posteriori.problems.problem import Problem
from posteriori.problems.prompts import read_prompts, refuse_trained
from posteriori.problems.tool import bound_tool
from posteriori.rewards import ProductReward
from posteriori.seams import Prompt, Reward

__all__ = ["Problem", "RewardModels", "build_problem", "build_problems", "needed_fields"]

_TERMS: dict[str, Callable[[ProblemConfig], tuple[RewardTerm, ...]]] = {
    "tempered": tempered.terms,
    "contrastive": contrastive.terms,
    "constrained": constrained.terms,
    "infilling": infilling.terms,
    "reverse": reverse.terms,
    "reasoning": reasoning.terms,
    "uniform": uniform.terms,
    "preference": preference.terms,
    "product": product.terms,
}


class RewardModels:
    """Reward models by name, each loaded once, where the policy's base model is and as precise as it."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._loaded: dict[str, LanguageModel] = {}

    def __call__(self, name: str | None) -> LanguageModel:
        """The model of that name; None names the base model.

        Raises:
            UserError: nothing loadable is there.
        """
        model = self._lm.model
        if name is None or name == self._lm.name:
            return self._lm
        if name not in self._loaded:
            dtype = str(model.dtype).removeprefix("torch.")
            self._loaded[name] = LanguageModel.load(name, dtype, str(model.device))
        return self._loaded[name]


def build_problems(config: RunConfig, lm: LanguageModel) -> list[Problem]:
    """Every problem of a run, checked against the policy's base model.

    Raises:
        UserError: see ``build_problem``.
    """
    models = RewardModels(lm)
    return [build_problem(problem, lm, models) for problem in config.problems]


def build_problem(
    config: ProblemConfig, lm: LanguageModel, models: RewardModels | None = None
) -> Problem:
    """One problem, checked against the policy's base model.

    Args:
        config: its section of the run file.
        lm: the policy's base model.
        models: reward models that other problems may have loaded already.

    Raises:
        UserError: prompts, templates, alphabet, constraint, lengths or reward model do not fit; says which and the fix.
    """
    models = models or RewardModels(lm)
    test_prompts = read_prompts(config, config.test_prompts, "test-")
    if config.factory is not None:
        problem = _from_factory(config, lm)
    else:
        problem = _declared(config, lm, models, read_prompts(config, config.prompts), test_prompts)
    if test_prompts:
        problem = replace(problem, test_prompts=test_prompts)
        refuse_trained(config, problem)
    return replace(problem, gold=read_gold(config.gold, problem)) if config.gold else problem


def needed_fields(config: ProblemConfig, known: Iterable[str]) -> tuple[set[str], set[str]]:
    """Fields of a prompt that the policy sees, and those that log R reads.

    Args:
        config: section of the run file.
        known: fields that the problem's prompts have; functions of the user's may read them all.
    """
    if config.kind == "python":
        return set(known), set(known)
    seen = templates.fields(config.policy_prompt)
    if config.has_factor:
        return seen, set(known)
    read = {"y"} if config.labels else set()
    for term in _TERMS[config.kind](config):
        read |= templates.fields(term.target) | templates.fields(term.context)
    return seen, read - {"z", "stop"}


def _declared(
    config: ProblemConfig,
    lm: LanguageModel,
    reward_models: RewardModels,
    prompts: Sequence[Prompt],
    test_prompts: Sequence[Prompt],
) -> Problem:
    """A problem whose reward is a product of likelihoods and factors; raises like ``build_problem``."""
    legal = _looking_ahead(config, _legal_moves(config, lm))
    terms = _TERMS[config.kind](config)
    if config.labels:
        _check_labels(config, (*prompts, *test_prompts))
    without_z = {"policy_prompt": config.policy_prompt}
    if config.preference is not None and config.preference.reference is not None:
        without_z["preference.reference"] = config.preference.reference
    for prompt in (*prompts, *test_prompts):
        where = f"Problem {config.name!r}, prompt {prompt.id!r}"
        for key, template in without_z.items():
            templates.check(template, set(prompt.fields), where)
            if templates.fields(template) & {"z", "stop"}:
                raise UserError(
                    f"{where}: {key} {template!r} holds {{z}} or {{stop}}.",
                    "It is written before any Z is: use the prompt's fields alone.",
                )
        for term in terms:
            templates.check(term.context, set(prompt.fields), where)
            templates.check(term.target, set(prompt.fields), where)
            if ("{z}" in term.context) and ("{z}" in term.target):
                raise UserError(
                    f"{where}: {{z}} is in both context and target.", "Use {z} once in a term."
                )
    models = [reward_models(term.model) for term in terms]
    for model in models:
        if model is not lm and model.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
            raise UserError(
                f"Problem {config.name!r}: reward model {model.name} has another tokenizer than {lm.name}.",
                "Choose a reward model with the policy's tokenizer.",
            )
    product_reward = ProductReward(terms, models, lambda prompt: legal)
    reward = _with_factors(product_reward, config, lm, prompts[0])

    def policy_ids(prompt: Prompt) -> list[int]:
        return lm.context(templates.fill(config.policy_prompt, prompt.fields).before)

    problem = Problem(config.name, prompts, reward, lm, policy_ids, lambda prompt: legal)
    _refuse_indistinguishable(config, problem)
    for prompt in (*prompts, *test_prompts):
        sizes = [(lm, len(problem.policy_ids(prompt)) + legal.longest)]
        sizes += [(model, product_reward.longest(prompt)) for model in models]
        for model, size in sizes:
            if size > model.context_tokens:
                raise UserError(
                    f"Problem {config.name!r}, prompt {prompt.id!r} needs up to {size} tokens, but the context of "
                    f"{model.name} is {model.context_tokens}.",
                    "Lower max_tokens or shorten the prompt.",
                )
    return problem


def _with_factors(
    likelihood: ProductReward, config: ProblemConfig, lm: LanguageModel, prompt: Prompt
) -> Reward:
    """What a kind or a constraint multiplies the likelihoods by."""
    reward: Reward = likelihood
    where = f"Problem {config.name!r}"
    if config.labels:
        answer = likelihood.alike(reasoning.ANSWER)
        reward = reasoning.LabelPenalty(
            reward, answer, config.labels, config.wrong_label_penalty_nats
        )
    if config.preference is not None:
        reward = preference.PreferenceReward(
            reward,
            preference.scorer(config, prompt.fields),
            lm.text,
            config.preference.reference,
            1 / config.temperature,
            f"{where}: reward model {config.preference.model}",
        )
    constraint = config.constraint
    unmasked = []
    if constraint is not None and constraint.predicate is not None:
        unmasked.append(soft.predicate(constraint.predicate, where))
    if constraint is not None and not constraint.masked:
        unmasked.append(soft.accepted_by(_moves(config, lm, masked=True)))
    if unmasked or config.kind == "uniform":
        reward = soft.SoftConstraint(
            reward,
            soft.all_of(unmasked),
            lm.text,
            constraint.floor_nats if constraint is not None else 0.0,
            f"{where}: its constraint",
            uniform=config.kind == "uniform",
        )
    return reward


def _check_labels(config: ProblemConfig, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.fields.get("y") not in config.labels:
            raise UserError(
                f"Problem {config.name!r}, prompt {prompt.id!r}: y is {prompt.fields.get('y')!r}, which is not "
                f"one of the labels {', '.join(map(repr, config.labels))}.",
                "List every label, spelt as in the data, or mend the prompt.",
            )


def _refuse_indistinguishable(config: ProblemConfig, problem: Problem) -> None:
    """Refuse two X's with different rewards that look the same to the policy.

    Raises:
        UserError: names both, the fields in which they differ, and what the policy should see.
    """
    seen: dict[tuple[int, ...], Prompt] = {}
    for prompt in problem.prompts:
        first = seen.setdefault(tuple(problem.policy_ids(prompt)), prompt)
        _, read = needed_fields(config, prompt.fields)
        differ = sorted(name for name in read if prompt.fields[name] != first.fields.get(name))
        if differ:
            several = "{" + "}, {".join(differ) + "}"
            raise UserError(
                f"Problem {config.name!r}: prompts {first.id!r} and {prompt.id!r} differ in {several}, but the "
                f"policy sees the same prompt {config.policy_prompt!r} for both, and one q cannot be two posteriors.",
                f"Put {several} into policy_prompt, or keep one of the prompts.",
            )


def _from_factory(config: ProblemConfig, lm: LanguageModel) -> Problem:
    factory = imported(config.factory or "", "factory", f"Problem {config.name!r}")
    problem = factory(config, lm)
    if not isinstance(problem, Problem):
        raise UserError(
            f"Problem {config.name!r}: {config.factory} returned {type(problem).__name__}.",
            "Return a posteriori.problems.Problem.",
        )
    if config.lookahead is None:
        return problem
    known: dict[int, tuple[LegalMoves, LegalMoves]] = {}

    def looking_ahead(prompt: Prompt) -> LegalMoves:
        moves = problem.moves(prompt)
        # X's that share their moves go on sharing them, and what is derived from them.
        return known.setdefault(id(moves), (moves, _looking_ahead(config, moves)))[1]

    return replace(problem, legal_moves=looking_ahead)


def _legal_moves(config: ProblemConfig, lm: LanguageModel) -> LegalMoves:
    """The moves of q: masked by the constraint, unless it is left to the reward."""
    return _moves(config, lm, masked=config.constraint is not None and config.constraint.masked)


def _looking_ahead(config: ProblemConfig, moves: LegalMoves) -> LegalMoves:
    """The moves with the run file's lookahead, if it names one."""
    if config.lookahead is None:
        return moves
    where = f"Problem {config.name!r}"
    found = lookahead.load(config.lookahead, moves.alphabet, 1 / config.temperature, where)
    return moves.looking_ahead(found)


def _moves(config: ProblemConfig, lm: LanguageModel, *, masked: bool) -> LegalMoves:
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
    tool = bound_tool(config.tool, lm, f"Problem {config.name!r}") if config.tool else None
    constraint = config.constraint
    if constraint is None or not masked:
        return LegalMoves.free(alphabet, stop, config.min_tokens, config.max_tokens, tool)
    texts = [lm.text([token]) for token in alphabet]
    if constraint.regex is not None:
        automaton = automata.from_regex(constraint.regex, texts)
    elif constraint.words is not None:
        automaton = automata.from_regex(automata.words_pattern(*constraint.words), texts)
    elif constraint.contains:
        required = [lm.one_token(text, "Required token") for text in constraint.contains]
        automaton = automata.containing(required, alphabet)
    elif constraint.automaton is not None:
        where = f"Problem {config.name!r}"
        automaton = automata.from_function(constraint.automaton, lm, alphabet, where)
    else:  # a predicate alone
        return LegalMoves.free(alphabet, stop, config.min_tokens, config.max_tokens, tool)
    next_state, accepting = automaton
    return LegalMoves(
        alphabet=np.asarray(alphabet, dtype=np.int64),
        stop=stop,
        min_tokens=config.min_tokens,
        max_tokens=config.max_tokens,
        next_state=next_state,
        accepting=accepting,
        tool=tool,
    )
