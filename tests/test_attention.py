"""Blocks of a token tree attend as the dense mask does: values, gradients, padding, windows."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from posteriori import attention
from posteriori.attention import BLOCK
from posteriori.lm import LanguageModel
from posteriori.tree import TokenTree, TreeBuilder, node_logits


def bushy(lm: LanguageModel, nodes: int, seed: int) -> TokenTree:
    """A trunk and random chains behind random prefixes of it."""
    random = np.random.default_rng(seed)
    builder = TreeBuilder()
    trunk = builder.path(-1, random.integers(3, lm.vocabulary_size, 12).tolist())
    while len(builder) < nodes:
        chain = random.integers(3, lm.vocabulary_size, 9)
        builder.path(int(random.choice(trunk)), chain[: nodes - len(builder)].tolist())
    return builder.build()


def dense(lm: LanguageModel) -> Any:
    """The same weights under Hugging Face's own implementation."""
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("sdpa")
    return model


def test_blocks_equal_the_dense_mask(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [bushy(tiny_lm, size, seed) for seed, size in enumerate((3 * BLOCK + 5, 4 * BLOCK))]
    nodes = [np.arange(len(tree)) for tree in trees]
    cut, seen = attention.cut, []
    monkeypatch.setattr(attention, "cut", lambda *args: seen.append(cut(*args)) or seen[-1])
    found = node_logits(tiny_lm.model, trees, nodes)
    assert seen[0] is not None
    rows, _, queries, keys = seen[0].mask.shape
    assert (rows, queries) == (2 * 4, BLOCK) and keys < 4 * BLOCK == seen[0].size
    for ours, theirs in zip(found, node_logits(dense(tiny_lm), trees, nodes), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(seen) == 1  # the copy knows nothing of blocks


def test_gradients_equal_those_of_the_dense_mask(tiny_lm: LanguageModel) -> None:
    trees = [bushy(tiny_lm, size, seed) for seed, size in enumerate((4 * BLOCK, 3 * BLOCK + 1))]
    nodes = [np.arange(0, len(tree), 3) for tree in trees]
    gradients = []
    for model in (copy.deepcopy(tiny_lm.model), dense(tiny_lm)):
        weight = model.model.layers[0].self_attn.k_proj.weight.requires_grad_()
        logits = torch.cat(node_logits(model, trees, nodes))
        (logits.log_softmax(dim=-1)[:, 5].mean()).backward()
        gradients.append(weight.grad)
    scale = float(gradients[1].abs().max())
    assert scale > 0
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=0, atol=1e-5)


def test_a_chain_needs_the_dense_mask(tiny_lm: LanguageModel) -> None:
    chain = TreeBuilder()
    chain.path(-1, range(3, 3 + 4 * BLOCK))
    mask = chain.build().ancestor_mask()
    assert attention.cut([mask], torch.float32, torch.device("cpu")) is None
    # Under a window the last of a long chain sees few.
    near = chain.build().ancestor_mask(window=8)
    blocks = attention.cut([near], torch.float32, torch.device("cpu"))
    assert blocks is not None and blocks.mask.shape[-1] == BLOCK + 7


def test_no_query_is_left_without_a_key(tiny_lm: LanguageModel) -> None:
    trees = [bushy(tiny_lm, size, size) for size in (BLOCK, 5 * BLOCK + 3)]
    masks = [tree.ancestor_mask() for tree in trees]
    blocks = attention.cut(masks, torch.float32, torch.device("cpu"))
    assert blocks is not None and 5 * BLOCK + 3 <= blocks.size < 5 * BLOCK + 9
    assert (blocks.mask == 0).any(dim=-1).all()


def test_without_a_tree_the_model_is_as_before(tiny_lm: LanguageModel) -> None:
    assert attention.attends_along_trees(tiny_lm.model)
    tokens = torch.tensor([[0, 5, 6, 7, 8], [0, 9, 4, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        ours = tiny_lm.model(tokens, attention_mask=mask).logits
        theirs = dense(tiny_lm)(tokens, attention_mask=mask).logits
    assert torch.equal(ours, theirs)


def test_an_eager_model_is_left_alone(tiny_lm: LanguageModel) -> None:
    model = copy.deepcopy(tiny_lm.model)
    model.set_attn_implementation("eager")
    attention.attend_along_trees(model)
    assert not attention.attends_along_trees(model)
    tree = bushy(tiny_lm, 3 * BLOCK, 0)
    nodes = [np.arange(len(tree))]
    torch.testing.assert_close(
        node_logits(model, [tree], nodes)[0],
        node_logits(tiny_lm.model, [tree], nodes)[0],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
