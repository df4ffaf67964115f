"""What to sample: a posterior, its reward terms, constraint, gold and tool, as the run file says them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from posteriori.config.section import Section


class RewardTerm(Section):
    """One factor of R: weight · log p_LM(target | context).

    ``target`` and ``context`` are templates over {x}, {y} (any field of the prompt), {z} and {stop}.
    ``{z}`` excludes the terminator; ``{z}{stop}`` scores it too. p_LM is over the whole vocabulary
    unless ``renormalise``, which restricts it to the legal moves at each position of {z}{stop}.
    ``token_floor_nats`` clips the log-likelihood of every target token from below, which bounds what a
    factor with a negative weight can pay for one improbable token.
    """

    target: str = "{z}{stop}"
    context: str = "{x}"
    weight: float = 1.0
    renormalise: bool = False
    token_floor_nats: float | None = Field(default=None, lt=0)
    model: str | None = None

    @model_validator(mode="after")
    def _one_support(self) -> RewardTerm:
        if self.renormalise and self.token_floor_nats is not None:
            raise ValueError(
                "`token_floor_nats` clips the unrenormalised likelihood: use one of both"
            )
        return self


class ConstraintConfig(Section):
    """A constraint on Z: one of ``regex``, ``contains``, ``words`` and ``automaton``, a ``predicate``, or both.

    ``regex`` must match the whole text of Z; ``contains`` lists alphabet tokens that must all occur;
    ``words`` is the least and greatest number of words; ``automaton`` is an import path ``module:function``
    called as ``function(lm, alphabet)`` that returns a deterministic finite automaton over the alphabet's
    token ids (see ``posteriori.problems.automata``). These mask q, so that every prefix can still be
    completed, unless ``masked`` is false. ``predicate``, an import path called as ``function(text, fields)``,
    cannot be masked. What is not masked multiplies R by e^``floor_nats`` where it fails.
    """

    regex: str | None = None
    contains: tuple[str, ...] = ()
    words: tuple[int, int] | None = None
    automaton: str | None = None
    predicate: str | None = None
    masked: bool = True
    floor_nats: float = Field(default=-10.0, lt=0)

    @property
    def has_floor(self) -> bool:
        """Can a legal Z break it?"""
        return self.predicate is not None or not self.masked

    @model_validator(mode="after")
    def _consistent(self) -> ConstraintConfig:
        given = sum(map(self.changes, ("regex", "contains", "words", "automaton")))
        if given > 1 or (given == 0 and self.predicate is None):
            raise ValueError(
                "give one of `regex`, `contains`, `words` and `automaton`, a `predicate`, or both"
            )
        if self.words is not None and not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"words {list(self.words)} needs 1 <= least <= greatest")
        if self.changes("floor_nats") and not self.has_floor:
            raise ValueError("`floor_nats` belongs to a `predicate` or to `masked: false`")
        return self


class ContrastConfig(Section):
    """The denominator of p(Z⊤ | X)^alpha · p(Z⊤ | X′)^-beta: an anti-prompt, an amateur model, or both.

    ``prompt`` is the template of X′; ``model`` the amateur. Each token's log-likelihood under the
    denominator is clipped from below at ``token_floor_nats``.
    """

    prompt: str = "{x}"
    model: str | None = None
    alpha: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.5, gt=0)
    token_floor_nats: float = Field(default=-7.0, lt=0)

    @model_validator(mode="after")
    def _contrasts(self) -> ContrastConfig:
        if self.prompt == "{x}" and self.model is None:
            raise ValueError("give an anti-`prompt`, an amateur `model`, or both")
        return self


class PreferenceConfig(Section):
    """A Bradley-Terry factor σ(r(X, Z)), or σ(r(X, Z) − r(X, reference)).

    ``model`` is an import path ``module:function`` called as ``function(fields, texts)``, or the URL of
    a service that takes ``{"fields": {…}, "texts": […]}`` and answers ``{"scores": […]}``, in nats.
    ``reference`` is a template of the answer that Z is compared with.
    """

    model: str
    reference: str | None = None
    texts_per_request: int = Field(default=64, ge=1)
    timeout_seconds: float = Field(default=10.0, gt=0)
    attempts: int = Field(default=4, ge=1)


class GoldConfig(Section):
    """Known Z's of the training X's, stored in the replay buffer once a run: exactly one of the two.

    ``template`` writes the Z of an X from its fields, such as ``" {rationale}"``; an X without one of
    them has no gold. ``file`` is a .jsonl or .csv of ``id`` (of an X) and ``z``, any number for an X.
    """

    template: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> GoldConfig:
        if (self.template is None) == (self.file is None):
            raise ValueError("give exactly one of `template` and `file`")
        return self


Prompts = tuple[dict[str, str], ...] | Path
"""X's inline, or a file of them."""


