"""The posterior predictive of listed answers, from chains that the engine draws."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from functools import partial

import numpy as np

from api import sampling
from api.catalogue import Resolved
from api.errors import wrong
from api.service import Service
from posteriori import predictive, templates
from posteriori.config import ProblemConfig, RewardTerm
from posteriori.lm import LanguageModel
from posteriori.messages import Answer, PredictiveRequest, PredictiveResponse, Warned
from posteriori.problems.reasoning import ANSWER
from posteriori.rewards import likelihoods


def answer_term(config: ProblemConfig) -> RewardTerm:
    """The factor p(y | x, z) of a problem.

    Raises:
        ApiError: its reward has none.
    """
    if config.kind == "reasoning":
        return ANSWER
    for term in config.terms:
        if "y" in templates.fields(term.target) and "z" in templates.fields(term.context):
            return term
    raise wrong(
        "no_answers",
        f"Log R of problem {config.name!r} has no factor p(y | x, z).",
        "Ask for a problem of kind `reasoning`, or with a term of target {y} and context {x}{z}.",
        "problem",
    )


def _answering(resolved: Resolved) -> LanguageModel:
    """The LM whose p(y | x, z) log R holds: the base LM, or what an M step has made of it."""
    product = likelihoods(resolved.problem.reward)
    for term, lm in product.terms if product is not None else ():
        if "y" in templates.fields(term.target):
            return lm
    return resolved.problem.lm


async def predict(
    service: Service, resolved: Resolved, asked: PredictiveRequest
) -> PredictiveResponse:
    """Draw chains and weigh the answers.

    Raises:
        ApiError: the problem has no answers, the policy sees Y, or an answer is listed twice.
    """
    term = answer_term(resolved.config)
    if len(set(asked.answers)) < len(asked.answers):
        raise wrong("same_answers", "An answer is listed twice.", "List each once.", "answers")
    if "y" in templates.fields(resolved.config.policy_prompt):
        fix = "Train a policy whose prompt leaves {y} out."
        raise wrong("policy_sees_y", "The policy is conditioned on Y.", fix, "problem")
    sampling.check_size(service, resolved, asked.n)
    seed = sampling.chosen_seed(asked.seed)
    drawn = sampling.Drawn()
    async with aclosing(sampling.draw(service, resolved, asked.n, seed, drawn)) as drawing:
        async for _ in drawing:
            pass
    work = partial(_predictive, resolved, asked, drawn, term)
    found = await service.scoring.run(work, long=True)
    warnings = []
    if found.effective_chains < sampling.LOW_ESS:
        why = f"The weights are worth {found.effective_chains:.1f} of {found.chains} chains."
        warnings.append(Warned(code="low_ess", message=why))
    if found.unanswered:
        why = f"{found.unanswered} of {found.chains} chains give no listed answer any probability."
        warnings.append(Warned(code="unanswered", message=why))
    return PredictiveResponse(
        run=resolved.run,
        problem=resolved.problem.name,
        prompt=resolved.prompt.id,
        fields=dict(resolved.prompt.fields),
        version=resolved.version,
        seed=seed,
        rule=asked.rule,
        answers=[
            Answer(answer=answer, probability=float(p), standard_error=float(se))
            for answer, p, se in zip(
                found.answers, found.probabilities, found.standard_errors, strict=True
            )
        ],
        best=found.best,
        entropy=sampling.json_number(found.entropy),
        within_entropy=sampling.json_number(found.within_entropy),
        mutual_information=sampling.json_number(found.mutual_information),
        chains=found.chains,
        effective_chains=found.effective_chains,
        unanswered=found.unanswered,
        warnings=warnings,
    )


def _predictive(
    resolved: Resolved, asked: PredictiveRequest, drawn: sampling.Drawn, term: RewardTerm
) -> predictive.Predictive:
    order = range(len(drawn.samples))
    problem = resolved.problem
    prompt = replace(
        resolved.prompt,
        fields={name: text for name, text in resolved.prompt.fields.items() if name != "y"},
    )
    return predictive.predict(
        problem,
        _answering(resolved),
        prompt,
        [drawn.samples[i].tokens for i in order],
        asked.answers,
        rule=asked.rule,
        log_q=np.array([drawn.samples[i].total_log_q for i in order]),
        answer=term,
    )
