"""The unmodified ``openai`` client against base LM and adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch

from posteriori.lm import LanguageModel
from tests.api.conftest import Running


@pytest.fixture
def ai(service: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def base(service: Running) -> str:
    return Path(service.service.settings.model).name


def test_models(ai: openai.OpenAI, base: str) -> None:
    names = [model.id for model in ai.models.list()]
    assert names == [base, "r", "r@1", "r@2", "r@3"]
    assert ai.models.retrieve("r@2").id == "r@2"
    with pytest.raises(openai.NotFoundError) as refused:
        ai.models.retrieve("r@9")
    assert refused.value.code == "unknown_version"


@pytest.mark.parametrize("version", [0, 2])
def test_completions_are_drawn_by_the_model_asked_for(
    ai: openai.OpenAI, base: str, version: int, tiny_lm: LanguageModel, adapters: dict[int, Path]
) -> None:
    """Their log-probabilities equal a plain forward's over the vocabulary less special tokens."""
    found = ai.completions.create(
        model=f"r@{version}" if version else base,
        prompt=[" the cat", " a dog"],
        max_tokens=6,
        n=3,
        seed=1,
        logprobs=1,
    )
    assert [choice.index for choice in found.choices] == list(range(6))
    lm = tiny_lm.with_adapter(adapters[version]) if version else tiny_lm
    stop = int(lm.tokenizer.eos_token_id)
    banned = sorted(lm.special_ids - {stop})
    drawn = 0
    for choice in found.choices:
        prompt = lm.context(" the cat" if choice.index < 3 else " a dog")
        assert choice.logprobs is not None and choice.logprobs.tokens is not None
        tokens = [lm.one_token(text, "token") for text in choice.logprobs.tokens]
        logits = lm.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 :].double()
        logits[:, banned] = -torch.inf
        expected = logits.log_softmax(-1)[range(len(tokens)), tokens].tolist()
        np.testing.assert_allclose(choice.logprobs.token_logprobs or [], expected, atol=1e-3)
        assert choice.text == lm.text(tokens)
        assert (choice.finish_reason == "length") == (len(tokens) == 6)
        drawn += len(tokens)
    assert found.usage is not None and found.usage.completion_tokens == drawn
    assert found.usage.prompt_tokens == sum(len(lm.context(p)) for p in (" the cat", " a dog"))


def test_seed_temperature_and_stop(ai: openai.OpenAI, base: str) -> None:
    def text(**options: object) -> str:
        found = ai.completions.create(
            **{"model": base, "prompt": " the cat", "max_tokens": 12, "seed": 1, **options}
        )
        return str(found.choices[0].text)

    assert text() == text() != text(seed=2)
    assert text(temperature=0, seed=3) == text(temperature=0, seed=4)
    whole = text()
    cut = text(stop=[whole[4:6]])
    assert cut == whole[: whole.find(whole[4:6])] and len(cut) <= 4


def test_token_ids_as_prompt(ai: openai.OpenAI, base: str, tiny_lm: LanguageModel) -> None:
    by_text = ai.completions.create(model=base, prompt=" the cat", seed=1)
    by_ids = ai.completions.create(model=base, prompt=tiny_lm.context(" the cat"), seed=1)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_stream(ai: openai.OpenAI) -> None:
    asked = {"model": "r", "prompt": " the cat", "n": 2, "seed": 4, "max_tokens": 5}
    whole = ai.completions.create(**asked)
    chunks = list(ai.completions.create(**asked, stream=True))
    texts = {chunk.choices[0].index: chunk.choices[0].text for chunk in chunks}
    assert texts == {choice.index: choice.text for choice in whole.choices}


@pytest.mark.parametrize(
    "options, code",
    [
        ({"max_tokens": 500}, "context_length_exceeded"),
        ({"top_p": 0.5}, "invalid_field"),
        ({"prompt": [[999]]}, "unknown_token"),
        ({"prompt": []}, "empty_prompt"),
        ({"temperature": -1}, "invalid_field"),
    ],
)
def test_refusals(ai: openai.OpenAI, base: str, options: dict[str, object], code: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        ai.completions.create(**{"model": base, "prompt": "a", **options})
    assert refused.value.status_code in (400, 422)
    assert refused.value.code == code


def test_neutral_parameters_are_taken(ai: openai.OpenAI, base: str) -> None:
    found = ai.completions.create(
        model=base, prompt=" a", top_p=1, presence_penalty=0, user="u", max_tokens=1
    )
    assert len(found.choices) == 1


def test_no_chat_template(ai: openai.OpenAI, base: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model=base, messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "no_chat_template"


@pytest.fixture
def chatting(service: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    template = "{% for m in messages %} the {{ m.content }}{% endfor %} then"
    monkeypatch.setattr(service.service.base.tokenizer, "chat_template", template)
    yield


def test_chat(ai: openai.OpenAI, chatting: None) -> None:
    asked = {
        "model": "r@1",
        "messages": [{"role": "user", "content": "cat"}],
        "max_completion_tokens": 4,
        "seed": 1,
    }
    chat = ai.chat.completions.create(**asked)
    plain = ai.completions.create(model="r@1", prompt=" the cat then", max_tokens=4, seed=1)
    # The template writes no BOS, completions do.
    assert chat.usage is not None and plain.usage is not None
    assert chat.usage.prompt_tokens == plain.usage.prompt_tokens - 1
    assert chat.choices[0].message.content
    (chunk,) = list(ai.chat.completions.create(**asked, stream=True))
    assert chunk.choices[0].delta.content == chat.choices[0].message.content