class ToolConfig(Section):
    """A tool that answers inside Z when the policy writes one of its triggers.

    ``use`` is ``calculator``, of at most ``max_operands`` operands, or the import path ``module:name``
    of a class (or function without arguments) that makes a ``posteriori.tools.Tool``. ``failure`` is the
    text of a span where it raised, had no answer, answered more than ``max_output_tokens`` or took more
    than ``timeout_seconds``.
    """

    use: str = "calculator"
    max_operands: int = Field(default=2, ge=1)
    max_output_tokens: int = Field(default=8, ge=1)
    timeout_seconds: float = Field(default=5.0, gt=0)
    failure: str = Field(default=" ?", min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> ToolConfig:
        if self.use != "calculator" and self.changes("max_operands"):
            raise ValueError("`max_operands` belongs to the calculator")
        return self


class ProblemConfig(Section):
    """A posterior over Z for each of several X.

    ``kind`` is a preset of reward terms (``tempered``, ``contrastive``, ``constrained``, ``infilling``,
    ``reverse``, ``reasoning``, ``uniform``, ``preference``), ``product`` for explicit ``terms``, or
    ``python`` for ``factory``, an import path ``module:function`` called as ``function(config, lm)``
    that returns a Problem. ``policy_prompt`` is ``{x}`` unless the kind knows better.
    ``lookahead`` is a file of ``posteriori lookahead``: every sampler of the problem then adds to a move's
    logit what the prefix behind it promises of legal Z's.
    ``test_prompts`` are held out of training and reported apart; ``prompts_format`` is that of both
    files (see ``posteriori.data.formats``).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    kind: Literal[
        "tempered",
        "contrastive",
        "constrained",
        "infilling",
        "reverse",
        "reasoning",
        "uniform",
        "preference",
        "product",
        "python",
    ]
    prompts: Prompts
    test_prompts: Prompts | None = None
    prompts_format: Literal["objects", "text", "subj", "arithmetic", "rocstories"] | None = None
    gold: GoldConfig | None = None
    policy_prompt: str = "{x}"
    alphabet: tuple[str, ...] | Literal["vocabulary"] = "vocabulary"
    stop: str | None = None
    min_tokens: int = Field(default=1, ge=0)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    constraint: ConstraintConfig | None = None
    lookahead: Path | None = None
    terms: tuple[RewardTerm, ...] = ()
    contrast: ContrastConfig | None = None
    labels: tuple[str, ...] = ()
    wrong_label_penalty_nats: float = Field(default=50.0, gt=0)
    preference: PreferenceConfig | None = None
    tool: ToolConfig | None = None
    factory: str | None = None
    model: str | None = None

    @property
    def has_floor(self) -> bool:
        """Does R fall by a step where a legal Z breaks a constraint or explains the wrong label?"""
        return bool(self.labels) or (self.constraint is not None and self.constraint.has_floor)

    @property
    def has_factor(self) -> bool:
        """Does a function outside the run file enter R? It sees every field of a prompt."""
        predicate = self.constraint is not None and self.constraint.predicate is not None
        return predicate or self.preference is not None

    @model_validator(mode="before")
    @classmethod
    def _policy_sees_what_is_known(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "reverse":
            return {"policy_prompt": "{y}", **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ProblemConfig:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) is greater than max_tokens ({self.max_tokens})"
            )
        if (self.kind == "product") != bool(self.terms):
            raise ValueError("`terms` belong to kind `product`, which needs at least one")
        for key, kind in (
            ("factory", "python"),
            ("contrast", "contrastive"),
            ("preference", "preference"),
        ):
            if (self.kind == kind) != (getattr(self, key) is not None):
                raise ValueError(f"`{key}` belongs to kind `{kind}`, which needs it")
        if (self.kind == "constrained") and self.constraint is None:
            raise ValueError("kind `constrained` needs a `constraint`")
        if self.labels and (self.kind != "reasoning" or len(set(self.labels)) < 2):
            raise ValueError("`labels` belong to kind `reasoning` and are at least two")
        if self.kind == "uniform" and self.temperature != 1:
            raise ValueError("a uniform posterior has no temperature: leave it out")
        return self
