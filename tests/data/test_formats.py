"""Reading data files: every line becomes a record or an error that names file, line and expectation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posteriori.data import read
from posteriori.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""The paper's own files; not part of the project."""

SUM = {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 3, "str_sol": ". The answer is 3."}
REVIEW = {"text": "a dull film .", "label": 1, "label_text": "subjective"}
HEADER = "storyid,storytitle,sentence1,sentence2,sentence3,sentence4,sentence5\n"


def written(directory: Path, name: str, content: Any) -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def test_objects_in_three_spellings(tmp_path: Path) -> None:
    rows = [{"x": " the, cat", "id": "a"}, {"x": "two\nlines", "id": "b"}]
    for name, content in (
        ("p.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n"),
        ("p.json", json.dumps(rows, indent=2) + "\n"),
        ("p.csv", 'x,id\r\n" the, cat",a\r\n"two\nlines",b\r\n'),
    ):
        records = read(written(tmp_path, name, content))
        assert [dict(record.fields) for record in records] == rows, name
    assert records[1].where.endswith("p.csv, line 4")


def test_fields_of_the_papers_formats(tmp_path: Path) -> None:
    (prompt, other) = read(written(tmp_path, "p.txt", " Once upon\nThe end"))
    assert (prompt.fields, other.where) == ({"x": " Once upon"}, f"{tmp_path / 'p.txt'}, line 2")
    (review,) = read(written(tmp_path, "r.jsonl", json.dumps(REVIEW)), "subj")
    assert review.fields == {"x": "a dull film .", "y": "subjective"}
    with_z = {**SUM, "str_rationale": "1 + 2 ="}
    plain, gold = read(written(tmp_path, "s.json", [SUM, with_z]), "arithmetic")
    assert plain.fields == {"x": SUM["str_query"], "y": SUM["str_sol"], "answer": "3"}
    assert gold.fields["rationale"] == "1 + 2 ="
    story = HEADER + '7,Title,A.,"B, b.",C.,D.,E.\n'
    (row,) = read(written(tmp_path, "s.csv", story), "rocstories")
    assert row.fields == {"x": "A. B, b. C.", "middle": " D.", "y": " E.", "title": "Title"}


@pytest.mark.parametrize(
    "name, format, content, line, message",
    [
        ("a.jsonl", None, '{"x": "a"}\n\n{"x": "b"}\n', 2, "empty"),
        ("a.jsonl", None, '{"x": "a"}\n   ', 2, "empty"),
        ("a.jsonl", None, "\n", 1, "empty"),
        ("a.jsonl", None, '{"x": "a"}\n{bad', 2, "not JSON"),
        ("a.jsonl", None, '{"x": 1}', 1, "not an object of strings"),
        ("a.txt", None, "one\n\nthree", 2, "empty"),
        ("a.json", None, '{"x": "a"}', 1, "not a JSON list"),
        ("a.json", None, '[\n{"x": "a"},\n{"x": 2}\n]', 3, "not an object of strings"),
        ("a.json", None, '[\n{"x": "a"},\n]', 3, "not JSON"),
        ("a.json", None, '[\n{"x": "a"}\n', 3, "does not go on"),
        ("a.json", None, '[\n{"x": "a"}\n]\nmore', 4, "behind the list"),
        ("a.csv", None, "x,y\na,b\nc\n", 3, "1 cells"),
        ("a.csv", None, "x,x\n", 1, "header"),
        ("a.csv", None, "x,y\n\na,b\n", 2, "empty"),
        ("a.csv", None, 'x,y\n"a,b\n', 2, "not CSV"),
        ("r.jsonl", "subj", {**REVIEW, "label": 0}, 1, "label 0 and 'subjective'"),
        ("r.jsonl", "subj", {**REVIEW, "label": True}, 1, "`label` is True"),
        ("r.jsonl", "subj", {**REVIEW, "text": " "}, 1, "`text` is empty"),
        ("r.jsonl", "subj", {"text": "a"}, 1, "`label` is missing"),
        ("s.json", "arithmetic", [{**SUM, "num_sol": "3"}], 2, "`num_sol` is '3'"),
        ("s.json", "arithmetic", [{**SUM, "num_sol": 4}], 2, "does not say 4"),
        ("s.json", "arithmetic", [SUM, {**SUM, "str_rationale": ""}], 7, "`str_rationale` is empty"),
        ("s.csv", "rocstories", "id,title\n", 1, "header"),
        ("s.csv", "rocstories", "", 1, "header"),
        ("s.csv", "rocstories", HEADER + "7,T,A.,B.,C.,D.,E.\n8,T,A.,B.,,D.,E.\n", 3, "6 filled"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(
    tmp_path: Path, name: str, format: str | None, content: Any, line: int, message: str
) -> None:
    if format == "subj":
        content = json.dumps(content)
    path = written(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read(path, format)
    assert f"{path}, line {line}: " in caught.value.problem
    assert message in caught.value.problem
    assert caught.value.fix.startswith("Expected ")


def test_files_that_hold_nothing_readable(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ""), ("a.json", "[]"), ("a.csv", "x,y\n")):
        with pytest.raises(UserError, match="holds no items"):
            read(written(tmp_path, name, content))
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="No data format 'csv'"):
        read(written(tmp_path, "a.csv", "x\n"), "csv")
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin.txt, line 2: a byte is not UTF-8"):
        read(tmp_path / "latin.txt")


@pytest.mark.skipif(not SHARED.exists(), reason="the paper's data files are not on this machine")
def test_the_papers_own_files() -> None:
    sums = SHARED / "arithmetic"
    with_z = read(sums / "train_50_with_rationale.json", "arithmetic")
    without = read(sums / "train_1000_without_rationale.json", "arithmetic")
    assert (len(with_z), len(without)) == (50, 1000)
    assert with_z[0].fields["rationale"] == "6 - 0 =, 6 - 4 =, 2 - 8 ="
    assert all("rationale" not in record.fields for record in without)
    reviews = read(SHARED / "subj" / "train.jsonl", "subj")
    assert sum(record.fields["y"] == "subjective" for record in reviews) == 4033
    assert len(read(SHARED / "subj" / "train.20.jsonl", "subj")) == 20
