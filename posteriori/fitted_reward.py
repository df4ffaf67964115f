"""The part of log R that M steps of variational EM fit, and how their adapter comes into force.

Everybody who scores (rollout actors, the learner, the driver at the end) holds a ``FittedReward`` of
the run's problems and calls :meth:`FittedReward.use` when a newer version of the reward's adapter is
there. Versions are those of its adapter store; 0 is the base LM without an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from posteriori.config import RewardTerm
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.problems import Problem
from posteriori.rewards import ProductReward, ScoredText, layers, likelihoods
from posteriori.seams import Prompt

Objective = Literal["y_given_xz", "joint"]


def store_name(run: str) -> str:
    """Name under which an adapter store keeps the reward's adapters, beside the policy's of ``run``."""
    return f"{run}.reward"  # no run can be called so


class FittedReward:
    """The likelihood terms of a run's problems that share one trainable adapter.

    Args:
        problems: of the run, all scored by their base models so far.
        objective: ``y_given_xz``: terms with {z} in their context, into which p(Z, Y | X) is split;
            ``joint``: all terms with {z}.

    Attributes:
        base: the reward LM without an adapter.
        version: of the adapter in force.

    Raises:
        UserError: there is nothing to fit, or what there is cannot be fitted by one adapter.
    """

    def __init__(self, problems: Sequence[Problem], objective: Objective) -> None:
        self.version = 0
        self._products: list[ProductReward] = []
        self._answers: list[ProductReward] = []
        self._terms: dict[str, list[int]] = {}
        models: list[LanguageModel] = []
        for problem in problems:
            product = _product(problem)
            if objective == "y_given_xz":
                product.terms = [part for term in product.terms for part in _split(*term)]
            found = [i for i, (t, _) in enumerate(product.terms) if _is_fitted(t, objective)]
            for term, model in (product.terms[i] for i in found):
                _check(problem.name, term)
                models += [model] if all(model is not other for other in models) else []
            self._products.append(product)
            self._terms[problem.name] = found
            answers = (getattr(layer, "answer", None) for layer in layers(problem.reward))
            self._answers += [answer for answer in answers if isinstance(answer, ProductReward)]
        if not models:
            raise UserError(
                f"em.objective {objective}: log R of no problem has a term with something given Z.",
                "Use `em` where Z explains a Y, such as kind `reasoning`, or leave it out.",
            )
        if len(models) > 1:
            raise UserError(
                f"An M step fits one reward LM, but the terms to fit are those of "
                f"{', '.join(model.name for model in models)}.",
                "Give the terms of all problems the same `model`.",
            )
        self.base = models[0]

    def use(self, adapter: Path, version: int) -> None:
        """Score by the base LM under this adapter from now on.

        Args:
            adapter: a PEFT directory; it is not read again.
            version: its version.

        Raises:
            UserError: the directory holds no adapter of the reward LM.
        """
        lm = self.base.with_adapter(adapter)
        for answer in self._answers:  # which label the LM prefers is asked of the fitted one
            answer.terms = [(term, lm) for term, _ in answer.terms]
        for product, fitted in zip(self._products, self._terms.values(), strict=True):
            for i in fitted:
                product.terms[i] = (product.terms[i][0], lm)
            product.version = version
        self.version = version

    def scored_texts(
        self, problem: str, prompt: Prompt, sequence: Sequence[int]
    ) -> list[ScoredText]:
        """What the adapter has to make likely for one complete Z: its fitted terms as plain texts."""
        product = self._products[list(self._terms).index(problem)]
        return [product.scored_text(i, prompt, sequence) for i in self._terms[problem]]


def _product(problem: Problem) -> ProductReward:
    product = likelihoods(problem.reward)
    if product is not None:
        return product
    raise UserError(
        f"The reward of problem {problem.name!r} is no product of likelihoods, which M steps fit.",
        "Build it on a ProductReward (a factor around one keeps it as `base`), or leave out `em`.",
    )


def _split(term: RewardTerm, model: LanguageModel) -> list[tuple[RewardTerm, LanguageModel]]:
    """p(Z, Y | X) as p(Z | X) · p(Y | X, Z): the same likelihood, and only the second is fitted."""
    before, z, after = term.target.partition("{z}")
    if not z or not after or after == "{stop}" or term.renormalise or term.token_floor_nats:
        return [(term, model)]
    parts = {"target": before + z}, {"target": after, "context": term.context + before + z}
    return [(term.model_copy(update=part), model) for part in parts]


def _is_fitted(term: RewardTerm, objective: Objective) -> bool:
    return "{z}" in term.context or (objective == "joint" and "{z}" in term.target)


def _check(problem: str, term: RewardTerm) -> None:
    if term.weight <= 0 or term.renormalise or term.token_floor_nats is not None:
        what = f"weight {term.weight:g}"
        if term.renormalise or term.token_floor_nats is not None:
            what = "renormalise" if term.renormalise else "token_floor_nats"
        raise UserError(
            f"Problem {problem!r}: an M step cannot maximise the term ({term.target!r} given "
            f"{term.context!r}) with {what}.",
            "Fit plain likelihoods of positive weight, or leave out `em`.",
        )
