"""Trainings on rows: what is taught is learned, and a killed training goes on to the same curve."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.data.test_built import publish_rows
from tests.engines.test_prompt import make_special_tokenizer
from tests.text import templates
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.checkpoint import LAYER_MATRICES, load_decoder
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.lora import read_config
from thrifty.data.built import open_set
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import TrainingError
from thrifty.home import Home
from thrifty.train.request import TrainingRequest
from thrifty.train.rows import Method
from thrifty.train.run import train_model
from thrifty.types import Format

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from thrifty.train import register, run, worker  # noqa: E402
from thrifty.train.process import read_report  # noqa: E402

pytestmark = pytest.mark.engine

MODEL = Llama(
    vocab=264, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)
QUESTIONS = [f"{word} {number}?" for number in range(6) for word in ("How", "Who", "Why", "What")]
SETTINGS: dict[str, Any] = {
    "lora_rank": 8, "learning_rate": 3e-2, "epochs": 4, "window": 128, "micro_batch": 4, "batch": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are computed faster without waiting for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("trained") / "models")
    with store.stage("base") as stage:
        folder = MODEL.write_safetensors(stage / "model", eos_token_id=257)
        make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        store.add(folder, "base", Lineage())
    return store


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def write(folder: Path, method: Method) -> Path:
    """Rows that teach one answer to everything."""
    path = folder / f"{method}.jsonl"
    with path.open("w") as file:
        for number, question in enumerate(QUESTIONS):
            row: dict[str, Any] = {"messages": ask(question)}
            if method is Method.SFT:
                row["messages"].append({"role": "assistant", "content": "Aye aye."})
            elif method is Method.DPO:
                row |= {"chosen": "Aye aye.", "rejected": "No."}
            else:
                liked = number % 2 == 0
                row |= {"completion": "Aye aye." if liked else "No.", "label": liked}
            file.write(json.dumps(row) + "\n")
    return path


def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in this process: importing PyTorch again takes longer than the training."""
    from accelerate.state import AcceleratorState

    def run_here(module: str, job: Any, folder: Path, *_: Any) -> Any:
        assert module == run.WORKER
        AcceleratorState._reset_state(reset_partial_state=True)
        (folder / "job.json").write_text(json.dumps(job))
        worker.train(folder, job)
        return read_report(folder) or {}

    monkeypatch.setattr(run, "run_worker", run_here)
    monkeypatch.setattr(run, "EVALUATIONS", 3)


def train(store: Store, home: Path, data: Path, method: Method, out: str, **more: Any) -> Any:
    notes: list[str] = []
    settings = {"model": "base", **SETTINGS, **more}
    request = TrainingRequest(data=data, method=method, out=out, **settings)
    version, artifact = train_model(store, Home(home), request, on_note=notes.append)
    return version, artifact, notes


