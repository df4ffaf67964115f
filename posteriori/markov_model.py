"""Recipe of two small models: an exactly order-w Markov reward LM, and a policy base fitted to it.

The reward LM has random weights, one layer and sliding-window attention over w tokens, so that every
posterior under it is known exactly (``posteriori.oracle.dynamic``), at lengths no enumeration reaches. A
policy of one such layer could not represent those posteriors: the best move depends on the tokens left.
So the policy starts from a full-attention Llama, fitted to plain samples of the reward LM. No draw from
any posterior is used.

    python -m posteriori.markov_model runs/markov
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from posteriori.lm import LanguageModel
from posteriori.oracle.markov import IntArray, MarkovTable

WORDS = tuple(consonant + vowel for consonant in "bdfklmst" for vowel in "aeio")
"""The 32 words; token ids 0 … 31."""

STOP = "<|end|>"
"""⊤, token id 32. There is no BOS: a prompt is w words or more, which is all the model sees."""

SEED = 3
"""Seed of the shipped model; its next-token entropy over word contexts is 1.49 nats."""

MATRIX_SCALE = 2.0
"""Attention and MLP entries are N(0, (scale/√fan-in)²): large enough that the older token matters."""

HEAD_SCALE = 3.0
"""The same for the LM head: it sets the standard deviation of the logits, hence the entropy."""

CONTEXT_TOKENS = 128


def markov_model(seed: int = SEED, window: int = 2, hidden: int = 64) -> Any:
    """A random order-``window`` Markov LM over the 32 words and ⊤: a one-layer MistralForCausalLM.

    Embeddings are N(0, 1), norms 1, matrices and head as the scales above say.
    """
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(
        MistralConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=hidden,
            sliding_window=window,
            **_shared_config(),
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue
            scale = 1.0
            if "embed" not in name:
                scale = HEAD_SCALE if "lm_head" in name else MATRIX_SCALE
                scale /= math.sqrt(parameter.shape[1])
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def markov_tokenizer() -> Any:
    """One token a word, words separated by spaces; an unknown word is an error."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*WORDS, STOP))}
    raw = Tokenizer(models.WordLevel(vocabulary))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=STOP, pad_token=STOP)


def write_markov_lm(directory: Path, seed: int = SEED, window: int = 2) -> Path:
    """Write the reward LM and its tokenizer as a Hugging Face directory."""
    markov_model(seed, window).save_pretrained(directory)
    markov_tokenizer().save_pretrained(directory)
    return directory


POSITION_SCALE = 0.05
"""Standard deviation of learned position embeddings before they are learned; words end at about as much."""


@dataclass(frozen=True)
class FitReport:
    """How well the policy base models the reward LM.

    Attributes:
        steps: optimiser steps.
        tokens: tokens trained on, all fresh.
        kl_per_token: KL(p‖q) of the next token on held-out samples of the reward LM, nats.
        entropy_per_token: of the reward LM on the same samples, nats.
        seconds: wall-clock.
    """

    steps: int
    tokens: int
    kl_per_token: float
    entropy_per_token: float
    seconds: float


