"""Attention along token trees: a block of neighbouring nodes looks at its ancestors alone.

A dense mask over a packed tree costs the square of its size, and nearly all of it is masked: a node
sees the few nodes of its path, and nodes that were added one after the other share most of theirs. So
queries are cut into blocks, the keys that a block sees are gathered, and all blocks are one batch of
scaled dot-product attention. Models learn of it through Hugging Face's attention interface; without a
tree they attend as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAME = "token_tree"
"""Of the attention implementation that models are switched to."""

BLOCK = 64
"""Queries in a block, at most: fewer see fewer keys, and cost more gathering."""

DENSE_SHARE = 0.7
"""Of the dense mask's size: blocks that need more than this gain nothing."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """What every block of B rows of N nodes sees.

    Attributes:
        size: N, the nodes of the largest tree and less padding than a node for each block.
        keys: nodes gathered for each block, rows one after the other, int64 [B · N/S · M].
        mask: additive, [B · N/S, 1, S, M].
    """

    size: int
    keys: Tensor
    mask: Tensor


def additive(allowed: NDArray[np.bool_], dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where allowed, the lowest finite number elsewhere."""
    mask = torch.from_numpy(allowed).to(device)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=device)
    return zeros.masked_fill_(~mask, torch.finfo(dtype).min)


def cut(
    masks: Sequence[NDArray[np.bool_]], dtype: torch.dtype, device: torch.device
) -> Blocks | None:
    """Blocks for B trees, or None where a dense mask does as well.

    Args:
        masks: ``TokenTree.ancestor_mask`` of each tree.
    """
    longest = max(map(len, masks))
    count = -(-longest // BLOCK)
    block = -(-longest // count)
    seen = [
        [
            np.flatnonzero(mask[start : start + block].any(axis=0))
            for start in range(0, len(mask), block)
        ]
        for mask in masks
    ]
    most = max(len(keys) for row in seen for keys in row)
    if most > DENSE_SHARE * longest:
        return None
    keys = np.zeros((len(masks), count, most), dtype=np.int64)
    allowed = np.zeros((len(masks), count, block, most), dtype=np.bool_)
    for row, (mask, blocks) in enumerate(zip(masks, seen, strict=True)):
        for place, found in enumerate(blocks):
            queries = mask[place * block : (place + 1) * block, found]
            keys[row, place, : len(found)] = found
            allowed[row, place, : len(queries), : len(found)] = queries
    # Padding queries see some node, so that no softmax is empty.
    allowed[..., 0] |= ~allowed.any(axis=-1)
    keys += count * block * np.arange(len(masks))[:, None, None]
    return Blocks(
        count * block,
        torch.from_numpy(keys.ravel()).to(device),
        additive(allowed.reshape(-1, 1, block, most), dtype, device),
    )


def attend_along_trees(model: Any) -> None:
    """Let a Hugging Face model take ``tree_keys``, if it uses SDPA by way of the attention interface."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def attends_along_trees(model: Any) -> bool:
    """Was it let?"""
    return bool(model.config._attn_implementation == NAME)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_keys: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """SDPA of query [B, H, N, D] and key, value [B, H', N, D]; with ``tree_keys`` the mask is that of blocks."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree_keys is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return plain
    assert attention_mask is not None
    batch, heads, size, width = query.shape
    blocks = len(attention_mask)

    def gathered(states: Tensor) -> Tensor:
        nodes = states.transpose(1, 2).reshape(batch * size, -1).index_select(0, tree_keys)
        return nodes.view(blocks, -1, states.shape[1], states.shape[3]).transpose(1, 2)

    queries = query.transpose(1, 2).reshape(blocks, -1, heads, width).transpose(1, 2)
    found, _ = sdpa_attention_forward(
        module, queries, gathered(key), gathered(value), attention_mask, **options
    )
    return found.reshape(batch, size, heads, -1), None
