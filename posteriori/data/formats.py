"""The file formats of prompts. Every line becomes a record or an error; none is skipped.

=============  ==========================  ==============================================  =======================
format         file                        what an item holds                              fields
=============  ==========================  ==============================================  =======================
``objects``    .jsonl, .json or .csv       strings by name (CSV: the header names them)    as named
``text``       .txt                        one X a line                                    x
``subj``       .jsonl                      text, label (0 or 1), label_text                x, y
``arithmetic`` .json                       str_query, num_sol, str_sol, [str_rationale]    x, y, answer, [rationale]
``rocstories`` .csv                        storyid, storytitle, sentence1 … sentence5      x, middle, y, title
=============  ==========================  ==============================================  =======================

``x``, ``middle`` and ``y`` are such that x + middle + y is the text: what follows another begins with
its own space. Without a declared format .txt is ``text``, everything else ``objects``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posteriori.data.records import Record, malformed, place
from posteriori.errors import UserError

OBJECT = 'an object of strings such as {"x": "Once upon a time"}'
SUBJ = '{"text": "…", "label": 0, "label_text": "objective"} or the same with 1 and "subjective"'
ARITHMETIC = (
    '{"str_query": "Question: … Answer:", "num_sol": 11, "str_sol": ". The answer is 11."}, '
    'with or without "str_rationale"'
)
SENTENCES = tuple(f"sentence{number}" for number in range(1, 6))
ROCSTORIES = ("storyid", "storytitle", *SENTENCES)
LABELS = ("objective", "subjective")


def read(path: Path, format: str | None = None) -> list[Record]:
    """Every record of a file, in its order.

    Args:
        path: of the file.
        format: a key of ``FORMATS``; None: by the file's suffix.

    Raises:
        UserError: the file cannot be read or is empty, the format is unknown, or a line is malformed
            or empty: names file, line and what was expected.
    """
    name = format or ("text" if path.suffix == ".txt" else "objects")
    if name not in FORMATS:
        raise UserError(f"No data format {name!r}.", f"Choose among {', '.join(FORMATS)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise UserError(f"Cannot read {path}: {cause.strerror}.", "Check the path.") from cause
    except UnicodeDecodeError as cause:
        line = cause.object[: cause.start].count(b"\n") + 1
        raise malformed(place(path, line), "a byte is not UTF-8", "UTF-8 text") from cause
    records = list(FORMATS[name](path, text))
    if not records:
        raise UserError(f"{path} holds no items.", "Give it at least one.")
    return records


def _lines(path: Path, text: str, expected: str) -> Iterator[tuple[str, str]]:
    """(place, line) of every line; the newline at the end of the file begins no line."""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        where = place(path, number)
        if not line.strip():
            raise malformed(where, "the line is empty", expected)
        yield where, line.removesuffix("\r")


def _text(path: Path, text: str) -> Iterator[Record]:
    for where, line in _lines(path, text, "one X a line"):
        yield Record({"x": line}, where)


def _json_lines(path: Path, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path, text, expected):
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as cause:
            raise malformed(where, f"not JSON ({cause.msg})", expected) from cause


def _json_list(path: Path, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    """(place, element) of a JSON list; the place of an element is the line it begins on."""
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        while position < len(text) and text[position].isspace():
            position += 1
        return position

    def where(position: int) -> str:
        return place(path, text.count("\n", 0, position) + 1)

    position = skip(0)
    if text[position : position + 1] != "[":
        raise malformed(where(position), "the file is not a JSON list", f"a list of {expected}")
    position = skip(position + 1)
    more = text[position : position + 1] != "]"
    while more:
        try:
            element, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as cause:
            raise malformed(
                place(path, cause.lineno), f"not JSON ({cause.msg})", expected
            ) from cause
        yield where(position), element
        position = skip(end)
        mark = text[position : position + 1]
        if mark not in ("]", ",") or not mark:
            raise malformed(where(position), "the list does not go on", "`,` or `]`")
        more = mark == ","
        if more:
            position = skip(position + 1)
    if skip(position + 1) < len(text):
        raise malformed(where(skip(position + 1)), "text behind the list", "the end of the file")


def _json(path: Path, text: str, expected: str) -> Iterator[tuple[str, Any]]:
    reader = _json_list if path.suffix == ".json" else _json_lines
    return reader(path, text, expected)


def _table(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of a CSV file's rows; the place is the row's last line."""
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                raise malformed(place(path, rows.line_num), "the line is empty", "a row of cells")
            yield place(path, rows.line_num), row
    except csv.Error as cause:
        raise malformed(place(path, rows.line_num), f"not CSV ({cause})", "a CSV row") from cause


