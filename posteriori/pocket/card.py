"""The model card of pocket: text and loss curve made from what was measured, no figure by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from posteriori.pocket.corpus import DOCUMENT_WEIGHTS, GENRES, documents
from posteriori.pocket.recipe import RECIPES, Recipe

_HEAD: Final = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A base language model small enough to ship with the project and to train, sample and enumerate on
two CPU cores. It knows a toy world, not English: every sentence it has seen was written by the
generator in `posteriori/pocket`.
"""

_USE: Final = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from posteriori.pocket import WEIGHTS

tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
ids = tokenizer("Tom had a red key.", return_tensors="pt").input_ids  # begins with <|bos|>
print(tokenizer.decode(model.generate(ids, do_sample=True, top_k=0, max_new_tokens=60)[0]))
```

Documents are `<|bos|>` text `<|eos|>`. The tokenizer puts `<|bos|>` in front; pass
`add_special_tokens=False` for segments that go after other text. A word with the space before it is
one token, so is a digit or a mark; text cut at a space before a word tokenises the same as the
whole.

**Intended for** tests, demonstrations and exact comparisons: problems whose posterior can be
enumerated, few-shot arithmetic with a calculator, infilling of five-sentence stories, labels with
rationales.

**Limits.** Not a model of English: words outside the world are spelt by byte pieces that it has
hardly seen. Rows of training text are {row_tokens} tokens; up to {positions} positions are allowed
but the later ones are untrained. Arithmetic and labels are wrong in the training text at rates
stated in the generator, on purpose. Names stand for fixed genders.
"""


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write ``README.md`` and ``curve.png`` into `folder`, which holds ``curve.json``.

    `figures` is what `evaluate.evaluate` returns.
    """
    report = json.loads((folder / "curve.json").read_text())
    recipe = RECIPES[report["recipe"]]
    curve = report["curve"]
    if "before" in report:
        earlier = report["before"]["curve"]
        curve = [*earlier, *([earlier[-1][0] + step, loss] for step, loss in curve)]
    _plot(curve, folder / "curve.png")
    parts = [
        _HEAD.format(name=recipe.name.removesuffix("-more")),
        _data(),
        _recipe(recipe, report),
        _measured(figures),
        _samples(figures),
        _USE.format(row_tokens=recipe.row_tokens, positions=recipe.MAX_POSITIONS),
        "\n## Licence\n\nApache-2.0. The training text is generated; nobody's data is in it.\n",
    ]
    (folder / "README.md").write_text("".join(parts))


#: What the shipped weights cannot be told from: the commands above give their like, not their bits.
_EARLIER_TEXT: Final = (
    " The first stage of the weights that ship read an earlier edition of the stories, which named "
    "colours less often."
)


def _plot(curve: list[list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 2.6), dpi=90)
    axes.plot([point[0] for point in curve], [point[1] for point in curve])
    axes.set(xlabel="step", ylabel="nats per token", ylim=(0.5, 3))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _data() -> str:
    total = sum(DOCUMENT_WEIGHTS.values())
    rows = [
        f"| {genre} | {DOCUMENT_WEIGHTS[genre] / total:.0%} "
        f"| {next(documents(3, genre)).text[:300]!r} |\n"
        for genre in GENRES
    ]
    return (
        "\n## Data\n\nAn infinite seeded stream of documents (`posteriori/pocket/corpus.py`), "
        "each used once.\n\n"
        "| genre | documents | example |\n|---|---|---|\n" + "".join(rows)
    )


def _recipe(recipe: Recipe, report: dict[str, Any]) -> str:
    before = report.get("before")
    tokens = recipe.steps * recipe.batch_rows * recipe.row_tokens
    minutes = report["seconds"] / 60
    first = ""
    start = ""
    if before:
        earlier = RECIPES[before["recipe"]]
        tokens += earlier.steps * earlier.batch_rows * earlier.row_tokens
        minutes += before["seconds"] / 60
        first = f"python -m posteriori.pocket.pretrain --recipe {earlier.name} --out FIRST\n"
        start = " --start-from FIRST"
    keys = "".join(f"| {key} | {value} |\n" for key, value in asdict(recipe).items())
    return (
        f"\n## Recipe\n\n```\n{first}"
        f"python -m posteriori.pocket.pretrain --recipe {recipe.name}{start} --out DIR\n"
        "python -m posteriori.pocket.evaluate --model DIR\n```\n\n"
        f"{tokens:,} tokens in {minutes:.0f} minutes on two shared cores; AdamW, "
        "betas 0.9 and 0.95; the learning rate depends on the step alone: in each cycle "
        "warm-up, constant, cosine. Documents packed into one row do not see each other."
        f"{_EARLIER_TEXT if before else ''}\n\n"
        "| | |\n|---|---|\n"
        f"{keys}\n![training loss](curve.png)\n"
        f"\nHeld-out loss on packed rows {report['held_out_loss']:.3f} nats per token, "
        f"perplexity {report['held_out_perplexity']:.3f}.\n"
    )


def _measured(figures: dict[str, Any]) -> str:
    perplexity = "".join(
        f"| {genre} | {row['pocket']:.2f} | {row['5-gram']:.2f} |\n"
        for genre, row in figures["perplexity"].items()
    )
    sums, stories = figures["arithmetic"], figures["stories"]
    arithmetic = "".join(
        f"| {count} | "
        + " | ".join(f"{share:.1%}" for share in sums[f"{count} operands"].values())
        + " |\n"
        for count in (3, 4, 5)
    )
    broken = (
        ", ".join(f"{rule} {count}" for rule, count in stories["broken_rules"].items()) or "none"
    )
    commonest = ", ".join(f"{text!r} {count}" for text, count in figures["numbers"]["commonest"])
    return (
        "\n## Measured\n\nHeld-out perplexity per token, documents on their own; the 5-gram "
        "(interpolated Kneser-Ney) is "
        f"trained on {figures['ngram_tokens']:,} tokens of it.\n\n"
        f"| genre | pocket | 5-gram |\n|---|---|---|\n{perplexity}\n"
        "Stories sampled at temperature 1 after a held-out first sentence: "
        f"{stories['consistent']:.1%} of {stories['stories']} obey all rules of the world "
        f"(`posteriori/pocket/judge.py`), {stories['distinct']} are "
        f"distinct; rules broken by the others: {broken}.\n\n"
        f"Right answers of {sums['questions']} questions each, three right demonstrations in the "
        "prompt, one sample:\n\n"
        f"| operands | {' | '.join(sums['3 operands'])} |\n|---|---|---|---|\n{arithmetic}\n"
        f"Random integers: {figures['numbers']['valid']:.1%} of {figures['numbers']['draws']} "
        "draws are one of 0..99; "
        f"commonest: {commonest}.\n\n"
        f"Reviews without demonstrations: {figures['reviews']['right']:.1%} of "
        f"{figures['reviews']['texts']} sampled rationales end in the right label.\n"
    )


def _samples(figures: dict[str, Any]) -> str:
    lines = [
        f"- {each['text']}" + (f" *(breaks: {each['rule']})*" if each["rule"] else "")
        for each in figures["stories"]["examples"]
    ]
    lines += [f"- `{text.split(' Question')[0]}`" for text in figures["arithmetic"]["examples"]]
    lines += [f"- This review is{text}" for text in figures["reviews"]["examples"][:3]]
    return "\n## Samples\n\n" + "\n".join(lines) + "\n"
