"""Token trees: many continuations of shared prefixes in one forward pass.

A group of trajectories of one X shares its prompt, a reward ``{z}{y}`` needs a copy of y behind every
prefix of z, and an oracle visits every string: all three are trees of tokens. A tree is packed into
one row; node i sees its ancestors and itself through a 4-D attention mask and sits at the position
of its depth. Each distinct prefix then costs one token forward, and equals the plain forward up to
floating-point rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori import attention

IntArray = NDArray[np.int64]

LOGITS_BUDGET = 2**25
"""Largest number of logits materialised at once without gradients: 128 MiB in float32."""


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A packed tree.

    Attributes:
        tokens: token id of each node, int64 [N].
        parents: index of the parent, -1 at roots, int64 [N]; parents precede their children.
        depths: distance from the root, which is the position id, int64 [N].
    """

    tokens: IntArray
    parents: IntArray
    depths: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    def trunk(self) -> tuple[TokenTree, IntArray]:
        """The tree without its leaves, and the indices of the nodes kept.

        A leaf's own hidden state predicts nothing that is asked for: scoring an edge needs its parent's.
        A tree of roots alone keeps them, so that no tree is empty.
        """
        kept = np.unique(self.parents[self.parents >= 0])
        if len(kept) == 0:
            return self, np.arange(len(self))
        parents = self.parents[kept]
        moved = np.where(parents >= 0, np.searchsorted(kept, parents), -1)
        return TokenTree(self.tokens[kept], moved, self.depths[kept]), kept

    def ancestor_mask(self, window: int | None = None) -> NDArray[np.bool_]:
        """mask[i, j]: node i attends to node j; bool [N, N]. ``window`` limits it to that many tokens."""
        size = len(self)
        mask = np.zeros((size, size), dtype=np.bool_)
        order = np.argsort(self.depths, kind="stable")
        bounds = np.searchsorted(self.depths[order], np.arange(self.depths.max() + 2))
        for depth in range(len(bounds) - 1):
            nodes = order[bounds[depth] : bounds[depth + 1]]
            if depth:
                mask[nodes] = mask[self.parents[nodes]]
            mask[nodes, nodes] = True
        if window is not None:
            mask &= self.depths[:, None] - self.depths[None, :] < window
        return mask


