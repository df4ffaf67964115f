"""How a learner holds its base model: where it is loaded, and how the policy's decoder layers are run.

In bfloat16, recomputed, compiled, or any of these together. All three leave the adapter's parameters float32 and
where they are, so that optimiser, checkpoints and published adapters know nothing of them. The LM head stays
outside: it is applied to few positions, and what it returns goes into a log-softmax whose differences are the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from posteriori.config import LearnerConfig, RunConfig
from posteriori.errors import UserError
from posteriori.lm import LanguageModel
from posteriori.policy import Policy
from posteriori.tree import causal_model


def load_for_learning(config: RunConfig, device: str) -> LanguageModel:
    """The run's base model, on the device or, where processes share it out, in the host's memory.

    Raises:
        UserError: it cannot be loaded.
    """
    where = "cpu" if config.learner.shard_base else device
    return LanguageModel.load(config.model, dtype=config.dtype, device=where)


def decoder_layers(policy: Policy) -> list[torch.nn.Module]:
    """The policy's decoder layers, first to last.

    Raises:
        UserError: the architecture keeps them in no list.
    """
    model = causal_model(policy.model)
    count = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"{policy.lm.name} does not keep its {count} decoder layers in one list.",
        "Leave learner.shard_base, activation_checkpointing and compile out for this model.",
    )


def run_layers_as_told(policy: Policy, config: LearnerConfig) -> None:
    """Set up what ``bfloat16``, ``activation_checkpointing`` and ``compile`` ask for.

    Raises:
        UserError: the model's decoder layers are not found.
    """
    if config.compile:
        for layer in decoder_layers(policy):
            # The layers are alike: one compilation serves all of them. Trees differ in size.
            _replace_forward(layer, lambda forward: torch.compile(forward, dynamic=True))
    if config.activation_checkpointing:
        for layer in decoder_layers(policy):
            _replace_forward(layer, _recomputed)
    if config.bfloat16:
        autocast = torch.autocast(policy.device.type, dtype=torch.bfloat16)
        _replace_forward(causal_model(policy.model).base_model, autocast)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    # Hugging Face's own switch works in training mode alone, which would turn dropout on.
    return partial(checkpoint, forward, use_reentrant=False)


def _replace_forward(
    module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    module.forward = wrap(module.forward)