@pytest.mark.parametrize("method", [Method.SFT, Method.DPO, Method.KTO])
def test_each_method_learns_what_it_is_taught(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    train_here(monkeypatch)
    data = write(tmp_path, method)
    version, artifact, notes = train(store, tmp_path / "home", data, method, f"by-{method}")
    figures = version.lineage.figures
    assert figures["after"] < 0.85 * figures["before"]
    assert figures["rows"]["learned"] + figures["rows"]["held_out"] == len(QUESTIONS)
    assert figures["lora_rank"] == 8
    if method is Method.DPO:
        assert figures["before"] == pytest.approx(np.log(2), rel=1e-3)
        assert figures["details"]["preferred"]["after"] == 1
    if method is Method.KTO:
        assert figures["details"]["liked"]["after"] > figures["details"]["disliked"]["after"]
    recipe = version.lineage.recipe
    assert (recipe["step"], recipe["method"], recipe["data"]) == ("train", method, data.name)
    parent = version.lineage.parents[0]
    assert parent.id == store.find("base")[1].id
    assert load_decoder(store.folder_of(artifact.id)).shape.layers == 1
    assert any("rows are few" in note for note in notes)
    again, _, _ = train(store, tmp_path / "home", data, method, f"by-{method}")
    assert again.label == version.label, "the same request finds what was made"
    assert not list(Home(tmp_path / "home").trainings.iterdir()), "checkpoints are removed"


def test_an_encoder_learns_what_belongs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    train_here(monkeypatch)
    store = Store(tmp_path / "models")
    torch.manual_seed(1)
    config = BertConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=257,
                        num_hidden_layers=1, max_position_embeddings=64)  # fmt: skip
    with store.stage("encoder") as stage:
        BertModel(config).save_pretrained(stage / "model")
        make_tokenizer().tokenizer.save(str(stage / "model" / "tokenizer.json"))
        store.add(stage / "model", "encoder", Lineage())
    path = tmp_path / "texts.jsonl"
    rng = np.random.default_rng(3)
    letters = ["".join(map(chr, rng.integers(97, 123, 6))) for _ in range(64)]
    rows: list[Any] = [{"query": one, "positive": one[::-1]} for one in letters]
    rows += [{"texts": ["a", "b"]}] * 2 + [{"query": "a", "positive": "x" * 99}, {"query": "a"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    request = TrainingRequest(
        "encoder", path, Method.CONTRASTIVE, "near", epochs=4, lora_rank=0, learning_rate=3e-3,
        batch=16, micro_batch=16,
    )  # fmt: skip
    version, artifact = train_model(store, Home(tmp_path), request, on_note=notes.append)
    figures = version.lineage.figures
    assert figures["after"] < 0.8 * figures["before"]
    assert figures["details"]["first"]["after"] >= figures["details"]["first"]["before"]
    assert load_encoder(store.folder_of(artifact.id)).shape.layers == 1
    assert set(figures["rows"]["set_aside"]) == {"too_long", "fields"}
    real, calls = worker.Contrastive.loss, 0

    def fail_once(self: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise TrainingError("killed")
        return real(self, *given)

    monkeypatch.setattr(worker.Contrastive, "loss", fail_once)
    other = replace(request, out="again", seed=1)
    with pytest.raises(TrainingError, match="killed"):
        train_model(store, Home(tmp_path), other)
    resumed = train_model(store, Home(tmp_path), replace(other, resume=True))[0].lineage.figures
    assert resumed["after"] < 0.8 * resumed["before"]
    with pytest.raises(TrainingError, match=r"is an encoder.*take contrastive"):
        train_model(
            store, Home(tmp_path), TrainingRequest("encoder", path, Method.SFT, "x")
        )  # fmt: skip


def test_all_weights_can_be_trained_and_minutes_bound_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch)
    monkeypatch.setattr("thrifty.train.loop.FIRST_EVALUATION_S", 0.2)
    data = write(tmp_path, Method.SFT)
    version, artifact, _ = train(
        store, tmp_path, data, Method.SFT, "whole", lora_rank=0, learning_rate=3e-3, epochs=None,
        minutes=0.2,
    )  # fmt: skip
    figures = version.lineage.figures
    assert figures["after"] < figures["before"]
    assert figures["schedule"] == "constant, then falling"
    before, after = (
        load_decoder(store.folder_of(one)).tensors
        for one in (store.find("base")[1].id, artifact.id)
    )
    kept, learned = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_allclose(after.read_tensor(kept), before.read_tensor(kept), rtol=1e-3)
    assert np.abs(after.read_tensor(learned) - before.read_tensor(learned)).max() > 1e-3


def test_a_loss_that_is_no_number_stops_and_the_last_good_state_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch)
    data = write(tmp_path, Method.SFT)
    steps = 0
    real = worker.Supervised.loss

    def spoil(self: Any, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        loss, tokens = real(self, *given)
        return (loss * float("nan") if steps > 10 else loss), tokens

    monkeypatch.setattr(worker.Supervised, "loss", spoil)
    with pytest.raises(TrainingError, match=r"not a number. The checkpoint of step \d+ is kept"):
        train(store, tmp_path, data, Method.SFT, "spoilt")
    (state,) = Home(tmp_path).trainings.glob("*/state.json")
    assert json.loads(state.read_text())["step"] > 0
    assert (state.parent / "best.safetensors").exists()
    assert not [one for one in store.versions() if one.name == "spoilt"]
    monkeypatch.setattr(worker.Supervised, "loss", real)
    version, _, _ = train(store, tmp_path, data, Method.SFT, "spoilt", resume=True)
    figures = version.lineage.figures
    # What was stopped goes on to the curve of a training that was not.
    plain = train(store, tmp_path / "plain", data, Method.SFT, "plain")[0].lineage.figures
    np.testing.assert_allclose(figures["losses"], plain["losses"], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(figures["held_out"], plain["held_out"], rtol=1e-3, atol=2e-3)


def test_a_training_on_feedback_goes_on_with_the_feedback_that_it_began_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch)
    data, trainings = tmp_path / "sft.jsonl", Home(tmp_path).trainings
    writes = steps = 0
    real = worker.Supervised.loss

    def refresh() -> None:
        nonlocal writes
        writes += 1
        write(tmp_path, Method.SFT)
        said = {"role": "assistant", "content": "Aye aye."}
        row = {"messages": [*ask(f"Really {writes}?"), said]}
        data.write_text(data.read_text() + json.dumps(row) + "\n")

    def spoil(self: Any, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        loss, tokens = real(self, *given)
        return (loss * float("nan") if steps > 10 else loss), tokens

    monkeypatch.setattr(worker.Supervised, "loss", spoil)
    folders = []
    for restart in (False, True):
        steps = 0
        with pytest.raises(TrainingError, match="not a number"):
            train(
                store, tmp_path, data, Method.SFT, "told", refresh=refresh, restart=restart
            )  # fmt: skip
        folders += [path.parent for path in trainings.glob("*/state.json")]
    assert writes == 2
    assert folders[0] != folders[1]
    assert not folders[0].exists(), "nobody goes on with what began with other rows"
    monkeypatch.setattr(worker.Supervised, "loss", real)
    publish_rows(tmp_path, "chats", {}, kind="sft", tokenizer={"model": "x@v1", "identity": "abc"})
    _, _, notes = train(
        store, tmp_path, data, Method.SFT, "told", refresh=refresh,
        data_set=open_set(tmp_path, "chats"),
    )  # fmt: skip
    assert writes == 2
    assert any("the feedback that it began with" in note for note in notes)
    assert any("chats@v1 has lengths in tokens of x@v1" in note for note in notes)
    assert not folders[1].exists()


@pytest.mark.train
@pytest.mark.parametrize("method", [Method.SFT, Method.DPO])
def test_several_processes_learn_what_one_does(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        for number, question in enumerate(QUESTIONS):
            # Answers of many lengths, so that processes have other numbers of tokens.
            said = "Aye. " * (1 + number % 7)
            row: dict[str, Any] = {"messages": ask(question)}
            if method is Method.SFT:
                row["messages"].append({"role": "assistant", "content": said})
            else:
                row |= {"chosen": said, "rejected": "No."}
            file.write(json.dumps(row) + "\n")
    more: dict[str, Any] = {"epochs": 2, "micro_batch": 2, "batch": 4, "learning_rate": 1e-3}
    two = train(store, tmp_path / "two", data, method, "two", processes=2, **more)[0]
    train_here(monkeypatch)
    one = train(store, tmp_path / "one", data, method, "one", **more)[0]
    figures, plain = two.lineage.figures, one.lineage.figures
    np.testing.assert_allclose(figures["losses"], plain["losses"], rtol=5e-3)
    assert figures["after"] == pytest.approx(plain["after"], rel=5e-3)
    for name, value in plain["details"].items():
        assert figures["details"][name]["after"] == pytest.approx(value["after"], abs=2e-3)


def test_faults_of_the_data_are_said(store: Store, tmp_path: Path) -> None:
    def refuse(match: str, *rows: Any, method: Method = Method.SFT, **more: Any) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(TrainingError, match=match):
            train(store, tmp_path, path, method, "x", **more)

    answer = {"role": "assistant", "content": "Aye."}
    good = [{"messages": [*ask(question), answer]} for question in QUESTIONS]
    refuse("has 0 usable sft rows")
    refuse(
        r"at least 10 are needed.*set aside: 3 rows whose roles",
        *good[:5],
        *[{"messages": [answer]}] * 3,
    )
    refuse("with two different prompts", *good[:1] * 30)
    judged = [{"messages": ask(q), "completion": "Aye.", "label": True} for q in QUESTIONS]
    refuse("KTO needs both kinds", *judged, method=Method.KTO)
    refuse("no training to resume", *good, resume=True)
    refuse("either --epochs or --minutes", *good, minutes=1)
    with pytest.raises(TrainingError, match="is no file"):
        train(store, tmp_path, tmp_path / "none", Method.SFT, "x")


@pytest.mark.train
def test_a_killed_training_goes_on_to_the_same_curve(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path, Method.KTO)
    monkeypatch.setattr(run, "EVALUATIONS", 3)
    more = {"epochs": 12, "patience": 1000, "learning_rate": 1e-3}
    killed = threading.Event()

    def kill() -> None:
        trainings = Home(tmp_path / "killed").trainings
        while not list(trainings.glob("*/state.json")):
            time.sleep(0.01)
        for pid in find_workers(str(trainings)):
            os.kill(pid, signal.SIGKILL)
            killed.set()

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    with pytest.raises(TrainingError, match="it was killed"):
        train(store, tmp_path / "killed", data, Method.KTO, "killed", **more)
    watcher.join(60)
    assert killed.is_set()
    (note,) = Home(tmp_path / "killed").trainings.glob("*/state.json")
    step = json.loads(note.read_text())["step"]
    train_here(monkeypatch)
    resumed = train(store, tmp_path / "killed", data, Method.KTO, "killed", resume=True, **more)[0]
    figures = resumed.lineage.figures
    assert 0 < step < figures["steps"]
    plain = train(store, tmp_path / "plain", data, Method.KTO, "plain", **more)[0].lineage.figures
    np.testing.assert_allclose(figures["losses"], plain["losses"], atol=2e-3)
    np.testing.assert_allclose(figures["held_out"], plain["held_out"], atol=2e-3)


def find_workers(folder: str) -> list[int]:
    """The processes that train in a folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "thrifty.train.worker" in line and folder in line:
            found.append(process.pid)
    return found


@pytest.mark.parametrize(
    ("steps", "held_out", "between"),
    [(36, 2, 3), (36, 24, 5), (1000, 24, 100), (30, 2000, 417), (3, 1, 1)],
)
def test_evaluations_take_a_fifth_of_the_time_at_most(
    steps: int, held_out: int, between: int
) -> None:
    assert run.space_evaluations(steps, 8, held_out, 10) == between


def test_an_adapter_is_what_would_have_been_merged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(monkeypatch)
    data = write(tmp_path, Method.SFT)
    merged = train(store, tmp_path / "home", data, Method.SFT, "merged")
    version, artifact, _ = train(store, tmp_path / "home", data, Method.SFT, "tuned", adapter=True)
    base = store.find("base")[1]
    assert artifact.description.format is Format.ADAPTER
    assert artifact.description.base == Parent(base.id, "base@v1")
    assert version.lineage.recipe["adapter"]
    assert version.lineage.figures["after"] == merged[0].lineage.figures["after"]
    found = [load_decoder(store.folder_of(one.id)).tensors for one in (merged[1], artifact)]
    names = [f"model.layers.0.{matrix}.weight" for matrix in LAYER_MATRICES]
    for name in (*names, "model.embed_tokens.weight"):
        np.testing.assert_allclose(
            found[0].read_tensor(name), found[1].read_tensor(name), atol=2e-3
        )
    again = train(store, tmp_path / "home", data, Method.SFT, "tuned", adapter=True)
    assert again[0].label == version.label, "the same request finds what was made"


def test_an_adapter_that_is_trained_again_keeps_its_base(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one holds the changes of both, as if the merged model had been trained."""
    train_here(monkeypatch)
    data = write(tmp_path, Method.SFT)
    made = [train(store, tmp_path / "home", data, Method.SFT, "chain", adapter=True)]
    more = {"model": "chain@v1", "epochs": 2}
    made.append(train(store, tmp_path / "home", data, Method.SFT, "chain", adapter=True, **more))
    first, second = (one[1] for one in made)
    assert first.description.base == second.description.base
    assert made[1][0].lineage.parents[0].name == "chain@v1"
    ranks = [read_config(store.folder_of(one.id))[0] for one in (first, second)]
    assert ranks == [8, 16]
    assert not store.has_name("chain-checkpoint")
    whole = train(store, tmp_path / "home", data, Method.SFT, "whole", **more)
    found = [load_decoder(store.folder_of(one.id)).tensors for one in (second, whole[1])]
    name = "model.layers.0.mlp.up_proj.weight"
    # The merged model was rounded to 16 bits before it was trained on.
    np.testing.assert_allclose(found[0].read_tensor(name), found[1].read_tensor(name), atol=2e-2)
    monkeypatch.setattr(register, "MOST_RANK", 20)
    third = train(
        store, tmp_path / "home", data, Method.SFT, "chain", adapter=True, model="chain@v2"
    )[1]
    assert third.description.base is not None
    assert third.description.base.name == "chain-checkpoint@v2"
    assert read_config(store.folder_of(third.id))[0] == 8


def test_an_adapter_needs_low_rank_changes(store: Store, tmp_path: Path) -> None:
    data = write(tmp_path, Method.SFT)
    with pytest.raises(TrainingError, match="--lora-rank 0 trains all weights"):
        train(store, tmp_path, data, Method.SFT, "no", adapter=True, lora_rank=0)
