"""The part of OpenAI's completion and chat formats that is served; see the router for what it means here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posteriori.messages import MAX_SEED, example

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_p": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "best_of": (1,),
    "echo": (False,),
    "response_format": ({"type": "text"},),
}
"""Parameters that are not served, and the values under which they mean nothing."""
IGNORED = frozenset({"user", "stream_options", "metadata", "store", "service_tier"})
"""Parameters that change nothing about the samples."""


class Sampling(BaseModel):
    """What completions and chats share. Unserved parameters are refused unless they say nothing."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: str | list[str] | None = Field(None, max_length=16)
    stream: bool = False

    @model_validator(mode="after")
    def _served(self) -> Sampling:
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and value is not None and value not in NEUTRAL.get(name, ()):
                raise ValueError(f"`{name}` = {value!r} is not served: leave it out")
        return self

    @property
    def stops(self) -> list[str]:
        """Texts that end a completion."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class CompletionRequest(Sampling):
    """Continue a text, or token ids. ``logprobs`` (any number) returns those of the tokens drawn."""

    model_config = example(model="pocket", prompt="Mia found a", max_tokens=12, seed=1)

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(16, ge=1, le=4096)
    logprobs: int | None = Field(None, ge=0, le=5)


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class ChatRequest(Sampling):
    """Answer a conversation, written as the tokenizer's chat template has it."""

    model_config = example(model="demo", messages=[{"role": "user", "content": "Hello"}])

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=4096)


class Usage(BaseModel):
    """Tokens read and drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprobs(BaseModel):
    """Of the tokens drawn, nats, under the temperature asked for."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


FinishReason = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason


class CompletionResponse(BaseModel):
    """All continuations, prompt by prompt."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatAnswer(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswer
    logprobs: None = None
    finish_reason: FinishReason


class ChatResponse(BaseModel):
    """All answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model by the name that requests use: the base LM, RUN (its newest adapter) or RUN@VERSION."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "posteriori"


class ModelList(BaseModel):
    """What can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
