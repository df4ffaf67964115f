"""What the service and its clients say to each other: requests, responses and errors, as pydantic models.

Log-probabilities, log R, log weights and log Z are in nats; what is not known, or not a number JSON can hold, is null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from posteriori.config import ProblemConfig

MAX_SAMPLES = 4096
MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps."""

Version = int | Literal["latest"]


def example(**values: Any) -> ConfigDict:
    """Configuration of a message with an example for the API's documentation."""
    return ConfigDict(json_schema_extra={"examples": [values]})


class Message(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(Message):
    """``message`` and ``param`` repeat problem, fix and field under the names that OpenAI clients read."""

    model_config = example(
        code="unknown_run",
        field="run",
        problem="There is no run 'dmo'.",
        fix="Known: demo.",
        message="There is no run 'dmo'. Known: demo.",
        type="invalid_request_error",
        param="run",
    )

    code: str
    field: str | None = Field(description="The part of the request that is wrong.")
    problem: str
    fix: str
    message: str
    type: str
    param: str | None


class ErrorBody(Message):
    """Every response with status 400 or above."""

    error: ErrorDetail


class Warned(Message):
    """What a reader of the numbers should know: ``low_ess``, ``heavy_tail``, ``zero_reward``, …"""

    code: str
    message: str


class Target(Message):
    """Which posterior: a problem of a run, or one declared here, and its X.

    ``problem`` is a name (default: the run's first) or a whole declaration, which needs no run and is
    then sampled from the base LM. X is ``prompt``, the id of one of the problem's, or new ``fields``;
    ``x`` and ``y`` are short for the fields of these names. Default: the problem's first X.
    """

    run: str | None = None
    problem: str | ProblemConfig | None = None
    prompt: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    x: str | None = None
    y: str | None = None
    version: Version = Field(
        "latest", description="Adapter version; 0 is the base LM, also the latest without a run."
    )

    @property
    def given_fields(self) -> dict[str, str]:
        """All fields of a new X; empty: none was given."""
        short = {"x": self.x, "y": self.y}
        return {**self.fields, **{name: text for name, text in short.items() if text is not None}}


class SamplesRequest(Target):
    """``n`` draws from a posterior.

    ``correction``: ``none`` weights all samples alike; ``snis`` by self-normalised importance weights
    R/q; ``smc`` runs a particle filter of ``n`` particles whose twists are the policy's flows.
    """

    model_config = example(
        run="demo",
        problem="found",
        x="Mia found a",
        y=". The wallet was full of money.",
        n=64,
        seed=1,
    )

    n: int = Field(16, ge=1, le=MAX_SAMPLES)
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Same seed and version: same samples. Default: drawn."
    )
    correction: Literal["none", "snis", "smc"] = "snis"
    stream: bool = Field(False, description="Server-sent events: `sample` each, then `summary`.")


class Span(Message):
    """Tokens start ≤ k < stop of Z that a tool wrote: characters text_start ≤ c < text_stop of the text."""

    start: int
    stop: int
    text_start: int
    text_stop: int
    failed: bool


class PosteriorSample(Message):
    """One Z. ``weight`` is normalised over the response; null while streaming, where ``Summary`` has it."""

    model_config = example(
        index=0,
        text=" red wallet",
        tokens=[17, 230],
        log_q=-1.91,
        log_reward=-4.02,
        log_weight=-2.11,
        weight=0.97,
        spans=[],
    )

    index: int
    text: str
    tokens: list[int]
    log_q: float
    log_reward: float | None
    log_weight: float | None
    weight: float | None
    spans: list[Span] = []


