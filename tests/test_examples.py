"""Every shipped run file loads, builds and has an exact oracle."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from posteriori import config as run_file
from posteriori.commands import train

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


def test_there_is_an_example_of_every_kind() -> None:
    kinds = {problem.kind for file in EXAMPLES for problem in run_file.load(file).problems}
    presets = {"tempered", "contrastive", "constrained", "infilling", "reverse", "reasoning"}
    assert kinds >= presets | {"uniform", "preference"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_dry_run(file: Path) -> None:
    output = StringIO()
    train.dry_run(run_file.load(file), Console(file=output, width=200))
    assert output.getvalue().count("exact oracle") == len(run_file.load(file).problems)
