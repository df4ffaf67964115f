"""Sampling with transformers and PEFT, for platforms without vLLM and for fast tests.

The running sequences of one adapter version form one batch over one KV cache. Prompts of different
lengths are padded on the left; requests join their batch after a prefill, which those share whose
prompts are equally long, and leave it sequence by sequence.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from actors.adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_adapter,
    check_slot,
    engine_rank,
)
from actors.behaviour import MoveTable, behaviour_log_q
from posteriori.draft import Draft
from posteriori.errors import UserError
from posteriori.moves import LegalMoves
from posteriori.seams import SampledGroup, SampleRequest


@dataclass(eq=False)
class _Sequence:
    """One Z in the making; ``uniforms`` are the random numbers of its draws. ``read`` counts the
    tokens that the model has seen: it falls behind where a tool answers."""

    group: _Group
    uniforms: NDArray[np.float64]
    draft: Draft
    read: int = 0

    @property
    def finished(self) -> bool:
        return self.draft.finished


@dataclass(eq=False)
class _Group:
    """A request in flight."""

    request: SampleRequest
    table: MoveTable
    sequences: list[_Sequence] = field(default_factory=list)


@dataclass(eq=False)
class _Batch:
    """Sequences decoded together: their KV cache [R, heads, L, head_dim] and left padding [R]."""

    sequences: list[_Sequence]
    cache: Any
    padding: torch.Tensor

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length())

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows, and the padding that no row needs any more."""
        index = torch.tensor(rows, device=self.padding.device)
        self.sequences = [self.sequences[row] for row in rows]
        self.padding = self.padding[index]
        surplus = int(self.padding.min())
        self.padding = self.padding - surplus
        for layer in self.cache.layers:
            layer.keys = layer.keys[index, :, surplus:]
            layer.values = layer.values[index, :, surplus:]

    def join(self, other: _Batch) -> None:
        """Append the rows of ``other``, padding the shorter cache on the left."""
        mine, theirs = self.length, other.length
        longest = max(mine, theirs)
        self.padding = torch.cat([self.padding + longest - mine, other.padding + longest - theirs])
        self.sequences = self.sequences + other.sequences
        for layer, joining in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys = torch.cat([_pad(layer.keys, longest), _pad(joining.keys, longest)])
            layer.values = torch.cat([_pad(layer.values, longest), _pad(joining.values, longest)])