class Summary(Message):
    """What the samples say of themselves.

    ``log_z`` is the log of the mean weight, ``log_z_se`` its standard error, ``log_z_learned`` what the
    learner's table holds for this X. ``pareto_k`` above 0.7: weighted answers are not to be trusted.
    """

    model_config = example(
        n=64,
        ess=61.5,
        ess_fraction=0.96,
        log_z=-2.08,
        log_z_se=0.02,
        log_z_learned=None,
        pareto_k=0.21,
        unique_fraction=0.42,
    )

    n: int
    ess: float | None
    ess_fraction: float | None
    log_z: float | None
    log_z_se: float | None
    log_z_learned: float | None
    pareto_k: float | None
    unique_fraction: float


class SamplesHead(Message):
    """What was sampled, with everything that reproduces it."""

    id: str
    run: str | None
    problem: str
    prompt: str
    fields: dict[str, str]
    version: int
    seed: int
    correction: Literal["none", "snis", "smc"]


class SamplesResponse(SamplesHead):
    """Samples with weights, and what they say of themselves."""

    samples: list[PosteriorSample]
    summary: Summary
    warnings: list[Warned]


class SamplesEnd(SamplesHead):
    """The last event of a stream: normalised weights by index of the sample, null without log R."""

    weights: list[float] | None
    summary: Summary
    warnings: list[Warned]


class ScoreRequest(Target):
    """Z's to score: as text, tokenised canonically, or as token ids without ⊤."""

    model_config = example(run="demo", problem="found", prompt="0", z=[" red wallet", [17, 230]])

    z: list[str | list[int]] = Field(min_length=1, max_length=1024)


class Scored(Message):
    """One Z with its numbers."""

    text: str
    tokens: list[int]
    log_q: float
    log_reward: float | None
    log_weight: float | None


class ScoreResponse(Message):
    """In the order asked for."""

    run: str | None
    problem: str
    prompt: str
    fields: dict[str, str]
    version: int
    scores: list[Scored]


class PredictiveRequest(Target):
    """Which of the listed answers Y, from ``n`` chains Z drawn by the policy.

    ``mean``: p̂(y) = mean of p(y | x, zᵢ). ``bayes`` weights chain i by p(zᵢ | x)/q(zᵢ | x). ``vote``:
    one vote a chain.
    """

    model_config = example(run="reasons", x="12 + 7 =", answers=[" 19", " 18"], n=128, rule="bayes")

    answers: list[str] = Field(min_length=2, max_length=64)
    rule: Literal["mean", "bayes", "vote"] = "mean"
    n: int = Field(64, ge=1, le=MAX_SAMPLES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)


class Answer(Message):
    """One Y with its posterior predictive probability and the standard error of that."""

    answer: str
    probability: float
    standard_error: float


class PredictiveResponse(Message):
    """p̂(y | x); entropy = within_entropy + mutual_information, nats; the latter is the epistemic part."""

    run: str | None
    problem: str
    prompt: str
    fields: dict[str, str]
    version: int
    seed: int
    rule: Literal["mean", "bayes", "vote"]
    answers: list[Answer]
    best: str | None
    entropy: float | None
    within_entropy: float | None
    mutual_information: float | None
    chains: int
    effective_chains: float
    unanswered: int
    warnings: list[Warned]


class ProblemInfo(Message):
    """A problem of a run. X's beyond the first hundred are counted, not listed.

    ``prompt_fields`` are those of ``prompt_ids``; ``labels`` the answers that the problem declares.
    """

    run: str
    problem: str
    kind: str
    prompts: int
    prompt_ids: list[str]
    prompt_fields: list[dict[str, str]]
    test_prompts: int
    policy_fields: list[str]
    reward_fields: list[str]
    labels: list[str]
    alphabet_tokens: int
    stop: str
    min_tokens: int
    max_tokens: int


class ProblemList(Message):
    """All problems of all runs."""

    problems: list[ProblemInfo]


class Health(Message):
    """The process answers."""

    status: Literal["ok"]
    version: str


class Readiness(Message):
    """Whether samples can be drawn now, and if not, why; ``missing``: engines that do not answer while others do."""

    ready: bool
    reasons: list[str]
    missing: list[str]
    model: str
    engine: Literal["vllm", "transformers"]
