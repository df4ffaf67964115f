"""The page's files: served as they are, closed to other hosts, and foreign ones as their makers released them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.routers.page import FOLDER
from tests.api.conftest import Running

VENDOR = FOLDER / "vendor"
OWN = sorted(path for path in FOLDER.rglob("*") if path.is_file() and VENDOR not in path.parents)
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture(scope="module")
def http(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as client:
        yield client


def test_every_file_is_served_with_a_policy_that_knows_no_other_host(http: httpx.Client) -> None:
    index = http.get("/")
    assert index.status_code == 200 and index.headers["content-type"].startswith("text/html")
    assert index.text == (FOLDER / "index.html").read_text(encoding="utf-8")
    kinds = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for path in [*OWN, *VENDOR.rglob("*.*")]:
        found = http.get(f"/page/{path.relative_to(FOLDER)}")
        assert found.status_code == 200 and found.content == path.read_bytes()
        assert kinds.get(path.suffix, "") in found.headers["content-type"]
        policy = dict(
            part.strip().split(" ", 1)
            for part in found.headers["content-security-policy"].split(";")
        )
        # No directive allows more than the service itself: no inline code, no eval, no other host.
        assert policy["default-src"] == "'self'"
        assert set(policy.values()) <= {"'self'", "'none'"}
        assert found.headers["x-content-type-options"] == "nosniff"


def test_unchanged_files_are_not_sent_again(http: httpx.Client) -> None:
    tag = http.get("/page/js/main.js").headers["etag"]
    again = http.get("/page/js/main.js", headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.headers["content-security-policy"]


def test_what_is_no_file_of_the_page_is_not_served(http: httpx.Client) -> None:
    for path in ("/page/", "/page/js", "/page/nothing.js", "/page/..%2f..%2fapp.py"):
        found = http.get(path)
        assert found.status_code == 404, path
        assert found.json()["error"]["code"] == "not_found"
    assert http.post("/page/js/main.js").status_code == 405
    assert "/" not in http.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_own_files_name_no_other_host_and_run_nothing_inline(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"'`)]*", text)) <= {
        SVG_NAMESPACE,
        SVG_NAMESPACE.removeprefix("http:"),
    }
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in text
    assert len(text.splitlines()) <= 300
    if path.suffix == ".html":
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_every_import_and_reference_exists() -> None:
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    found = [FOLDER.parent / name for name in re.findall(r'(?:src|href)="(page/[^"]+)"', index)]
    reached, todo = set(found), [path for path in found if path.suffix == ".js"]
    while todo:
        path = todo.pop()
        names = re.findall(r'^import .*? from "([^"]+)";', path.read_text(encoding="utf-8"), re.M)
        for name in names:
            target = (path.parent / name).resolve()
            if target not in reached and VENDOR not in target.parents:
                todo.append(target)
            reached.add(target)
    assert all(path.is_file() for path in reached)
    # And nothing lies about that no page loads.
    assert {path for path in OWN if path.suffix != ".html"} <= {path.resolve() for path in reached}


def test_foreign_files_are_those_that_were_released() -> None:
    recorded = json.loads((VENDOR / "VENDORED.json").read_text(encoding="utf-8"))
    listed = {VENDOR / name / file for name, row in recorded.items() for file in row["files"]}
    assert {path for path in VENDOR.rglob("*") if path.is_file()} == {
        *listed,
        VENDOR / "VENDORED.json",
    }
    for name, row in recorded.items():
        assert {"version", "licence", "source", "source_sha256", "files"} == set(row)
        assert row["version"] in row["source"] and "LICENSE" in row["files"]
        for file, digest in row["files"].items():
            content = (VENDOR / name / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest, file
