"""Where models live: the CPU or a GPU, by the name a user writes."""

from __future__ import annotations

from posteriori.errors import UserError


def resolve_device(name: str) -> str:
    """``auto`` is the first GPU if there is one.

    Raises:
        UserError: the named device does not exist here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as cause:
        raise UserError(
            f"Device {name!r} cannot be used: {str(cause).splitlines()[0]}.",
            "Write auto, cpu or cuda.",
        ) from cause
    return name