def _pad(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


class TransformersEngine:
    """transformers and PEFT behind :class:`posteriori.seams.Engine`.

    Args:
        model_path: Hugging Face model directory or id.
        lora_rank: largest rank of the adapters to come.
        max_adapters: adapter versions held at once.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        max_model_tokens: prompt and Z together; None: the model's own context.
        device: ``auto`` takes a GPU where there is one.
        seed: of requests without a seed of their own.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        lora_rank: int = 16,
        max_adapters: int = 3,
        dtype: str = "float32",
        max_model_tokens: int | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        from transformers import AutoModelForCausalLM

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(model_path), dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError) as cause:
            raise UserError(
                f"Cannot load a causal language model from {model_path}: {cause}",
                "Give a directory with config.json and weights, or an id that can be reached.",
            ) from cause
        self._model: Any = model.requires_grad_(False).to(device).eval()
        # A second module tree around the same weights: the base LM is sampled without PEFT's layers.
        self._peft: Any = None
        self._active = ""  # the adapter that PEFT has switched on; switching walks the whole tree
        self._device = torch.device(device)
        context = int(model.config.get_text_config().max_position_embeddings)
        self._max_model_tokens = min(max_model_tokens or context, context)
        self._max_rank = engine_rank(lora_rank)
        self._max_adapters = max_adapters
        self._seeds = np.random.default_rng(seed)
        self._names: dict[int, str] = {}  # of the loaded versions, in PEFT
        self._settings: dict[
            str, str
        ] = {}  # of every adapter in PEFT, those of removed versions too
        self._tables: dict[LegalMoves, MoveTable] = {}
        self._groups: dict[str, _Group] = {}
        self._pending: list[_Group] = []
        self._batches: dict[int, _Batch] = {}

    # ------------------------------------------------------------------------------- adapters

    def add_adapter(self, version: int, directory: Path) -> None:
        """Load ``directory`` as ``version``; see :class:`posteriori.seams.Engine`.

        Raises:
            UserError: the files cannot be served, the version is loaded already, or all slots
                are taken.
        """
        check_slot(version, self._names, self._max_adapters)
        check_adapter(directory, self._max_rank)
        settings = (directory / CONFIG_FILE).read_text(encoding="utf-8")
        name = self._free_name(settings)
        try:
            # From bytes: safetensors' own reading of files leaks a string for every tensor.
            weights = safetensors.torch.load((directory / WEIGHTS_FILE).read_bytes())
            self._write(name, directory, weights)
        except (ValueError, RuntimeError, OSError, KeyError) as cause:
            self._unload(name)
            raise UserError(
                f"PEFT cannot load the adapter {directory}: {cause}",
                "Check that it was trained on this model, on its attention and MLP projections.",
            ) from cause
        self._settings[name] = settings
        self._names[version] = name

    def _free_name(self, settings: str) -> str:
        """PEFT's name for one more adapter: that of a removed one with these settings, whose place it takes,
        or else a new one. A bare number would pass for the index of a layer in PEFT's keys."""
        used = set(self._names.values())
        idle = [name for name in self._settings if name not in used]
        for name in idle:
            if self._settings[name] == settings:
                return name
        if len(self._settings) == self._max_adapters:
            self._unload(idle[0])
        return next(name for k in count() if (name := f"slot-{k}") not in self._settings)

    def _write(self, name: str, directory: Path, weights: dict[str, torch.Tensor]) -> None:
        """Give PEFT's adapter ``name`` these weights; make it first if there is none.

        Raises:
            ValueError: there are not exactly the weights of such an adapter.
        """
        from peft import LoraConfig, PeftModel, set_peft_model_state_dict

        self._active = ""
        if self._peft is None or name not in self._peft.peft_config:
            config = LoraConfig.from_pretrained(str(directory))
            if self._peft is None:
                shared = {
                    id(tensor): tensor
                    for tensor in (*self._model.parameters(), *self._model.buffers())
                }
                body = copy.deepcopy(self._model, memo=shared)
                self._peft = PeftModel(
                    body, config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
            self._peft.eval()
        loaded = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        # PEFT names the base model's weights, too, and leaves random what it does not find.
        missing = [k for k in loaded.missing_keys if "lora_" in k and f".{name}." in k]
        wrong = [*missing, *loaded.unexpected_keys]
        if wrong:
            raise ValueError(f"weights {', '.join(wrong[:3])} do not fit the model")

    def remove_adapter(self, version: int) -> None:
        """Free a version.

        Raises:
            ValueError: requests in flight use it, or it is not loaded.
        """
        if version not in self._names:
            raise ValueError(f"adapter version {version} is not loaded")
        if any(g.request.adapter_version == version for g in self._groups.values()):
            raise ValueError(f"adapter version {version} is used by requests in flight")
        del self._names[version]  # the next one of its kind overwrites it

    def _unload(self, name: str) -> None:
        self._settings.pop(name, None)
        if self._peft is None or name not in self._peft.peft_config:
            return
        self._active = ""
        if len(self._peft.peft_config) > 1:
            self._peft.delete_adapter(name)
        else:
            self._peft = None  # PEFT cannot run without any adapter

    @property
    def adapter_versions(self) -> tuple[int, ...]:
        """Loaded versions, ascending, without 0."""
        return tuple(sorted(self._names))

    # ------------------------------------------------------------------------------- requests

    def submit(self, request: SampleRequest) -> None:
        """Queue a request.

        Raises:
            UserError: prompt and longest Z exceed the context, or the prompt is empty.
            ValueError: the id is in flight or the adapter version is not loaded.
        """
        if request.id in self._groups:
            raise ValueError(f"request {request.id} is in flight already")
        if request.adapter_version and request.adapter_version not in self._names:
            raise ValueError(f"adapter version {request.adapter_version} is not loaded")
        tokens = len(request.prompt_ids) + request.moves.longest
        if not request.prompt_ids or tokens > self._max_model_tokens:
            raise UserError(
                f"The prompt has {len(request.prompt_ids)} tokens and Z up to "
                f"{request.moves.longest}; together 1 to {self._max_model_tokens} are served.",
                "Shorten the prompt, lower max_tokens or raise max_model_tokens.",
            )
        seed = self._seeds.integers(2**63) if request.seed is None else request.seed
        uniforms = np.random.default_rng(seed).random((request.n, request.moves.max_tokens + 1))
        group = _Group(request, self._tables.setdefault(request.moves, MoveTable(request.moves)))
        group.sequences = [_Sequence(group, row, Draft(request.moves)) for row in uniforms]
        self._groups[request.id] = group
        self._pending.append(group)

    def cancel(self, request_id: str) -> None:
        """Drop a request; unknown ids are ignored."""
        group = self._groups.pop(request_id, None)
        if group is None:
            return
        if group in self._pending:
            self._pending.remove(group)
        version = group.request.adapter_version
        batch = self._batches.get(version)
        if batch is not None:
            self._shrink(version, batch, [s.group is not group for s in batch.sequences])
        self._forget_moves()

    @torch.inference_mode()
    def step(self) -> list[SampledGroup]:
        """One token for every running sequence; the groups that finished."""
        running = list(self._batches.items())
        for version, batch in running:
            self._decode(version, batch)
        alike: dict[tuple[int, int], list[_Group]] = {}
        for group in self._pending:
            request = group.request
            if not all(sequence.finished for sequence in group.sequences):
                key = request.adapter_version, len(request.prompt_ids)
                alike.setdefault(key, []).append(group)
        for (version, _), groups in alike.items():
            self._prefill(version, groups)
        self._pending.clear()
        finished = [
            group for group in self._groups.values() if all(s.finished for s in group.sequences)
        ]
        for group in finished:
            del self._groups[group.request.id]
        if finished:
            self._forget_moves()
        return [SampledGroup(g.request, [s.draft.sample() for s in g.sequences]) for g in finished]

    @property
    def unfinished(self) -> int:
        """Requests queued or running."""
        return len(self._groups)

    def close(self) -> None:
        """Free the model's memory."""
        self._groups.clear()
        self._pending.clear()
        self._batches.clear()
        self._model = self._peft = None

    # ------------------------------------------------------------------------------- decoding

    def _forward(self, version: int, **inputs: Any) -> torch.Tensor:
        """Logits at the last position, [R, vocabulary], under one adapter version."""
        model = self._model
        if version:
            model = self._peft
            name = self._names[version]
            if name != self._active:
                model.set_adapter(name)
                self._active = name
        logits: torch.Tensor = model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
        return logits

    def _prefill(self, version: int, groups: list[_Group]) -> None:
        """Read each prompt once, draw the first move of every sample, join the version's batch.

        Args:
            version: of all the groups.
            groups: their prompts have one length.
        """
        from transformers import DynamicCache

        # Without the model's configuration the cache keeps every position, sliding windows
        # included: rows of different lengths can then share it, and the mask does the rest.
        cache = DynamicCache()
        prompts = {tuple(map(int, group.request.prompt_ids)): None for group in groups}
        place = {prompt: row for row, prompt in enumerate(prompts)}
        ids = torch.tensor(list(prompts), device=self._device)
        logits = self._forward(version, input_ids=ids, past_key_values=cache)
        sequences = [sequence for group in groups for sequence in group.sequences]
        rows = [place[tuple(map(int, s.group.request.prompt_ids))] for s in sequences]
        self._draw(sequences, logits[rows])
        running = [k for k, sequence in enumerate(sequences) if not sequence.finished]
        if not running:
            return
        index = torch.tensor([rows[k] for k in running], device=self._device)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        padding = torch.zeros(len(running), dtype=torch.int64, device=self._device)
        joining = _Batch([sequences[k] for k in running], cache, padding)
        batch = self._batches.setdefault(version, joining)
        if batch is not joining:
            batch.join(joining)

    def _decode(self, version: int, batch: _Batch) -> None:
        """One forward of a batch: each sequence reads a token, and moves once it has read all of its own."""
        read = [[sequence.draft.tokens[sequence.read]] for sequence in batch.sequences]
        positions = torch.arange(batch.length + 1, device=self._device)
        mask = positions >= batch.padding.unsqueeze(1)
        logits = self._forward(
            version,
            input_ids=torch.tensor(read, device=self._device),
            attention_mask=mask.long(),
            position_ids=(batch.length - batch.padding).unsqueeze(1),
            past_key_values=batch.cache,
        )
        for sequence in batch.sequences:
            sequence.read += 1
        ready = [row for row, s in enumerate(batch.sequences) if s.read == len(s.draft.tokens)]
        self._draw([batch.sequences[row] for row in ready], logits[ready])
        self._shrink(version, batch, [not sequence.finished for sequence in batch.sequences])

    def _shrink(self, version: int, batch: _Batch, keep: list[bool]) -> None:
        rows = [row for row, kept in enumerate(keep) if kept]
        if not rows:
            del self._batches[version]
        elif len(rows) < len(keep):
            batch.keep(rows)

    def _draw(self, sequences: list[_Sequence], logits: torch.Tensor) -> None:
        """Draw one move for every row of logits [R, vocabulary] by inverting its distribution."""
        rows_of_table: dict[MoveTable, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows_of_table.setdefault(sequence.group.table, []).append(row)
        for table, rows in rows_of_table.items():
            drawn = [sequences[row] for row in rows]
            lengths = [sequence.draft.actions for sequence in drawn]
            behaviours = [sequence.group.request.behaviour for sequence in drawn]
            at = torch.tensor(rows, device=self._device).unsqueeze(1)
            compact = logits[at, table.columns(self._device)]
            table_rows = [
                table.row(length, s.draft.state) for length, s in zip(lengths, drawn, strict=True)
            ]
            log_q = behaviour_log_q(
                table.scores(compact, table_rows),
                torch.tensor([[b.temperature] for b in behaviours], device=self._device),
                torch.tensor([[b.epsilon] for b in behaviours], device=self._device),
            ).cpu()
            cumulative = log_q.double().exp().cumsum(dim=-1)
            uniforms = [s.uniforms[length] for length, s in zip(lengths, drawn, strict=True)]
            # Scaled by the total, the first column whose cumulative mass exceeds u is always legal.
            threshold = (
                torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1) * cumulative[:, -1:]
            )
            columns = (cumulative <= threshold).sum(dim=-1).tolist()
            for sequence, column, row_log_q in zip(drawn, columns, log_q.numpy(), strict=True):
                token = int(table.moves.column_tokens[column])
                sequence.draft.act(token, float(row_log_q[column]), float(row_log_q[-1]))

    def _forget_moves(self) -> None:
        used = {group.request.moves for group in self._groups.values()}
        self._tables = {moves: table for moves, table in self._tables.items() if moves in used}
