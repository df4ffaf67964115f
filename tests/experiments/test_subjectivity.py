"""Subjectivity: sets without leakage, labels by chains, the claims, the quick form."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments import harness
from experiments.harness import Cell
from experiments.subjectivity import EXPERIMENT, adapt, claims
from experiments.subjectivity.data import SIZES, own_reviews, own_sets, subj_sets, subj_split
from experiments.subjectivity.methods import ANSWERS, WORDS, direct, label_by_chains, problem_config
from posteriori.config import ProblemConfig
from posteriori.data import leaks
from posteriori.lm import POCKET, LanguageModel
from posteriori.predictive import predict
from posteriori.problems import build_problem

SUBJ = Path(__file__).parents[3] / "shared" / "data" / "subj"
QUESTION = 'Classify this movie review as objective or subjective: "{}"'


@pytest.fixture(scope="module")
def pocket() -> LanguageModel:
    return LanguageModel.load("pocket")


def test_own_sets_do_not_leak_and_differ_between_seeds() -> None:
    training, test = own_sets(0, 80)
    assert (len(training), len(test)) == (max(SIZES), 80)
    assert not leaks([item.text for item in training], [item.text for item in test])
    assert own_sets(0, 80) == (training, test) != own_sets(1, 80)
    intact = [
        set(item.text.rstrip(".").replace(",", "").split()) for item in own_reviews(50, "train-0")
    ]
    kept = [
        np.mean([word in words for word in item.text.rstrip(".").split()])
        for item, words in zip(training, intact, strict=True)
    ]
    assert 0.4 < np.mean(kept) < 0.7


@pytest.mark.skipif(not SUBJ.exists(), reason="the paper's SUBJ files are not on this machine")
def test_subj_holds_out_what_nothing_has_read() -> None:
    training, held_out = subj_split(SUBJ)
    assert len(training) + len(held_out) == 8000 and len(held_out) >= 2000
    few, test = subj_sets(SUBJ, 0, 50)
    assert [item.text for item in few] == [record.fields["x"] for record in training[:50]]
    held = {record.fields["x"] for record in held_out}
    assert {item.text for item in test} <= held
    again, other = subj_sets(SUBJ, 1, 50)
    assert again != few and other != test and not held & {item.text for item in again}


def test_chains_vote_with_the_label_each_makes_likely(pocket: LanguageModel) -> None:
    items = own_reviews(6, "plain")
    problem = build_problem(ProblemConfig.model_validate(problem_config(items[:1])), pocket)
    found = label_by_chains(pocket, pocket, problem, items, seed=0)
    # Intact reviews are what the model was trained on: its own rationales are right.
    assert found["accuracy"] >= 5 / 6 and found["accuracy_mean"] >= 5 / 6
    assert 0.5 <= found["agreement"] <= 1.0 and 1 <= found["chains"] <= 10
    prompt = problem.prompts[0]
    reasons = {"subjective": " full of praise", "objective": " only facts"}
    for label, reason in reasons.items():
        chain = pocket.encode(reason)
        voted = predict(problem, pocket, prompt, [chain], list(ANSWERS.values()), rule="vote")
        assert voted.best == ANSWERS[label]


def test_direct_labels_compare_both(pocket: LanguageModel) -> None:
    contexts = [f"{QUESTION.format('it is a dull film.')} This review is {z}, so it is" for z in
                ("full of praise", "only facts")]  # fmt: skip
    assert direct(pocket, contexts) == ["subjective", "objective"]


def test_claims_compare_what_there_is() -> None:
    def cells(ten: float, twenty: float) -> dict[str, Cell]:
        return {"own_10": Cell(ten, 0.0, 3), "own_20": Cell(twenty, 0.0, 3)}

    found = claims({"SFT": cells(0.6, 0.9), "GFN": cells(0.7, 0.8), "GFN + EM": cells(0.7, 0.8)})
    assert [claim.holds for claim in found] == [True, False, False]
    assert all("generated reviews" in claim.text for claim in found)


TEXT = [
    f"the {who} ponders a melodramatic {what} ."
    for who, what in itertools.product(("auteur", "heroine"), ("reunion", "finale"))
]


def test_a_new_vocabulary_keeps_old_tokens_and_averages_the_pieces_of_new_ones() -> None:
    old = LanguageModel.load("pocket")
    embeddings = old.model.get_input_embeddings().weight.clone()
    long, pieces = len(old.encode(TEXT[0])), old.encode(" melodramatic")
    tokenizer = adapt.fitted_tokenizer(old.tokenizer, TEXT * 50)
    ids = old.tokenizer.get_vocab()

    new = adapt.with_tokenizer(old, tokenizer)
    rows = new.model.get_input_embeddings().weight
    assert rows.shape[0] == len(tokenizer) == new.model.config.vocab_size
    assert new.model.get_output_embeddings().weight is rows
    common = [(ids[token], row) for token, row in tokenizer.get_vocab().items() if token in ids]
    assert len(common) > 256  # the bytes and then some
    torch.testing.assert_close(
        rows[[row for _, row in common]], embeddings[[old for old, _ in common]]
    )
    (word,) = new.encode(" melodramatic")
    assert len(pieces) > 1
    torch.testing.assert_close(rows[word], embeddings[pieces].mean(dim=0))
    assert len(new.encode(TEXT[0])) < long / 2 and tokenizer.decode(new.encode(TEXT[0])) == TEXT[0]
    assert all(len(new.encode(word)) == 1 for word in WORDS)
    config = new.model.config
    assert config.bos_token_id == new.tokenizer.bos_token_id
    assert config.eos_token_id == new.tokenizer.eos_token_id


def test_documents_ask_without_an_answer_and_garble_only_the_review() -> None:
    drawn = list(itertools.islice(adapt.documents(list(TEXT), adapt.PHASES[0]), 2000))
    asked = {QUESTION.format(item) for item in TEXT}
    unlabelled = [text for text in drawn if text in asked or text in TEXT]
    assert abs(len(unlabelled) / len(drawn) - adapt.UNLABELLED_SHARE) < 0.05
    share = sum(text in asked for text in unlabelled) / len(unlabelled)
    assert abs(share - adapt.ASKED_SHARE) < 0.05
    labelled = [text for text in drawn if text not in asked and text not in TEXT]
    assert all(text.endswith(("so it is objective.", "so it is subjective.")) for text in labelled)
    later = list(itertools.islice(adapt.documents(list(TEXT), adapt.PHASES[1]), 2000))
    halves = [text for text in later if text.endswith('"') and text not in asked]
    wanted = adapt.UNLABELLED_SHARE * adapt.PHASES[1].left_out_share
    assert abs(len(halves) / len(later) - wanted) < 0.05
    for text in halves:
        _, kept, lead, said, _ = text.split('"')
        assert lead in (" This review is ", " It is ")
        assert sorted([*kept.split(), *said.split()]) in [sorted(one.split()) for one in TEXT]
    garbled = adapt.garbled_review(random.Random(1), ["melodramatic"])
    question, review, answer = garbled.split('"')
    assert f'{question}"{{}}"' == QUESTION and answer.startswith(" This review is ")
    assert "melodramatic" in review and set(review.split()) - {"melodramatic", "."}


@pytest.mark.skipif(not SUBJ.exists(), reason="the paper's SUBJ files are not on this machine")
def test_adapting_writes_a_model_that_reads_held_out_sentences_better(tmp_path: Path) -> None:
    report = adapt.adapt(
        SUBJ, tmp_path / "lm", POCKET, [adapt.Phase(3, 1e-3, share, seed=0) for share in (0.0, 0.6)]
    )
    assert report["held_out_nats_per_character"] < report["held_out_nats_per_character_before"]
    lm = LanguageModel.load(str(tmp_path / "lm"))
    assert len(lm.tokenizer) == adapt.VOCABULARY
    assert lm.tokenizer.decode(lm.encode("a moving film")) == "a moving film"


@pytest.mark.slow
def test_quick_form(tmp_path: Path) -> None:
    places = {"work": tmp_path / "w", "out": tmp_path / "o", "console": Console(quiet=True)}
    results = harness.run(EXPERIMENT, seeds=1, quick=True, **places)  # type: ignore[arg-type]
    methods = {row.method: row.metrics for row in results.trials[0]}
    assert list(methods) == ["zero-shot", "chains of the base LM", "ICL", "SFT", "GFN", "GFN + EM"]
    assert all(0 <= metrics["own_10"] <= 1 for metrics in methods.values())
    assert methods["GFN"]["own_loss_10"] > 0
    assert (tmp_path / "o" / "subjectivity.json").exists()
    assert (tmp_path / "o" / "subjectivity.png").stat().st_size > 10_000
