"""The policy q: the frozen base LM with a trainable LoRA adapter."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from posteriori.errors import CorruptPayload, UserError
from posteriori.groups import Group
from posteriori.lm import LanguageModel
from posteriori.tree import node_logits

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoraShape(Protocol):
    """What an adapter looks like: rank, alpha and targets (``all-linear`` or projection names)."""

    @property
    def lora_rank(self) -> int: ...

    @property
    def lora_alpha(self) -> float: ...

    @property
    def lora_targets(self) -> tuple[str, ...] | str: ...


class Policy:
    """q(Z | x), normalised over the legal moves at temperature 1.

    The base LM passed in stays as it is: the policy is a second module tree around the same weight
    tensors, so a frozen reward or behaviour model costs no second copy.

    Args:
        lm: base LM, frozen.
        shape: rank, alpha and targets of the adapter.
        seed: of the adapter's random half; the other half is zero, so q starts as the base LM.

    Raises:
        UserError: a target module does not exist or cannot be served by vLLM.
    """

    def __init__(self, lm: LanguageModel, shape: LoraShape, seed: int = 0) -> None:
        from peft import LoraConfig, get_peft_model

        self.lm = lm
        shared = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
        body = copy.deepcopy(lm.model, memo=shared)
        targets = target_modules(body, shape.lora_targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: Any = get_peft_model(
                body,
                LoraConfig(
                    task_type="CAUSAL_LM",
                    r=shape.lora_rank,
                    lora_alpha=shape.lora_alpha,
                    lora_dropout=0.0,
                    bias="none",
                    target_modules=targets,
                    # GPT-2 keeps its projections transposed.
                    fan_in_fan_out=_is_transposed(body, targets),
                ),
            )
        self.model.eval()  # no dropout anywhere while computing log q

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        device: torch.device = self.model.device
        return device

    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def language_model(self) -> LanguageModel:
        """The policy as a language model, for oracles; it follows the adapter as that trains."""
        return LanguageModel(model=self.model, tokenizer=self.lm.tokenizer, name=self.lm.name)

    def log_probs(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """log q of every token and of ⊤ at every prefix, in one forward pass, with gradients.

        Logits are computed only at prefixes where the policy decides, and only for the alphabet.

        Returns:
            ℓ [B, N], 0 in tool outputs and at padding, and t [B, N + 1], -inf where ⊤ is illegal,
            0 in tool outputs and at padding; float32, B trajectories in the order of the groups.
        """
        longest = max(group.action.shape[1] for group in groups)
        tokens, stops = [], []
        for group, moves in zip(groups, log_moves(self.model, groups), strict=True):
            state_of = torch.from_numpy(group.state_of).to(moves.device)
            column_of = torch.from_numpy(group.column_of).to(moves.device)
            action = torch.from_numpy(group.action).to(moves.device)
            decides = torch.from_numpy(group.decides).to(moves.device)
            log_q = moves[state_of[:, :-1], column_of].where(action, 0.0)
            log_q_stop = moves[:, -1][state_of].where(decides, 0.0)
            padding = (0, longest - log_q.shape[1])
            tokens.append(torch.nn.functional.pad(log_q, padding))
            stops.append(torch.nn.functional.pad(log_q_stop, padding))
        return torch.cat(tokens), torch.cat(stops)

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as PEFT's ``save_pretrained`` writes it: file name → bytes.

        The base model is named by its hub id or last path component, so that no directory of this
        machine is written into an artefact that other machines load.
        """
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        settings = self.model.peft_config["default"].to_dict()
        settings["inference_mode"] = True
        settings["base_model_name_or_path"] = portable_name(self.lm.name)
        settings = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return {
            ADAPTER_CONFIG: json.dumps(settings, indent=2, sort_keys=True).encode(),
            ADAPTER_WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        }

    def load_adapter(self, files: Mapping[str, bytes]) -> None:
        """Set the adapter's weights from :meth:`adapter_files`, exactly.

        Raises:
            CorruptPayload: the bytes are not an adapter.
            UserError: they are an adapter of another shape.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        try:
            state = safetensors.torch.load(files[ADAPTER_WEIGHTS])
        except (KeyError, safetensors.SafetensorError) as cause:
            raise CorruptPayload(f"Not an adapter: {cause}.", "Use another checkpoint.") from cause
        mine = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in state.items()}:
            raise UserError(
                "The checkpoint's adapter has another rank, other targets or another base model.",
                "Resume with the run file the run was started with.",
            )
        set_peft_model_state_dict(self.model, state)


def log_moves(model: Any, groups: Sequence[Group]) -> list[Tensor]:
    """log-probability of every move at every state of each group, with gradients where enabled.

    Args:
        model: Hugging Face causal LM, or a PEFT model around one: the base LM or a policy.
        groups: one packed row each of one forward pass.

    Returns:
        For each group float32 [U, V + 1], normalised over the legal moves, -inf elsewhere.
    """
    found = []
    for group, logits in zip(groups, _logits(model, groups), strict=True):
        if group.promises is not None:
            logits = logits + torch.from_numpy(group.promises).to(logits.device)
        legal = torch.from_numpy(group.legal).to(logits.device)
        found.append(torch.log_softmax(logits.masked_fill(~legal, -torch.inf), dim=-1))
    return found


def _logits(model: Any, groups: Sequence[Group]) -> list[Tensor]:
    """Logits [U, V + 1] of each group at its states."""
    trees, states = [group.tree for group in groups], [group.states for group in groups]
    alphabets = [group.column_tokens for group in groups]
    if all(len(a) == len(alphabets[0]) and (a == alphabets[0]).all() for a in alphabets):
        return node_logits(model, trees, states, torch.from_numpy(alphabets[0]))
    found = []
    for tree, nodes, alphabet in zip(trees, states, alphabets, strict=True):
        found += node_logits(model, [tree], [nodes], torch.from_numpy(alphabet))
    return found


def portable_name(name: str) -> str:
    """A model name without directories of this machine."""
    return os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name


def _projections(model: Any) -> list[str]:
    """Full names of the linear maps inside the decoder, LM head and embeddings excluded."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def _is_transposed(model: Any, targets: Sequence[str]) -> bool:
    from transformers.pytorch_utils import Conv1D

    named = dict(model.named_modules())
    return any(
        isinstance(named[name], Conv1D)
        for name in _projections(model)
        if name.rsplit(".", 1)[-1] in targets
    )


def target_modules(model: Any, wanted: Sequence[str] | str) -> list[str]:
    """Last name components of the projections to adapt, sorted.

    vLLM serves LoRA on attention and MLP projections only; embeddings and the LM head stay frozen.

    Raises:
        UserError: a name is not such a projection of this model.
    """
    known = sorted({name.rsplit(".", 1)[-1] for name in _projections(model)})
    if wanted == "all-linear":
        return known
    unknown = sorted(set(wanted) - set(known))
    if unknown or not wanted:
        raise UserError(
            f"learner.lora_targets: {', '.join(unknown) or 'empty'}: not an attention or MLP "
            "projection of this model.",
            f"Choose among {', '.join(known)}, or write all-linear.",
        )
    return sorted(wanted)