def fit_policy_base(
    reward_lm: LanguageModel,
    directory: Path,
    *,
    steps: int = 1200,
    batch: int = 64,
    length: int = 32,
    hidden: int = 128,
    layers: int = 2,
    positions: Literal["rotary", "learned"] = "rotary",
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> FitReport:
    """Fit a full-attention Llama or GPT-2 to samples of the reward LM and write it as a Hugging Face directory.

    Each batch is drawn anew: x of w uniform words, then ``length`` tokens of p(· | x), cut behind the
    first ⊤. The loss is the expected negative log-likelihood of the next token given what was drawn
    before it: maximum likelihood with that one expectation taken exactly. By single draws, a table of
    33³ numbers would need some 10⁷ tokens to be known to 0.002 nats. AdamW, one-cycle learning rate.

    Args:
        reward_lm: a Markov LM, as from ``write_markov_lm``.
        directory: where to write the model and tokenizer.
        steps: optimiser steps.
        batch: sequences a step.
        length: tokens sampled behind x.
        hidden, layers: size of the model; its heads have 64 dimensions, which vLLM's CPU kernels take.
        positions: ``learned`` makes a GPT-2, whose every hidden state says which position it is at. A Llama
            is told distances alone; an adapter has to count.
        learning_rate: peak.
        seed: of weights and samples.
    """
    started = time.monotonic()
    table = MarkovTable.from_model(reward_lm.model)
    torch.manual_seed(seed)
    policy = _policy(hidden, layers, positions).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2)
    )
    tokens = 0
    for step in range(steps):
        ids, scored = _samples(table, batch, length, seed * 1_000_003 + step)
        loss = _divergences(policy, table, ids)[scored].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += int(scored.sum())
    policy.eval()
    ids, scored = _samples(table, 1024, length, seed=seed * 1_000_003 + steps)
    with torch.no_grad():
        divergence = _divergences(policy, table, ids)[scored].double().mean()
    log_p = table.log_p[_contexts(table, ids)[scored]]
    uncertainty = -(np.exp(log_p) * log_p).sum(axis=1).mean()
    policy.save_pretrained(directory)
    reward_lm.tokenizer.save_pretrained(directory)
    seconds = time.monotonic() - started
    return FitReport(steps, tokens, float(divergence), float(uncertainty), seconds)


def _policy(hidden: int, layers: int, positions: Literal["rotary", "learned"]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if positions == "learned":
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=hidden,
                n_inner=2 * hidden,
                n_layer=layers,
                n_head=hidden // 64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **_shared_config(),
            )
        )
        # A Markov LM has no use for positions: were they as small as usual, they would stay so, and
        # the first layer norm would leave nothing of them.
        torch.nn.init.normal_(model.transformer.wpe.weight, std=POSITION_SCALE)
        return model
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            head_dim=64,
            **_shared_config(),
        )
    )


def _shared_config() -> dict[str, Any]:
    return {
        "vocab_size": len(WORDS) + 1,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": len(WORDS),
        "pad_token_id": len(WORDS),
    }


def _samples(
    table: MarkovTable, n: int, length: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, w + length], and which predictions count, bool [n, w + length − 1]."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, len(WORDS), (n, table.window))
    drawn = table.sample(prompts, length, int(rng.integers(2**62)))
    stopped_before = np.cumsum(drawn == len(WORDS), axis=1) - (drawn == len(WORDS)) > 0
    scored = np.concatenate(
        [np.zeros((n, table.window - 1), dtype=np.bool_), ~stopped_before], axis=1
    )
    return torch.from_numpy(np.concatenate([prompts, drawn], axis=1)), torch.from_numpy(scored)


def _contexts(table: MarkovTable, ids: torch.Tensor) -> IntArray:
    """Index of the context behind each token but the last, [n, L − 1]; 0 where it is incomplete."""
    found = np.zeros((len(ids), ids.shape[1] - 1), dtype=np.int64)
    for position in range(table.window - 1, ids.shape[1] - 1):
        found[:, position] = table.contexts_of(ids[:, : position + 1].numpy())
    return found


def _divergences(policy: Any, table: MarkovTable, ids: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) of the token behind each token but the last, [n, L − 1]."""
    log_p = torch.from_numpy(table.log_p[_contexts(table, ids)]).float()
    log_q = torch.log_softmax(policy(ids[:, :-1], use_cache=False).logits.float(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def main() -> None:
    """Write DIRECTORY/reward-lm and DIRECTORY/policy-base."""
    parser = argparse.ArgumentParser(description="Make the Markov reward LM and its policy base.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    reward_lm = LanguageModel.load(
        str(write_markov_lm(arguments.directory / "reward-lm", arguments.seed))
    )
    print(fit_policy_base(reward_lm, arguments.directory / "policy-base", steps=arguments.steps))  # noqa: T201


if __name__ == "__main__":
    main()
