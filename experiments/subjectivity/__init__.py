"""Objective or subjective? A label through a latent rationale of at most five tokens (paper, section 4.3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.harness import Claim, Column, Experiment, Row, Summary, Trial
from experiments.subjectivity.data import SIZES, Item, own_sets, subj_sets
from experiments.subjectivity.methods import (
    Effort,
    base_chains,
    in_context,
    rationales,
    supervised,
    zero_shot,
)
from experiments.subjectivity.plot import draw
from posteriori.lm import LanguageModel

SUBJ = Path("../shared/data/subj")
"""The paper's files, which are not part of the project."""
SUBJ_MODEL = Path("runs/subjectivity-lm")
"""Made by ``python -m experiments.subjectivity.adapt --out runs/subjectivity-lm``."""

FULL = Effort(sft_steps=25, learner_steps=40, em_steps=40, m_steps=10)
SUBJ_FULL = Effort(sft_steps=100, learner_steps=150, em_steps=75, m_steps=10)
"""Longer: an LM that knows nothing of the classes but their words needs more than a push."""
QUICK = Effort(sft_steps=2, learner_steps=4, em_steps=4, m_steps=1)
TEST_ITEMS = 100
"""Generated reviews, a seed; each seed draws its own."""
SUBJ_TEST_ITEMS = 300
"""Sentences of SUBJ, a seed: a standard error of three points."""
QUICK_TEST_ITEMS = 4

Rows = dict[str, dict[str, float]]
"""Method → metrics."""


def run(trial: Trial) -> Sequence[Row]:
    """Both data sets. Each size of each is kept when it is done: an interrupted seed goes on there."""
    found: Rows = {}
    for data in _data_sets(trial):
        name = data.name
        for n in SIZES[:1] if trial.quick else SIZES:
            kept = trial.directory.parent / f"seed-{trial.seed}-{name}-{n}.json"
            if not kept.exists():
                training, test = data.sets()
                few, lm = training[:n], trial.load(data.model)
                rows = _methods(lm, few, test, data.effort, trial, f"{name}-{n}")
                kept.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            for method, metrics in json.loads(kept.read_text(encoding="utf-8")).items():
                row = found.setdefault(method, {})
                row[f"{name}_{n}"] = metrics.pop("accuracy")
                row.update({f"{name}_{key}_{n}": value for key, value in metrics.items()})
    return [Row(method, metrics) for method, metrics in found.items()]


@dataclass(frozen=True)
class _DataSet:
    """What there is to label.

    Attributes:
        name: in the rows.
        model: the base LM.
        sets: makes (training items, test items).
        effort: of the trained methods.
    """

    name: str
    model: str
    sets: Callable[[], tuple[Sequence[Item], Sequence[Item]]]
    effort: Effort


def _data_sets(trial: Trial) -> list[_DataSet]:
    """The data sets that are there."""
    seed = trial.seed
    if trial.quick:
        trial.console.print("SUBJ is left out: not in the quick form.", highlight=False)
        return [_DataSet("own", "pocket", lambda: own_sets(seed, QUICK_TEST_ITEMS), QUICK)]
    own = _DataSet("own", "pocket", lambda: own_sets(seed, TEST_ITEMS), FULL)
    missing = [str(path) for path in (SUBJ, SUBJ_MODEL) if not path.exists()]
    if missing:
        trial.console.print(
            f"SUBJ is left out: there is no {' and no '.join(missing)}.", highlight=False
        )
        return [own]
    subj = _DataSet(
        "subj", str(SUBJ_MODEL), lambda: subj_sets(SUBJ, seed, SUBJ_TEST_ITEMS), SUBJ_FULL
    )
    return [own, subj]


def _methods(
    lm: LanguageModel,
    few: Sequence[Item],
    test: Sequence[Item],
    effort: Effort,
    trial: Trial,
    name: str,
) -> Rows:
    """Every method with these labelled items."""
    seed = trial.seed
    demonstrated, used = in_context(lm, few, test, seed)
    rows: Rows = {
        "zero-shot": {"accuracy": zero_shot(lm, test)},
        "chains of the base LM": base_chains(lm, test, seed),
        "ICL": {"accuracy": demonstrated, "demonstrations": used},
        "SFT": {"accuracy": supervised(lm, few, test, effort.sft_steps, seed)},
    }
    for method, em in (("GFN", False), ("GFN + EM", True)):
        directory = trial.directory / f"{name}-{'em' if em else 'gfn'}"
        rows[method] = rationales(lm, few, test, effort, seed, directory, em=em)
    figures = ", ".join(f"{method} {row['accuracy']:.3f}" for method, row in rows.items())
    trial.console.print(f"{name}, seed {seed}: {figures}", highlight=False)
    return rows


def claims(summary: Summary) -> Sequence[Claim]:
    """The shape of the paper's table, on each data set there are figures of."""

    def mean(method: str, key: str) -> float | None:
        cell = summary.get(method, {}).get(key)
        return None if cell is None else cell.mean

    found = []
    for name, words in TITLES.items():
        for n in SIZES[:2]:
            gfn, sft = mean("GFN", f"{name}_{n}"), mean("SFT", f"{name}_{n}")
            if gfn is not None and sft is not None:
                found.append(Claim(f"{words}: GFN above SFT with {n} labelled items", gfn > sft))
        gfn, em = mean("GFN", f"{name}_{SIZES[0]}"), mean("GFN + EM", f"{name}_{SIZES[0]}")
        if gfn is not None and em is not None:
            found.append(Claim(f"{words}: EM helps with {SIZES[0]} labelled items", em > gfn))
    return found


TITLES: Mapping[str, str] = {"own": "generated reviews", "subj": "SUBJ"}

EXPERIMENT = Experiment(
    name="subjectivity",
    title="Subjectivity: accuracy by number of labelled items",
    columns=[
        Column(f"{name}_{n}", f"{words}, {n}") for name, words in TITLES.items() for n in SIZES
    ],
    run=run,
    claims=claims,
    plot=partial(draw, data_sets=TITLES, sizes=SIZES),
)
