"""What the unmodified ``openai`` client asks for: models, completions, chat.

The text is sampled from base LM or policy over the whole vocabulary, without a problem's alphabet,
constraint or weights. A stream has one chunk for each choice, sent when all are complete.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from api import completion, errors
from api.access import needs
from api.completion import Written
from api.errors import ApiError
from api.limits import answered
from api.openai_messages import (
    ChatAnswer,
    ChatChoice,
    ChatRequest,
    ChatResponse,
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    ModelCard,
    ModelList,
)
from api.routers.common import TheService
from api.service import Service
from posteriori.errors import UserError

router = APIRouter(
    prefix="/v1", tags=["openai"], responses=errors.ERRORS, dependencies=[needs("sample")]
)

DEFAULT_CHAT_TOKENS = 256
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": errors.events_schema()}}
}


@router.get("/models")
async def models(service: TheService) -> ModelList:
    """The base LM, and every run that has an adapter, by name."""
    return await service.scoring.run(lambda: _models(service))


def _models(service: Service) -> ModelList:
    cards = [ModelCard(id=completion.base_name(service), created=0)]
    for name in service.catalogue.names():
        try:
            run = service.catalogue.served(name)
        except (ApiError, UserError):  # of another base LM, or not started
            continue
        created = int(run.control.directory.config_file.stat().st_mtime)
        versions = [item.version for item in service.adapters.versions(run.control, run.config)]
        names = [name, *(f"{name}@{version}" for version in versions)] if versions else []
        cards += [ModelCard(id=item, created=created) for item in names]
    return ModelList(data=cards)


@router.get("/models/{model:path}")
async def model(model: str, service: TheService) -> ModelCard:
    """One of them."""
    await service.scoring.run(lambda: completion.adapter_of(service, model))
    return ModelCard(id=model, created=0)


@router.post("/completions", response_model=CompletionResponse, responses=STREAM)
async def completions(
    asked: CompletionRequest, request: Request, service: TheService
) -> CompletionResponse | Response:
    """Continue a text."""
    with service.in_flight.one():
        prompts = completion.prompts_of(service.base, asked.prompt)
        work = completion.complete(service, asked, prompts, asked.max_tokens)
        texts = await answered(request, work, service.settings.timeout_seconds)
    flat = [item for of_prompt in texts for item in of_prompt]
    found = CompletionResponse(
        id=f"cmpl-{secrets.token_hex(8)}",
        created=int(time.time()),
        model=asked.model,
        choices=[_choice(asked, index, item) for index, item in enumerate(flat)],
        usage=completion.usage(prompts, texts),
    )
    if not asked.stream:
        return found
    head = found.model_dump(exclude={"choices", "usage"})
    return _stream([{**head, "choices": [choice.model_dump()]} for choice in found.choices])


def _choice(asked: CompletionRequest, index: int, item: Written) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=item.text,
        logprobs=item.logprobs if asked.logprobs is not None else None,
        finish_reason=item.finish_reason,
    )


@router.post("/chat/completions", response_model=ChatResponse, responses=STREAM)
async def chat(
    asked: ChatRequest, request: Request, service: TheService
) -> ChatResponse | Response:
    """Answer a conversation, where the tokenizer has a chat template."""
    with service.in_flight.one():
        messages = [{"role": turn.role, "content": turn.content} for turn in asked.messages]
        prompt = completion.chat_prompt(service.base, messages)
        room = service.base.context_tokens - len(prompt)
        wanted = asked.max_completion_tokens or asked.max_tokens
        most = wanted or max(1, min(DEFAULT_CHAT_TOKENS, room))
        work = completion.complete(service, asked, [prompt], most)
        (texts,) = await answered(request, work, service.settings.timeout_seconds)
    found = ChatResponse(
        id=f"chatcmpl-{secrets.token_hex(8)}",
        created=int(time.time()),
        model=asked.model,
        choices=[
            ChatChoice(
                index=index,
                message=ChatAnswer(content=item.text),
                finish_reason=item.finish_reason,
            )
            for index, item in enumerate(texts)
        ],
        usage=completion.usage([prompt], [texts]),
    )
    if not asked.stream:
        return found
    head = {**found.model_dump(exclude={"choices", "usage"}), "object": "chat.completion.chunk"}
    return _stream([{**head, "choices": [_delta(choice)]} for choice in found.choices])


def _delta(choice: ChatChoice) -> dict[str, Any]:
    delta = choice.message.model_dump(exclude={"refusal"})
    return {"index": choice.index, "delta": delta, "finish_reason": choice.finish_reason}


def _stream(chunks: list[dict[str, Any]]) -> Response:
    async def events() -> AsyncIterator[ServerSentEvent]:
        for chunk in chunks:
            yield ServerSentEvent(data=json.dumps(chunk))
        yield ServerSentEvent(data="[DONE]")

    return EventSourceResponse(events())
