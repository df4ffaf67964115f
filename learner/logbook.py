"""Training curves: TensorBoard always, Weights & Biases on request."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posteriori.config import RunConfig
from posteriori.errors import UserError


class Logbook:
    """Writes metrics by step.

    Args:
        directory: the run's directory; curves lie in ``tensorboard/``.
        config: the resolved run file.
        step: where the run starts from; curves beyond it, of a killed attempt, are dropped.

    Raises:
        UserError: ``wandb`` is set and not installed.
    """

    def __init__(self, directory: Path, config: RunConfig, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard: Any = SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1 if step else None
        )
        self._wandb = _start_wandb(directory, config) if config.wandb else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step."""
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        """Flush and close."""
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb(config: RunConfig) -> None:
    """Refuse a run that wants Weights & Biases where it is not installed.

    Raises:
        UserError: ``wandb`` is set and not installed.
    """
    if config.wandb and find_spec("wandb") is None:
        raise UserError(
            "The run file sets wandb: true, and the wandb package is not installed.",
            "Install it with `pip install wandb`, or set wandb: false; TensorBoard is always on.",
        )


def _start_wandb(directory: Path, config: RunConfig) -> Any:
    check_wandb(config)
    import wandb

    return wandb.init(
        project="posteriori",
        id=config.run,
        dir=str(directory),
        config=config.model_dump(mode="json"),
        resume="allow",
    )
