"""Text from base LM or policy over the whole vocabulary, for the routes that OpenAI clients use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache

from api.draws import Adapter, Draw
from api.errors import ApiError, unknown
from api.openai_messages import FinishReason, Sampling, TokenLogprobs, Usage
from api.sampling import SAMPLES_PER_DRAW, chosen_seed
from api.service import Service
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.moves import LegalMoves
from posteriori.seams import Behaviour, Sample

GREEDY_TEMPERATURE = 1e-4
"""In place of 0: the most probable token, up to ties."""


@dataclass(frozen=True)
class Written:
    """One completion."""

    text: str
    tokens: list[int]
    logprobs: TokenLogprobs
    finish_reason: FinishReason


def base_name(service: Service) -> str:
    """The base LM's name in requests."""
    return service.settings.model.rstrip("/").rpartition("/")[2]


def adapter_of(service: Service, model: str) -> Adapter | None:
    """The adapter behind a model's name; None: the base LM.

    Raises:
        ApiError: there is no such model.
    """
    if model == base_name(service):
        return None
    run, _, version = model.partition("@")
    if run not in service.catalogue.names() or (version and not version.isdigit()):
        raise unknown("model", model, [base_name(service), *service.catalogue.names()], "model")
    served = service.catalogue.served(run)
    wanted = int(version) if version else None
    if wanted == 0:
        return None
    return service.adapters.fetch(served.control, served.config, wanted)[1]


def prompts_of(
    lm: LanguageModel, given: str | list[str] | list[int] | list[list[int]]
) -> list[list[int]]:
    """Token ids of every prompt.

    Raises:
        ApiError: there is none, or one is empty or holds no token ids.
    """
    if isinstance(given, str):
        return [lm.context(given)]
    if given and isinstance(given[0], int):
        found = [[token for token in given if isinstance(token, int)]]
    else:
        found = [
            lm.context(p) if isinstance(p, str) else p for p in given if not isinstance(p, int)
        ]
    if not found or any(not ids for ids in found):
        raise _refused("empty_prompt", "A prompt is empty.", "Give it a token.", "prompt")
    for ids in found:
        if not all(0 <= token < lm.vocabulary_size for token in ids):
            what = f"A prompt's token id is not in 0 … {lm.vocabulary_size - 1}."
            raise _refused("unknown_token", what, "Use the model's tokenizer.", "prompt")
    return found


async def complete(
    service: Service, asked: Sampling, prompts: Sequence[list[int]], max_tokens: int
) -> list[list[Written]]:
    """``asked.n`` completions of each prompt.

    Raises:
        ApiError: unknown model, or more tokens than are served.
    """
    lm = service.base
    longest = max(len(ids) for ids in prompts) + max_tokens
    if longest > lm.context_tokens:
        raise _refused(
            "context_length_exceeded",
            f"Prompt and completion take up to {longest} tokens; {lm.context_tokens} are read.",
            "Shorten the prompt, or lower max_tokens.",
            "max_tokens",
        )
    most = service.settings.max_request_tokens
    if len(prompts) * asked.n * max_tokens > most:
        what = f"{len(prompts)} prompts, {asked.n} samples of {max_tokens} tokens exceed {most}."
        raise _refused("too_many_tokens", what, "Ask for less at a time.", "max_tokens")
    adapter = await service.scoring.run(lambda: adapter_of(service, asked.model))
    moves = _all_moves(lm, max_tokens)
    temperature = asked.temperature or GREEDY_TEMPERATURE
    behaviour = Behaviour("policy" if temperature == 1 else "tempered", temperature)
    seed = chosen_seed(asked.seed)
    draws: list[Draw] = []
    owner: list[int] = []
    for place, ids in enumerate(prompts):
        for start in range(0, asked.n, SAMPLES_PER_DRAW):
            size = min(SAMPLES_PER_DRAW, asked.n - start)
            draws.append(Draw(ids, moves, size, seed * 1_000_003 + len(draws), behaviour))
            owner.append(place)
    async with aclosing(service.host.samples_of(draws, adapter)) as finished:
        found = {index: samples async for index, samples in finished}

    def written() -> list[list[Written]]:
        texts: list[list[Written]] = [[] for _ in prompts]
        for index, place in enumerate(owner):
            texts[place] += [_written(lm, sample, asked.stops, moves) for sample in found[index]]
        return texts

    return await service.scoring.run(written)


@lru_cache(maxsize=32)
def _all_moves(lm: LanguageModel, max_tokens: int) -> LegalMoves:
    """Every token of the vocabulary but the special ones, ⊤ at any place."""
    stop = lm.tokenizer.eos_token_id
    if stop is None:
        raise _refused(
            "no_end_token",
            f"{lm.name} has no end-of-sequence token.",
            "Declare a problem with a `stop`.",
            "model",
        )
    alphabet = [i for i in range(lm.vocabulary_size) if i != stop and i not in lm.special_ids]
    return LegalMoves.free(alphabet, int(stop), 0, max_tokens)


def _written(lm: LanguageModel, sample: Sample, stops: Sequence[str], moves: LegalMoves) -> Written:
    """A sample as text, cut at the first of ``stops``."""
    tokens = [int(token) for token in sample.tokens]
    offsets, text = [], ""
    for end in range(1, len(tokens) + 1):
        offsets.append(len(text))
        text = lm.text(tokens[:end])
    reason: FinishReason = "length" if len(tokens) == moves.max_tokens else "stop"
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if places:
        text, reason = text[: min(places)], "stop"
        tokens = [t for t, offset in zip(tokens, offsets, strict=True) if offset < len(text)]
    kept = len(tokens)
    logprobs = TokenLogprobs(
        tokens=[lm.text([token]) for token in tokens],
        token_logprobs=[float(value) for value in sample.log_q[:kept]],
        text_offset=offsets[:kept],
    )
    return Written(text, tokens, logprobs, reason)


def usage(prompts: Sequence[list[int]], texts: Sequence[Sequence[Written]]) -> Usage:
    """Tokens of prompts and completions."""
    read = sum(len(ids) for ids in prompts)
    drawn = sum(len(item.tokens) for of_prompt in texts for item in of_prompt)
    return Usage(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)


def chat_prompt(lm: LanguageModel, messages: Sequence[dict[str, str]]) -> list[int]:
    """A conversation as the tokenizer's chat template writes it.

    Raises:
        ApiError: the tokenizer has none, or it refuses the messages.
    """
    from jinja2 import TemplateError

    if lm.tokenizer.chat_template is None:
        raise _refused(
            "no_chat_template",
            f"The tokenizer of {lm.name} has no chat template.",
            "Use /v1/completions.",
            "model",
        )
    try:
        text = lm.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return lm.encode(text)
    except (TemplateError, UserError, ValueError) as cause:
        what = f"The chat template refuses the messages: {cause}."
        raise _refused("invalid_messages", what, "Mend them.", "messages") from cause


def _refused(code: str, problem: str, fix: str, field: str) -> ApiError:
    return ApiError(400, code, problem, fix, field)
