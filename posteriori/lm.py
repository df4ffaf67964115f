"""A causal language model with its tokenizer: loading, and log-probabilities on token trees."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posteriori import tree as token_tree
from posteriori.attention import attend_along_trees
from posteriori.errors import UserError
from posteriori.tree import TokenTree, TreeBuilder, batches

POCKET = Path(__file__).parent / "pocket" / "weights"
"""Directory of the model that ships with the project."""

FINGERPRINT_VALUES = 4096

NODES_PER_FORWARD = 4096
"""Tree nodes, padding included, in one scoring forward."""

NODES_PER_FORWARD_ON_CPU = 512
"""Fewer, so that what a layer writes is still in the cache when the next one reads it."""


def model_path(name: str) -> str:
    """Directory or hub id behind a model name; ``pocket`` is the model that ships."""
    return str(POCKET) if name == "pocket" else name


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal LM in evaluation mode, without gradients for its own weights.

    Attributes:
        model: Hugging Face causal LM.
        tokenizer: its tokenizer.
        name: what it was loaded from.
    """

    model: Any
    tokenizer: Any
    name: str

    @classmethod
    def load(cls, name: str, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
        """Load ``pocket``, a directory or a hub id.

        Raises:
            UserError: nothing loadable is there.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break into the run's own progress view
        path = model_path(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as cause:
            reason = str(cause).strip().splitlines()
            raise UserError(
                f"Cannot load a causal language model from {name!r}: {reason[0] if reason else cause!r}",
                "Give `pocket`, a directory with config.json and weights, or a Hugging Face id that can be reached.",
            ) from cause
        model.requires_grad_(False)
        attend_along_trees(model)
        loaded = cls(model=model.to(device).eval(), tokenizer=tokenizer, name=name)
        loaded._check_head()
        return loaded

    def with_adapter(self, directory: Path) -> LanguageModel:
        """This model under a PEFT adapter, for inference; the base weights are shared, not copied.

        Raises:
            UserError: the directory holds no adapter that fits this model.
        """
        from peft import PeftModel

        shared = {
            id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        try:
            model = PeftModel.from_pretrained(
                copy.deepcopy(self.model, memo=shared), str(directory)
            )
        except (OSError, ValueError, RuntimeError) as cause:
            raise UserError(
                f"Cannot load an adapter for {self.name} from {directory}: {str(cause).splitlines()[0]}",
                "Give a PEFT directory that was trained on this base model.",
            ) from cause
        return LanguageModel(model=model.eval(), tokenizer=self.tokenizer, name=self.name)

    def at_temperature(self, temperature: float) -> LanguageModel:
        """This model with its logits divided by ``temperature``: token tempering, as a model.

        The LM head is a new one, no longer shared with the embeddings; all other weights are shared.
        """
        shared = {
            id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        model = copy.deepcopy(self.model, memo=shared)
        head = model.get_output_embeddings()
        for name, weights in list(head.named_parameters(recurse=False)):
            divided = torch.nn.Parameter(weights.detach() / temperature, requires_grad=False)
            setattr(head, name, divided)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
        return LanguageModel(model, self.tokenizer, f"{self.name} at T = {temperature:g}")

    def _check_head(self) -> None:
        """Refuse models whose logits are more than a linear map of the last hidden state."""
        tokens = np.asarray([self.bos or 0, 1, 2], dtype=np.int64)
        tree = TokenTree(tokens, np.arange(-1, 2), np.arange(3))
        with torch.no_grad():
            ours = token_tree.node_logits(self.model, [tree], [np.arange(3)])[0]
            plain = (
                self.model(torch.from_numpy(tokens)[None].to(self.model.device)).logits[0].float()
            )
        # Half precision rounds the two kernels differently; a scaled or capped head differs by far more.
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 5e-2
        gap = float((ours - plain).abs().max() / plain.abs().max().clamp(min=1.0))
        if gap > tolerance:
            raise UserError(
                f"{self.name}: logits differ from the LM head applied to the last hidden state by {gap:.2g}.",
                "This architecture scales or caps its logits; it is not supported yet.",
            )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights' names, shapes and first values: another model almost surely differs."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            head = tensor.detach().flatten()[:FINGERPRINT_VALUES].cpu().contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(head.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def bos(self) -> int | None:
        """Token every context starts with, if the tokenizer has one."""
        token: int | None = self.tokenizer.bos_token_id
        return token

    @property
    def context_tokens(self) -> int:
        """Longest sequence the model takes."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens (BOS, EOS, padding, …)."""
        return frozenset(int(token) for token in self.tokenizer.all_special_ids)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that carry text."""
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without special tokens.

        Raises:
            UserError: the tokenizer has no token for a part of the text.
        """
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        except Exception as cause:  # tokenizers raises nothing narrower
            raise UserError(
                f"{self.name} cannot tokenise {text!r}: {cause}.", "Use words of its vocabulary."
            ) from cause
        return ids

    def context(self, text: str) -> list[int]:
        """Token ids of a context: BOS, if there is one, then ``text``. Never empty.

        Raises:
            UserError: the text is empty and the model has no BOS.
        """
        ids = ([self.bos] if self.bos is not None else []) + self.encode(text)
        if not ids:
            raise UserError(
                f"The prompt is empty and {self.name} has no beginning-of-sequence token.",
                "Give the prompt at least one token.",
            )
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        decoded: str = self.tokenizer.decode(
            [int(t) for t in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded

    @cached_property
    def _one_token_ids(self) -> dict[str, int]:
        return {
            self.text([token]): token
            for token in range(self.vocabulary_size)
            if token not in self.special_ids
        }

    def one_token(self, text: str, role: str) -> int:
        """The single token whose text is ``text``; special tokens are named by their own spelling.

        Raises:
            UserError: there is none; names what it splits into and the nearest single tokens.
        """
        ids = self.encode(text)
        if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
            return ids[0]
        import difflib

        near = difflib.get_close_matches(text, self._one_token_ids, n=3, cutoff=0.5)
        pieces = ", ".join(repr(self.text([i])) for i in ids) or "nothing"
        hint = f" The nearest are {', '.join(map(repr, near))}." if near else ""
        raise UserError(
            f"{role} {text!r} is not one token of {self.name}: it splits into {pieces}.",
            f"Choose strings that are one token each, leading space included.{hint}",
        )

    def _batches(self, trees: Sequence[TokenTree]) -> Iterator[list[int]]:
        on_cpu = self.model.device.type == "cpu"
        return batches(trees, NODES_PER_FORWARD_ON_CPU if on_cpu else NODES_PER_FORWARD)

    def edge_log_probs(
        self, trees: Sequence[TokenTree], wanted: Sequence[NDArray[np.bool_]] | None = None
    ) -> list[NDArray[np.float64]]:
        """log p(node | path) over the whole vocabulary, for all nodes or those wanted; see ``posteriori.tree``."""
        results: list[NDArray[np.float64]] = [np.empty(0)] * len(trees)
        for batch in self._batches(trees):
            asked = None if wanted is None else [wanted[i] for i in batch]
            found = token_tree.edge_log_probs(self.model, [trees[i] for i in batch], asked)
            for index, scores in zip(batch, found, strict=True):
                results[index] = scores
        return results

    def node_logits(
        self,
        trees: Sequence[TokenTree],
        nodes: Sequence[NDArray[np.int64]],
        columns: NDArray[np.int64],
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (tree index, logits [K, C]) at chosen nodes for chosen vocabulary rows, without gradients."""
        rows = torch.from_numpy(columns)
        for batch in self._batches(trees):
            with torch.no_grad():
                found = token_tree.node_logits(
                    self.model, [trees[i] for i in batch], [nodes[i] for i in batch], rows
                )
            yield from zip(batch, found, strict=True)


def prefix_tree(
    prompt_ids: Sequence[int], sequences: Sequence[Sequence[int]]
) -> tuple[TokenTree, list[NDArray[np.int64]]]:
    """Pack one prompt and its continuations.

    Returns:
        The tree, and for each sequence of length n the nodes of its n + 1 prefixes
        (the first is the last prompt token).
    """
    builder = TreeBuilder()
    root = builder.path(-1, prompt_ids)[-1]
    nodes = [
        np.asarray([root, *builder.path(root, sequence)], dtype=np.int64) for sequence in sequences
    ]
    return builder.build(), nodes
