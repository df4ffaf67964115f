"""Where models live: the CPU or a GPU, by the name a user writes."""

from __future__ import annotations

from posteriori.errors import UserError


def resolve_device(name: str, setting: str = "learner.device") -> str:
    """``auto`` is the first GPU if there is one.

    Args:
        name: of a device, or ``auto``.
        setting: where the user wrote it, for the message.

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
            f"{setting} {name!r} cannot be used: {str(cause).splitlines()[0]}.",
            "Write auto, cpu or cuda.",
        ) from cause
    return name
