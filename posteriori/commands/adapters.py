"""Adapter versions copied from the store into a run's directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from posteriori.commands.run_directory import RunDirectory
from posteriori.config import RunConfig
from posteriori.fitted_reward import FittedReward
from posteriori.problems import Problem
from posteriori.seams import AdapterStore


def export(adapters: AdapterStore, version: int, target: Path) -> None:
    """Write a version as the PEFT directory ``target``, replacing an older one as a whole.

    Raises:
        UserError: the version is not in the store.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch:
        fetched = adapters.fetch(version, Path(scratch))
        old = Path(scratch) / "old"
        if target.exists():
            target.rename(old)
        shutil.move(fetched, target)


def export_reward(adapters: AdapterStore, directory: RunDirectory) -> None:
    """Write the newest adapter of the reward of a run with M steps; nothing where there was none."""
    version = adapters.latest()
    if version:
        export(adapters, version, directory.reward_adapters / f"v{version}")


def use_exported_reward(
    directory: RunDirectory, config: RunConfig, problems: list[Problem]
) -> None:
    """Score by the newest exported adapter of the reward, in a run with M steps."""
    found = {int(path.name[1:]): path for path in directory.reward_adapters.glob("v*")}
    if config.em is None or not found:
        return
    newest = max(found)
    FittedReward(problems, config.em.objective).use(found[newest], newest)
