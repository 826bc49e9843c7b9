"""Other forms of rows in training: repeatable, other in each epoch, tried, and kept where they gain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prompt import make_special_tokenizer
from tests.text import templates
from thrifty.artifacts import Lineage, Store
from thrifty.data.augmentation import (
    AS_IT_IS,
    MADE,
    PLAIN,
    Augmentation,
    list_candidates,
    parse_augmentation,
    read_augmentation,
)
from thrifty.data.noise import Noise
from thrifty.errors import DataError, TrainingError
from thrifty.home import Home
from thrifty.train.examples import encode_row
from thrifty.train.forms import Forms
from thrifty.train.rows import Method, Row, SetAside, parse_row, read_rows

WINDOW = 200
NOISY = Augmentation(Noise(rows=1, words=0.6, kinds=("typing",)), ())


def make_record(number: int, **more: Any) -> dict[str, Any]:
    question = f"Could somebody explain where gardener {number} keeps those wonderful flowers?"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Outside."}]
    return {"messages": turns, **more}


def reword(number: int, method: str = "paraphrase") -> dict[str, Any]:
    said = [{"role": "user", "content": f"Where are the flowers of {number}?"}]
    answer = [{"role": "assistant", "content": "Outside."}]
    return {"method": method, "model": "m", "messages": [*said, *answer]}


def open_rows(records: list[dict[str, Any]], augmentation: Augmentation) -> Forms:
    tokenizer = make_special_tokenizer(templates.CHATML)
    lines = [json.dumps(one).encode() for one in records]
    said = []
    for line in lines:
        row = parse_row(line, 1, Method.SFT, augmentation.made)
        assert isinstance(row, Row)
        examples = encode_row(row, Method.SFT, tokenizer, WINDOW)
        assert not isinstance(examples, str)
        said.append(examples)
    return Forms(said, lines, augmentation, Method.SFT, tokenizer, WINDOW, seed=0)


def test_what_is_asked_for_is_read() -> None:
    assert parse_augmentation("none") == PLAIN
    assert parse_augmentation("auto") == Augmentation(Noise(), MADE, auto=True)
    assert parse_augmentation("auto,noise") == Augmentation(Noise(), (), auto=True)
    assert parse_augmentation("paraphrase, back-translation").made == (
        "paraphrase",
        "back_translation",
    )
    noise = parse_augmentation("noise:rows=0.8:words=0.1:kinds=typing+case").noise
    assert noise == Noise(rows=0.8, words=0.1, kinds=("typing", "case"))
    for text in ("auto", "noise:rows=1", "evolve", "none"):
        found = parse_augmentation(text)
        assert read_augmentation(json.loads(json.dumps(found.as_dict()))) == found
    for text, match in (
        ("loud", "'loud' is no augmentation"),
        ("noise:rows=2", "shares from 0 to 1"),
        ("noise:colour=1", "'colour=1' is no setting of noise"),
        ("", "an augmentation is none, auto"),
    ):
        with pytest.raises(DataError, match=match):
            parse_augmentation(text)
    tried = list_candidates(parse_augmentation("auto"), {"evolve"})
    assert list(tried) == ["noise", "evolve", "all"]
    assert tried["all"] == Augmentation(Noise(), ("evolve",))


def test_epochs_show_other_forms_and_each_is_always_the_same() -> None:
    records = [make_record(number) for number in range(4)]
    forms, again = open_rows(records, NOISY), open_rows(records, NOISY)
    count = len(forms)
    assert count == 4
    plain = [example.texts[0].tokens for example in forms]
    shown = [[list(forms[epoch * count + n].texts[0].tokens) for n in range(count)] for epoch in range(5)]  # fmt: skip
    for epoch in (4, 0, 2):
        assert shown[epoch] == [
            list(again[epoch * count + n].texts[0].tokens) for n in range(count)
        ]
    assert len({tuple(row[1]) for row in shown}) >= 4
    # The answer is learned as it was said.
    for number in range(count):
        text = forms[3 * count + number].texts[0]
        begin, end = text.spans[0]
        before = forms[number].texts[0]
        first, last = before.spans[0]
        assert list(text.tokens[begin:end]) == list(before.tokens[first:last])
    assert any(list(one) != seen for one, seen in zip(plain, shown[1], strict=True))


def test_wordings_that_models_made_take_turns() -> None:
    records = [make_record(n, made=[reword(n), reword(n, "back_translation")]) for n in range(3)]
    forms = open_rows(records, Augmentation())
    seen = {forms.show(1, epoch).messages[0]["content"] for epoch in range(20)}
    assert seen == {records[1]["messages"][0]["content"], "Where are the flowers of 1?"}
    kept = open_rows(records, Augmentation(None, ("evolve",)))
    assert {kept.show(1, epoch).messages[0]["content"] for epoch in range(20)} == {
        records[1]["messages"][0]["content"]
    }


def test_rows_that_were_made_are_read_by_their_method(tmp_path: Path) -> None:
    new = make_record(7, provenance={"made": {"method": "evolve", "model": "m", "keys": ["k"]}})
    pair = {"query": "a", "positive": "b", "negatives": ["c"],
            "made": [{"method": "negatives", "model": "m", "negatives": ["d", "c"]}]}  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (make_record(1), new)))
    read = list(read_rows([path], Method.SFT, SetAside()))
    assert [(row.made, row.sources) for row in read] == [("", ()), ("evolve", ("k",))]
    aside = SetAside()
    assert len(list(read_rows([path], Method.SFT, aside, made=("paraphrase",)))) == 1
    assert not aside.counts, "what was not asked for is not bad"
    path.write_text(json.dumps(pair) + "\n")
    (row,) = read_rows([path], Method.CONTRASTIVE, SetAside())
    assert [one["content"] for one in row.answers] == ["b", "c", "d"]
    (row,) = read_rows([path], Method.CONTRASTIVE, SetAside(), made=())
    assert [one["content"] for one in row.answers] == ["b", "c"]


# Trainings

MODEL = Llama(
    vocab=264, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)
ANSWERS = ("Aye.", "Nay.")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("forms") / "models")
    with store.stage("base") as stage:
        folder = MODEL.write_safetensors(stage / "model", eos_token_id=257)
        make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        store.add(folder, "base", Lineage())
    return store


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def train(
    store: Store, home: Path, data: Path, out: str, augment: Augmentation, **more: Any
) -> Any:
    from thrifty.train.request import TrainingRequest
    from thrifty.train.run import train_model

    settings = {"lora_rank": 8, "learning_rate": 2e-2, "epochs": 3, "window": WINDOW, "batch": 8}
    method = more.pop("method", Method.SFT)
    request = TrainingRequest("base", data, method, out, augment=augment, **{**settings, **more})
    notes: list[str] = []
    version, _ = train_model(store, Home(home), request, on_note=notes.append)
    return version.lineage, notes


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.train.test_run import train_here

    train_here(monkeypatch)
    before = torch.get_num_threads()
    # Models this small are computed faster without waiting for other threads.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.engine
@pytest.mark.usefixtures("here")
def test_a_training_with_noise_repeats_exactly_and_goes_on_to_the_same_curve(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.train import worker

    data = write(tmp_path / "rows.jsonl", [make_record(number) for number in range(24)])
    plain, _ = train(store, tmp_path / "a", data, "plain", AS_IT_IS)
    noisy, _ = train(store, tmp_path / "b", data, "noisy", NOISY)
    assert noisy.figures["losses"] != plain.figures["losses"]
    assert noisy.recipe["augment"]["noise"]["words"] == 0.6
    assert "augment" not in plain.recipe
    assert noisy.figures["before"] == pytest.approx(plain.figures["before"]), "held out as said"
    real, steps = worker.Supervised.loss, 0

    def spoil(self: Any, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        loss, tokens = real(self, *given)
        return (loss * float("nan") if steps > 10 else loss), tokens

    monkeypatch.setattr(worker.Supervised, "loss", spoil)
    with pytest.raises(TrainingError, match="not a number"):
        train(store, tmp_path / "c", data, "again", NOISY)
    monkeypatch.setattr(worker.Supervised, "loss", real)
    again, _ = train(store, tmp_path / "c", data, "again", NOISY, resume=True)
    np.testing.assert_allclose(again.figures["losses"], noisy.figures["losses"], rtol=1e-3, atol=2e-3)  # fmt: skip


@pytest.mark.train
@pytest.mark.usefixtures("here")
def test_pairs_are_learned_in_other_forms_in_each_epoch(store: Store, tmp_path: Path) -> None:
    """The reference, which is asked once for a row that stays the same, is asked for each form."""
    pairs = [
        {"messages": make_record(n)["messages"][:1], "chosen": "Outside.", "rejected": "No."}
        for n in range(13)
    ]
    data = write(tmp_path / "pairs.jsonl", pairs)
    lineage, _ = train(store, tmp_path, data, "pairs", NOISY, method=Method.DPO, epochs=2)
    assert lineage.figures["before"] == pytest.approx(np.log(2), rel=1e-3)
    assert lineage.figures["after"] < lineage.figures["before"]
    assert lineage.figures["details"]["preferred"]["after"] == 1


@pytest.mark.train
@pytest.mark.usefixtures("here")
def test_auto_keeps_what_teaches_more_and_drops_what_does_not(store: Store, tmp_path: Path) -> None:
    """Made rows answer as the held-out ones do, or not at all as they do."""
    held = write(tmp_path / "held.jsonl", [_say(f"Held {number}?", "Nay, my friend.") for number in range(32)])  # fmt: skip
    plain = [_say(f"Plain {number}?", "Nay, my friend." if number < 2 else "Yes.") for number in range(16)]  # fmt: skip
    good = [_say(f"Good {n}?", "Nay, my friend.", method="evolve") for n in range(48)]
    bad = [_say(f"Bad {n}?", "Zzzzzzzz qqq", method="self_instruct") for n in range(48)]
    data = write(tmp_path / "rows.jsonl", [*plain, *good, *bad])
    wanted = Augmentation(None, ("evolve", "self_instruct"), auto=True)
    lineage, notes = train(store, tmp_path / "home", data, "auto", wanted, held_out=held, epochs=4)
    found = lineage.figures["augment"]
    assert found["kept"] == "evolve", notes
    by_name = {one["name"]: one for one in found["trials"]}
    assert by_name["evolve"]["low"] > 0
    assert by_name["self_instruct"]["low"] < 0
    assert by_name["evolve"]["items"] == 32
    assert lineage.figures["rows"]["made"] == {"evolve": 48}
    assert any("evolve gains" in note and note.endswith("kept") for note in notes)
    assert any("self_instruct gains" in note and note.endswith("dropped") for note in notes)
    with pytest.raises(TrainingError, match="cannot tell whether augmentation gains"):
        train(store, tmp_path, data, "few", wanted, held_out=write(tmp_path / "few.jsonl", [_say(f"{n}?", "No.") for n in range(5)]))  # fmt: skip
    with pytest.raises(TrainingError, match="set --epochs, not --minutes"):
        train(store, tmp_path, data, "timed", wanted, epochs=None, minutes=1.0)


def _say(question: str, answer: str, method: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if method is None:
        return {"messages": turns}
    return {"messages": turns, "provenance": {"made": {"method": method, "model": "m", "keys": []}}}
