"""A language model at a lower temperature, as a model: its logits divided by T in the weights themselves.

A policy for p(Z | X)^{1/T} has to make every logit 1/T times as large before it is as good as ordinary token
tempering, and an adapter inside the layers can hardly do that: the norm before the LM head fixes the length of
what the head reads. A policy whose base is sharpened starts at token tempering and learns only what that gets wrong.
The reward keeps the model as it was.
"""

from __future__ import annotations

from pathlib import Path

import torch

from posteriori.errors import UserError
from posteriori.lm import LanguageModel, model_path


def write_sharpened(model: str, temperature: float, directory: Path) -> Path:
    """Write ``model`` with its logits divided by ``temperature`` as a Hugging Face directory.

    Only the LM head changes; where it shares its weights with the embeddings it gets its own.

    Args:
        model: ``pocket``, a directory or a hub id.
        temperature: T; below 1 sharpens.
        directory: new, or empty.

    Returns:
        The directory.

    Raises:
        UserError: the model cannot be loaded, T is not positive, or the directory is not empty.
    """
    if not temperature > 0:
        raise UserError(f"{temperature:g} is no temperature.", "Give one above 0.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already.", "Give a new directory.")
    lm = LanguageModel.load(model).at_temperature(temperature)
    lm.model.to(_written_dtype(model)).save_pretrained(directory)
    lm.tokenizer.save_pretrained(directory)
    return directory


def _written_dtype(model: str) -> torch.dtype:
    """Of the weights as they lie there."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(model_path(model)).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
