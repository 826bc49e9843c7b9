"""The request log as a source, the length in tokens, packs, and rows that a model is not judged by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.artifacts.models import write_model
from tests.curate.made import make_chats, talk, write_lines
from tests.feedback.test_export import DOWN, UP, respond, say
from thrifty.artifacts import Store
from thrifty.cli.data_sets import tell_history
from thrifty.curate.build import build_data
from thrifty.curate.making import find_key
from thrifty.curate.quality import TABLES, judge_text, load_table
from thrifty.curate.select import pack_rows
from thrifty.data.built import open_set
from thrifty.data.token_lengths import identify
from thrifty.db import Database, open_database
from thrifty.db.feedback import Item
from thrifty.db.subjects import open_subjects
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.erase.erase import erase_person
from thrifty.errors import DataError
from thrifty.feedback.export import Form, Skipped, export_rows
from thrifty.home import Home
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.rows import Method, SetAside, read_rows
from thrifty.train.shown_row import show_tokens


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    home.root.mkdir()
    database = open_database(home.database_url, migrate=True)
    yield database
    database.close()


def test_judged_answers_become_rows_with_their_history(home: Home, database: Database) -> None:
    for number in range(1, 9):
        respond(
            database,
            number,
            f"What is the {number}th question, please?",
            f"It is {number}.",
            end_user=f"u{number}",
        )
        say(database, number, UP if number % 2 else DOWN, user=f"u{number}")
    built = build_data(
        {"kind": "kto", "sources": [{"log": "echo"}], "split": 0.25}, "liked", home=home
    )
    assert (built.count("train"), built.count("test")) == (6, 2)
    split, row = built.read_row(0)
    history = row["provenance"]
    number = history["response"]
    assert split == "train"
    assert row["label"] == bool(number % 2)
    assert row["completion"] == [{"role": "assistant", "content": f"It is {number}."}]
    assert (history["source"], history["path"]) == ("log:echo", "log:echo")
    assert history["judged"] == ("liked" if number % 2 else "disliked")
    assert history["subjects"][0].startswith("u-")
    with pytest.raises(DataError, match="gives no dpo row for 'echo': responses"):
        build_data({"kind": "dpo", "sources": [{"log": "echo"}]}, "pairs", home=home)
    with pytest.raises(DataError, match="nobody has judged an answer"):
        build_data({"sources": [{"log": "other"}]}, "none", home=home)


def test_of_exported_rows_the_last_turn_alone_is_learned(home: Home, database: Database) -> None:
    before = [
        {"role": "user", "content": "What is a sloop?"},
        {"role": "assistant", "content": "A client wrote this, or nobody judged it."},
    ]
    for number in range(1, 9):
        respond(database, number, f"And the {number}th?", f"It is {number}.", before=before)
        say(database, number, UP, user=f"u{number}")
    rows = [*export_rows(database, Form.SFT, open_subjects(database), Skipped())]
    path = write_lines(home.root / "rows.jsonl", rows)
    settings: dict[str, Any] = {"deduplicate": {"near": False}, "split": 0}
    built = build_data({"sources": [{"path": str(path)}], **settings}, "liked", home=home)
    mixed = {"name": "mixed", "path": str(built.folder / built.files[0].path)}
    again = build_data({"sources": [mixed], **settings}, "again", home=home)
    for one in (built, again):
        paths = [one.folder / file.path for file in one.files]
        read = list(read_rows(paths, Method.SFT, SetAside()))
        assert [row.learned for row in read] == [{3}] * 8
        history = one.read_row(0)[1]["provenance"]
        assert history["judged"] == "liked"
        assert history["feedback"] == [f"fb-{history['response']}"]
        assert find_key(one.read_row(0)[1], "sft") in {row.key for row in read}


def test_a_pair_is_of_all_its_persons(home: Home, database: Database) -> None:
    for number in range(1, 7):
        question = f"What is the {(number + 1) // 2}th question, please?"
        user = "ann" if number % 2 else "bob"
        respond(database, number, question, f"It is {number}.", end_user=user)
        say(database, number, UP if number % 2 else DOWN, user=user)
    respond(database, 7, "What does ann ask alone?", "Nothing.", end_user="ann")
    say(database, 7, Item("correction", text="This."), user="ann")
    rows = [*export_rows(database, Form.DPO, open_subjects(database), Skipped())]
    path = write_lines(home.root / "pairs.jsonl", rows)
    recipe = {"kind": "dpo", "sources": [{"path": str(path)}], "deduplicate": {"near": False}}
    built = build_data({**recipe, "split": 0}, "pairs", home=home)
    path.unlink()
    assert built.count() == 4
    pair = next(row for row in built.read() if len(row["provenance"]["subjects"]) == 2)
    told = "\n".join(tell_history(pair["provenance"], "train", built))
    assert f"responses {pair['provenance']['responses']}" in told
    assert all(name in told for name in pair["provenance"]["feedback"])
    assert len(pair["provenance"]["feedback"]) == 2
    assert erase_person(database, home, "bob").counts["rows of data sets"] == 3
    left = open_set(home.datasets, "pairs")
    left.check()
    assert [row["chosen"][0]["content"] for row in left.read()] == ["This."]


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tokenizer(folder: Path, template: str) -> str:
    """A model with a tokenizer and a chat template, and no weights to speak of."""
    write_model(folder)
    make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_lengths_are_tokens_of_the_model_by_its_template(home: Home, tmp_path: Path) -> None:
    first = write_tokenizer(tmp_path / "small", TEMPLATE)
    rows = [*make_chats(30), talk("Too long a question?", "x y z. " * 200)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    recipe = {
        "sources": [{"path": str(path)}], "length": {"tokenizer": first}, "pack": 900, "split": 0.1,
    }  # fmt: skip
    built = build_data(recipe, "chats", home=home)
    tokenizer = TextTokenizer.load(Path(first))
    assert built.count() == 30
    lengths = []
    for row in built.read("train"):
        text = "".join(f"[{one['role']}]{one['content']}\n" for one in row["messages"])
        lengths.append(len(tokenizer.encode(text, add_special_tokens=False)))
        assert row["provenance"]["tokens"] == lengths[-1]
    packs = list(built.read_packs())
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= 900 for pack in packs)
    built.check_tokenizer(identify(tokenizer))
    row = built.read_row(0)[1]
    (shown,) = show_tokens(built, row, Store(home.models))
    assert shown["text"] == "".join(f"[{one['role']}]{one['content']}\n" for one in row["messages"])
    assert shown["tokens"] == tokenizer.encode(shown["text"], add_special_tokens=False)
    assert shown["learned"]
    # The same vocabulary with another template is another tokenizer.
    other = TextTokenizer.load(
        Path(write_tokenizer(tmp_path / "other", TEMPLATE.replace("[", "<")))
    )
    with pytest.raises(DataError, match="this tokenizer, or its chat template, is another"):
        built.check_tokenizer(identify(other))
    again = build_data(
        recipe | {"length": {"tokenizer": str(tmp_path / "other")}}, "chats", home=home
    )
    assert again.label == "chats@v2"


def test_quality_tables_are_data_that_judge_texts(tmp_path: Path) -> None:
    prose = (
        "The river rises in the hills that lie to the north of the town, and it has to be crossed by "
        "everyone with business on the other side. There was a ferry for centuries. A bridge of stone "
        "took its place when the railway came. Today, both of them are gone, and a tunnel does the "
        "work. People of the town still meet at the old landing on summer evenings. They talk of "
        "floods and of fish."
    )
    for name in TABLES:
        assert judge_text(prose, load_table(name, tmp_path))[1] is None, name
    c4, gopher = load_table("c4", tmp_path), load_table("gopher", tmp_path)
    assert judge_text(f"Home | Menu\n{prose}\nThis site uses cookies.", c4) == (prose, None)
    assert judge_text(prose.replace("river", "{river}"), c4)[1] == "curly brackets"
    assert judge_text("too short", gopher)[1] == "words"
    assert judge_text(f"{prose} " * 3, gopher)[1] in ("repeated 5 words", "commonest 4 words")
    assert (
        judge_text("\n".join(["- another point concerning the lists of names"] * 20), gopher)[1]
        == "bullets"
    )
    assert (
        judge_text("word\n" * 60, load_table("fineweb", tmp_path))[1]
        == "lines that end with a mark"
    )


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 200))
def test_packs_hold_every_row_once_and_no_more_than_fits(lengths: list[int], most: int) -> None:
    packs = pack_rows(np.array(lengths, np.int32), most)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= most for pack in packs)
    # Any two packs have more than fits one of them.
    loads = sorted(sum(lengths[row] for row in pack) for pack in packs)
    assert len(loads) < 2 or loads[0] + loads[1] > most
