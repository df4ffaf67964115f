"""Generated sets: in the paper's formats, right, without leakage, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from posteriori.data import read, refuse_leaks
from posteriori.data.generated import write_data
from posteriori.data.records import Record
from posteriori.errors import UserError
from posteriori.pocket.judge import judge


def x_of(record: Record) -> str:
    return record.fields["x"]


def make(kind: str, out: Path, seed: int = 0, train: int = 60, test: int = 40) -> dict[str, int]:
    return write_data(kind, out, train=train, test=test, rationales=10, seed=seed)


def test_sums_are_right_and_their_rationales_lead_there(tmp_path: Path) -> None:
    files = make("arithmetic", tmp_path)
    assert set(files.values()) == {60, 40, 10} and len(files) == 5
    parts = {name: read(tmp_path / name, "arithmetic") for name in files}
    training = parts["train_with_rationale.json"] + parts["train_without_rationale.json"]
    for name, records in parts.items():
        operands = [
            len(x_of(r).removeprefix("Question: ").split(" = ")[0].split()) for r in records
        ]
        if name.startswith("test"):
            assert set(operands) == {2 * int(name.split("_")[1]) - 1}
            refuse_leaks(training, records, x_of)
        for record in records:
            expression = x_of(record).removeprefix("Question: ").removesuffix(" = ? Answer:")
            value = sum(
                int(sign + digit)
                for sign, digit in zip(
                    ["+", *expression.split()[1::2]], expression.split()[::2], strict=True
                )
            )
            assert record.fields["answer"] == str(value)
    gold = parts["train_with_rationale.json"][0].fields
    *_, last = gold["rationale"].removesuffix(" =").split(" =, ")
    left, sign, right = last.split()
    assert int(left) + int(sign + right) == int(gold["answer"])


def test_reviews_and_stories(tmp_path: Path) -> None:
    make("reviews", tmp_path)
    train, test = (read(tmp_path / f"{part}.jsonl", "subj") for part in ("train", "test"))
    refuse_leaks(train, test, x_of)
    assert {record.fields["y"] for record in train} == {"objective", "subjective"}
    make("stories", tmp_path)
    train, test = (read(tmp_path / f"{part}.csv", "rocstories") for part in ("train", "test"))
    refuse_leaks(train, test, x_of)
    for record in test:
        assert judge(x_of(record) + record.fields["middle"] + record.fields["y"])


def test_a_seed_gives_one_data_set(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make("reviews", tmp_path / name, seed, train=5, test=5)
    same, again, other = ((tmp_path / name / "train.jsonl").read_text() for name in "abc")
    assert same == again != other


def test_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not have 5000 new items"):
        make("arithmetic", tmp_path, test=5000)
    with pytest.raises(UserError, match="No data set 'sums'"):
        make("sums", tmp_path)
