"""The frozen base model's layers in parts, one for each process (FSDP2), for bases no single GPU holds.

A layer's weights are gathered when a pass comes to it and let go behind it. The adapter, the embeddings
and the LM head stay whole everywhere: the adapter is what is learned, and the head is applied to chosen
rows. Passes are collective: see :meth:`learner.team.Team.shard`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from learner.layers import decoder_layers
from posteriori.policy import Policy
from posteriori.tree import causal_model


def shard_layers(policy: Policy, device: str) -> None:
    """Keep this process's part of every decoder layer's frozen weights on ``device``.

    The policy's base model may lie in the host's memory: it stays there, for rewards, and is never on the
    device as a whole. Call it when the process group is up and before parameters go to an optimiser.
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for layer in decoder_layers(policy):
        learned = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, ignored_params=learned, reshard_after_forward=True)
    for module in policy.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type != mesh.device_type:
                # A new tensor: the base model outside the policy keeps the old one.
                moved = torch.nn.Parameter(parameter.to(device), parameter.requires_grad)
                module.register_parameter(name, moved)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type != mesh.device_type:
                module.register_buffer(name, buffer.to(device), persistent=False)


def watch_passes(policy: Policy, before: Callable[[], None]) -> None:
    """Call ``before`` whenever a pass through the policy begins."""
    body = causal_model(policy.model).base_model
    body.register_forward_pre_hook(lambda module, arguments: before())


def idle_pass(policy: Policy, gradients: bool) -> None:
    """One pass of one token that leaves nothing behind: what a process without work does meanwhile."""
    body = causal_model(policy.model).base_model
    token = torch.zeros((1, 1), dtype=torch.int64, device=policy.device)
    with torch.set_grad_enabled(gradients):
        hidden = body(input_ids=token, use_cache=False).last_hidden_state
        if gradients:
            (0.0 * hidden.sum()).backward()
