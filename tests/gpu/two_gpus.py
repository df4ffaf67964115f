"""Starts a vLLM engine on two GPUs and compares it with transformers; exits 0 if they agree."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def main(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from actors.self_test import self_test
    from actors.vllm_engine import VllmEngine
    from posteriori.lm import LanguageModel
    from posteriori.moves import LegalMoves
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    engine = VllmEngine(
        directory,
        lora_rank=8,
        tensor_parallel=2,
        prefix_caching=False,
        max_adapters=2,
        max_model_tokens=64,
        max_sequences=16,
    )
    lm = LanguageModel.load(str(directory))
    moves = LegalMoves.free([lm.one_token(w, "word") for w in (" cat", " dog", " sat")], 1, 1, 4)
    gap = self_test(engine, lm.model, lm.context(" the"), moves, rank=8, dtype="float32")
    print(f"largest gap {gap:.2g} nats")
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