class TreeBuilder:
    """Grows a tree; equal prefixes become one node."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._chains: dict[tuple[int, tuple[int, ...]], range] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, parent: int, token: int) -> int:
        """Index of the child of ``parent`` (-1: a root) that carries ``token``."""
        key = (parent, int(token))
        node = self._children.get(key)
        if node is None:
            node = len(self._tokens)
            self._children[key] = node
            self._tokens.append(int(token))
            self._parents.append(parent)
            self._depths.append(self._depths[parent] + 1 if parent >= 0 else 0)
        return node

    def path(self, parent: int, tokens: Iterable[int]) -> list[int]:
        """Indices of the nodes of a chain below ``parent``, one for each token."""
        nodes = []
        for token in tokens:
            parent = self.add(parent, token)
            nodes.append(parent)
        return nodes

    def chain(self, parent: int, tokens: Sequence[int]) -> range:
        """Nodes of a chain below the node ``parent``, shared with equal chains alone and never grown on.

        A copy of one text behind many prefixes costs a look-up for each prefix, not for each token.
        """
        key = (parent, tuple(tokens))
        nodes = self._chains.get(key)
        if nodes is None:
            start, depth = len(self._tokens), self._depths[parent] + 1
            nodes = self._chains[key] = range(start, start + len(tokens))
            self._tokens += tokens
            self._parents += [parent, *nodes[:-1]] if tokens else []
            self._depths += range(depth, depth + len(tokens))
        return nodes

    def build(self) -> TokenTree:
        """The packed tree."""
        return TokenTree(
            tokens=np.asarray(self._tokens, dtype=np.int64),
            parents=np.asarray(self._parents, dtype=np.int64),
            depths=np.asarray(self._depths, dtype=np.int64),
        )


def _attention(masks: Sequence[NDArray[np.bool_]], size: int, model: Any) -> torch.Tensor:
    """Additive mask [B, 1, N, N]; padding nodes attend to themselves so that no softmax is empty."""
    allowed = np.zeros((len(masks), 1, size, size), dtype=np.bool_)
    for row, mask in enumerate(masks):
        allowed[row, 0, : len(mask), : len(mask)] = mask
    allowed[..., np.arange(size), np.arange(size)] = True
    return attention.additive(allowed, model.dtype, model.device)


def _hidden(model: Any, trees: Sequence[TokenTree]) -> torch.Tensor:
    """Last hidden states of every node, [B, N, H], N at least the size of the largest tree."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    size = max(len(tree) for tree in trees)
    options: dict[str, Any] = {}
    if "sliding_attention" in kinds and "full_attention" in kinds:
        whole = [tree.ancestor_mask() for tree in trees]
        near = [tree.ancestor_mask(window) for tree in trees]
        options["attention_mask"] = {
            "full_attention": _attention(whole, size, model),
            "sliding_attention": _attention(near, size, model),
        }
    else:
        # Mistral sets `sliding_window` without naming layer types.
        masks = [
            tree.ancestor_mask(None if kinds == {"full_attention"} else window) for tree in trees
        ]
        blocks = None
        if attention.attends_along_trees(model):
            blocks = attention.cut(masks, model.dtype, model.device)
        if blocks is not None:
            size = blocks.size
            options |= {"attention_mask": blocks.mask, "tree_keys": blocks.keys}
        else:
            options["attention_mask"] = _attention(masks, size, model)
    tokens = np.zeros((len(trees), size), dtype=np.int64)
    positions = np.zeros_like(tokens)
    for row, tree in enumerate(trees):
        tokens[row, : len(tree)] = tree.tokens
        positions[row, : len(tree)] = tree.depths
    output = model.base_model(
        input_ids=torch.from_numpy(tokens).to(model.device),
        position_ids=torch.from_numpy(positions).to(model.device),
        use_cache=False,
        **options,
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def causal_model(model: Any) -> Any:
    """The Hugging Face causal LM inside an optional PEFT wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def node_logits(
    model: Any,
    trees: Sequence[TokenTree],
    nodes: Sequence[IntArray],
    columns: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Next-token logits at chosen nodes, with gradients where enabled.

    Args:
        model: Hugging Face causal LM, or a PEFT model around one.
        trees: B trees, one row each of one forward pass.
        nodes: for each tree the node indices wanted, [Kᵦ].
        columns: vocabulary rows of the LM head to apply, int64 [C]; None: all.

    Returns:
        For each tree logits [Kᵦ, C], float32 (float64 where the model is).
    """
    inner = causal_model(model)
    hidden = _hidden(inner, trees)
    head = inner.get_output_embeddings()
    weight = head.weight if columns is None else head.weight[columns.to(head.weight.device)]
    bias = getattr(head, "bias", None)
    if bias is not None and columns is not None:
        bias = bias[columns.to(bias.device)]
    return [
        _at_least_float32(
            torch.nn.functional.linear(
                hidden[row, torch.as_tensor(wanted, device=hidden.device)], weight, bias
            )
        )
        for row, wanted in enumerate(nodes)
    ]


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def edge_log_probs(
    model: Any, trees: Sequence[TokenTree], wanted: Sequence[NDArray[np.bool_]] | None = None
) -> list[NDArray[np.float64]]:
    """log p(token of the node | path to its parent) over the whole vocabulary, for every node.

    Args:
        wanted: nodes of each tree that are asked for, bool [N]; None: all.

    Returns:
        For each tree float64 [N]; 0 at roots, which nothing precedes, and where nothing is wanted.
    """
    inner = causal_model(model)
    trunks = [tree.trunk() for tree in trees]
    hidden = _hidden(inner, [trunk for trunk, _ in trunks])
    head = inner.get_output_embeddings()
    results = []
    for row, (tree, (_, kept)) in enumerate(zip(trees, trunks, strict=True)):
        scores = np.zeros(len(tree), dtype=np.float64)
        asked = tree.parents >= 0 if wanted is None else (tree.parents >= 0) & wanted[row]
        children = np.flatnonzero(asked)
        parents, place = np.unique(tree.parents[children], return_inverse=True)
        parents = np.searchsorted(kept, parents)
        chunk = max(1, LOGITS_BUDGET // head.weight.shape[0])
        for start in range(0, len(parents), chunk):
            stop = start + chunk
            rows = torch.from_numpy(parents[start:stop]).to(hidden.device)
            logits = _at_least_float32(head(hidden[row, rows]))
            log_z = torch.logsumexp(logits, dim=-1)
            here = children[(place >= start) & (place < stop)]
            local = torch.from_numpy(place[(place >= start) & (place < stop)] - start).to(
                hidden.device
            )
            picked = logits[local, torch.from_numpy(tree.tokens[here]).to(hidden.device)]
            scores[here] = (picked - log_z[local]).double().cpu().numpy()
        results.append(scores)
    return results


def batches(trees: Sequence[TokenTree], nodes_per_batch: int) -> Iterator[list[int]]:
    """Indices of trees in batches whose padded size stays within ``nodes_per_batch`` (or of one tree)."""
    order = sorted(range(len(trees)), key=lambda index: len(trees[index]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(trees[index]) > nodes_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
