"""Prompting: say in words what is wanted and sample the base LM.

Prompts are built by templates over the fields of an X and of worked examples: zero-shot (no examples),
in-context learning (examples with their Z) and chain of thought (examples whose Z is a rationale, the
answer behind it). The samples are those of another policy prompt, so their log q is known and they can
still be weighted by R/q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baselines import local
from baselines.draws import Draws
from posteriori import templates
from posteriori.errors import UserError
from posteriori.problems import Problem
from posteriori.seams import Prompt

Example = Mapping[str, str]


@dataclass(frozen=True)
class PromptTemplate:
    """What the LM reads before Z.

    Attributes:
        query: template over the fields of X, such as ``Question: {x} Answer:``; Z follows it.
        shot: template over the fields of an example, such as ``Question: {x} Answer:{z}``; empty
            where there are no examples.
        instruction: text before everything.
        separator: between instruction, shots and query.
    """

    query: str = "{x}"
    shot: str = ""
    instruction: str = ""
    separator: str = "\n"

    def fill(self, fields: Mapping[str, str], examples: Sequence[Example] = ()) -> str:
        """The whole prompt.

        Raises:
            UserError: a template names a field that X or an example does not have, or examples are
                given without a template for them.
        """
        if bool(examples) != bool(self.shot):
            raise UserError(
                f"{len(examples)} examples, but the template of a shot is {self.shot!r}.",
                "Give both a shot template and examples, or neither.",
            )
        parts = [self.instruction] if self.instruction else []
        parts += [_filled(self.shot, example, f"Example {k}") for k, example in enumerate(examples)]
        return self.separator.join([*parts, _filled(self.query, fields, "Query")])


def zero_shot(query: str, instruction: str = "") -> PromptTemplate:
    """An instruction and the query."""
    return PromptTemplate(query=query, instruction=instruction)


def few_shot(query: str, shot: str | None = None, instruction: str = "") -> PromptTemplate:
    """In-context learning: each example reads like the query with its Z behind it."""
    return PromptTemplate(query=query, shot=shot or query + "{z}", instruction=instruction)


def chain_of_thought(query: str, answer: str = "{y}", instruction: str = "") -> PromptTemplate:
    """Examples spell out a rationale Z and then their answer; the LM writes a rationale of its own."""
    return PromptTemplate(query=query, shot=query + "{z}" + answer, instruction=instruction)


def _filled(template: str, fields: Mapping[str, str], where: str) -> str:
    missing = sorted(templates.fields(template) - set(fields))
    if missing:
        raise UserError(
            f"{where}: prompt template {template!r} uses {{{missing[0]}}}, which is not given.",
            f"Known fields: {', '.join(sorted(fields))}.",
        )
    # Filled by the templates of a run file, where {z} is cut out: an example's Z is a plain field here.
    renamed = template.replace("{z}", "{rationale}").replace("{stop}", "")
    return templates.fill(renamed, {**fields, "rationale": fields.get("z", "")}).before


def sample(
    problem: Problem,
    prompt: Prompt,
    n: int,
    seed: int,
    *,
    template: PromptTemplate | None = None,
    examples: Sequence[Example] = (),
    temperature: float = 1.0,
) -> Draws:
    """n samples of the base LM behind a prompt in words; the legal moves are the problem's.

    Args:
        problem, prompt: what to sample.
        n: samples.
        seed: of the draws.
        template: None: the policy's own prompt, so this is the base LM with local masking.
        examples: worked examples, whose fields include ``z``.
        temperature: token-level.

    Raises:
        UserError: the template and the fields do not fit, or the prompt is too long for the model.
    """
    ids = problem.policy_ids(prompt)
    if template is not None:
        ids = problem.lm.context(template.fill(prompt.fields, examples))
    longest = len(ids) + problem.moves(prompt).max_tokens
    if longest > problem.lm.context_tokens:
        raise UserError(
            f"Prompt and Z take up to {longest} tokens, but the context of {problem.lm.name} is "
            f"{problem.lm.context_tokens}.",
            "Give fewer or shorter examples.",
        )
    return local.sample(problem, prompt, n, seed, temperature=temperature, prompt_ids=ids)