def _objects(path: Path, text: str) -> Iterator[Record]:
    if path.suffix == ".csv":
        table = _table(path, text)
        where, header = next(table, (place(path, 1), []))
        if not header or len(set(header)) != len(header) or not all(header):
            raise malformed(where, f"the header is {header}", "names of fields, each once")
        for where, row in table:
            if len(row) != len(header):
                raise malformed(where, f"{len(row)} cells", f"{len(header)}: {', '.join(header)}")
            yield Record(dict(zip(header, row, strict=True)), where)
        return
    for where, item in _json(path, text, OBJECT):
        if not isinstance(item, dict) or not all(isinstance(v, str) for v in item.values()):
            raise malformed(where, "not an object of strings", OBJECT)
        yield Record(item, where)


def _item(where: str, item: Any, kinds: Mapping[str, type], expected: str) -> dict[str, Any]:
    """The item, once it is an object that holds these keys with values of these kinds."""
    if not isinstance(item, dict):
        raise malformed(where, "not an object", expected)
    for key, kind in kinds.items():
        if key not in item:
            raise malformed(where, f"`{key}` is missing", expected)
        # True is an int to isinstance.
        if not isinstance(item[key], kind) or isinstance(item[key], bool):
            raise malformed(where, f"`{key}` is {item[key]!r}", expected)
        if kind is str and not item[key].strip():
            raise malformed(where, f"`{key}` is empty", expected)
    return item


def _subj(path: Path, text: str) -> Iterator[Record]:
    kinds = {"text": str, "label": int, "label_text": str}
    for where, raw in _json(path, text, SUBJ):
        item = _item(where, raw, kinds, SUBJ)
        if item["label_text"] not in LABELS or item["label"] != LABELS.index(item["label_text"]):
            raise malformed(where, f"label {item['label']} and {item['label_text']!r}", SUBJ)
        yield Record({"x": item["text"], "y": item["label_text"]}, where)


def _arithmetic(path: Path, text: str) -> Iterator[Record]:
    kinds = {"str_query": str, "num_sol": int, "str_sol": str}
    for where, raw in _json(path, text, ARITHMETIC):
        item = _item(where, raw, kinds, ARITHMETIC)
        answer = str(item["num_sol"])
        if item["str_sol"].rstrip(".").split(" ")[-1] != answer:
            raise malformed(where, f"{item['str_sol']!r} does not say {answer}", ARITHMETIC)
        fields = {"x": item["str_query"], "y": item["str_sol"], "answer": answer}
        if "str_rationale" in item:
            fields["rationale"] = _item(where, item, {"str_rationale": str}, ARITHMETIC)[
                "str_rationale"
            ]
        yield Record(fields, where)


def _rocstories(path: Path, text: str) -> Iterator[Record]:
    expected = ", ".join(ROCSTORIES)
    table = _table(path, text)
    where, header = next(table, (place(path, 1), []))
    if tuple(header) != ROCSTORIES:
        raise malformed(where, f"the header is {', '.join(header) or 'missing'}", expected)
    for where, row in table:
        if len(row) != len(ROCSTORIES) or not all(cell.strip() for cell in row):
            raise malformed(where, f"{sum(map(bool, row))} filled cells", f"7: {expected}")
        title, *sentences = (cell.strip() for cell in row[1:])
        yield Record(
            {
                "x": " ".join(sentences[:3]),
                "middle": f" {sentences[3]}",
                "y": f" {sentences[4]}",
                "title": title,
            },
            where,
        )


FORMATS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    "objects": _objects,
    "text": _text,
    "subj": _subj,
    "arithmetic": _arithmetic,
    "rocstories": _rocstories,
}
"""Readers by the name of their format."""
