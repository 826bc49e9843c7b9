"""Models with fewer tokens: made, planned, evaluated beside the whole one, taught by it, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.compress.small_bpe import make_byte_level, sentences
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.compress.prune.prune import prune_decoder
from thrifty.compress.prune.pruner import ROUNDING
from thrifty.compress.prune.request import PruningRequest
from thrifty.compress.prune.vocabulary import KEPT_TOKENS
from thrifty.errors import CompressionError, EvaluationError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec, parse_vocabulary
from thrifty.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.engine

TOKENIZER = make_byte_level()
SIZE = TOKENIZER.get_vocab_size()


class Mild(Llama):
    """A model that is not too sure of its next token."""

    def make_tensors(self) -> dict[str, Any]:
        tensors = super().make_tensors()
        tensors["model.embed_tokens.weight"] *= 0.3
        return tensors


MODEL = Mild(vocab=SIZE, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=128,
             context=1024, tied=True)  # fmt: skip
TEMPLATE = "{% for m in messages %}<|user|>Zebra: {{ m.content }}<|end|>{% endfor %}<|assistant|>"
KEPT = 448


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("fewer") / "models")


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store, MODEL, tokenizer=TOKENIZER, templates={"default": TEMPLATE},
               eos_token_id=TOKENIZER.token_to_id("<|end|>"))  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("".join(sentences(5, 2000)))
    return path


@pytest.fixture(scope="module")
def fewer(store: Store, made: Any, text: Path) -> tuple[NamedVersion, Artifact]:
    """The model with fewer tokens, and nothing else taken from it."""
    request = PruningRequest(None, "fewer", text, vocabulary=KEPT, tokens=1024)
    version, artifact, report = prune_decoder(store, *made, request)
    assert report is not None
    assert report.chosen.description == f"{KEPT} of {SIZE} tokens"
    again, _, none = prune_decoder(store, *made, request)
    assert (again, none) == (version, None)
    return version, artifact


def test_a_model_with_fewer_tokens_is_whole(store: Store, made: Any, fewer: Any) -> None:
    whole, cut = (store.folder_of(artifact.id) for _, artifact in (made, fewer))
    kept = json.loads((cut / KEPT_TOKENS).read_text())["kept"]
    before, after = load_decoder(whole), load_decoder(cut)
    assert after.shape.vocab_size == KEPT == len(kept)
    assert fewer[1].description.parameters == made[1].description.parameters - 64 * (SIZE - KEPT)
    np.testing.assert_allclose(
        after.tensors.read_tensor("model.embed_tokens.weight"),
        before.tensors.read_tensor("model.embed_tokens.weight")[kept], rtol=2e-3, atol=1e-6,
    )  # fmt: skip
    old, new = TextTokenizer.load(whole), TextTokenizer.load(cut)
    assert new.find_turn_ends() == after.shape.eos_token_ids == (new.encode("<|end|>")[0],)
    said = [{"role": "user", "content": "Ärger mit 日本語 and quick foxes"}]
    prompt = new.render_chat(said)
    assert prompt == old.render_chat(said)
    assert new.decode(new.encode(prompt), skip_special_tokens=False) == prompt
    figures = fewer[0].lineage.figures["vocabulary"]
    assert figures["tokens"], figures["tokens_before"] == (KEPT, SIZE)
    assert figures["parameters"] == 64 * (SIZE - KEPT)
    assert set(figures["longer_by_source"]) == {"calibration"}


def test_it_is_judged_on_the_same_text(store: Store, made: Any, fewer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "e"

    def judge(text: str, model: str = "fewer") -> Any:
        path = tmp_path / "held.txt"
        path.write_text(text)
        options = EvaluationOptions(text=path, window=128)
        return evaluate(model, "tiny@v1", options, store=store, folder=folder).divergence

    usual = judge("".join(sentences(9, 60)))
    assert usual.token_ratio == pytest.approx(1, abs=0.1)
    rare = judge("".join(f"MOUNTAIN WATER WINTER {word}" for word in sentences(9, 40)))
    assert rare.token_ratio > usual.token_ratio
    assert rare.divergence_tokens <= rare.tokens
    assert 0 < rare.kl_divergence.mean < 20
    assert rare.perplexity_ratio > 1
    assert rare.truncation >= -1e-3
    assert judge("".join(sentences(9, 60))) == usual, "recorded, and not run again"
    # What is never removed costs nothing: the others' probability is shared by those that stay.
    cheap = judge("the the the quick the " * 60)
    assert cheap.token_ratio == 1
    assert cheap.perplexity_ratio <= 1.02
    assert cheap.divergence_tokens == cheap.tokens
    options = EvaluationOptions(text=tmp_path / "held.txt", window=128)
    with pytest.raises(EvaluationError, match="different tokenizers"):
        evaluate("tiny@v1", "fewer", options, store=store, folder=folder)


def test_it_learns_from_the_whole_one(store: Store, fewer: Any, text: Path, tmp_path: Path) -> None:
    training = Training(
        tokens=4000, batch_tokens=512, learning_rate=3e-3, freeze_embeddings=False, every_steps=4
    )
    request = DistillationRequest("fewer", "tiny@v1", text, "taught", training, window=128)
    version, _ = distill_model(store, Home(tmp_path), request)
    figures = version.lineage.figures
    assert figures["after"] < 0.97 * figures["before"]
    assert "folded" in version.lineage.recipe["teacher"]


def test_a_size_is_reached_by_what_costs_least(store: Store, made: Any, text: Path) -> None:
    request = PruningRequest(0.8, "planned", text, tokens=1024, vocabulary="auto", depth=False)
    version, artifact, report = prune_decoder(store, *made, request)
    assert report is not None
    assert artifact.description.parameters <= (0.8 + ROUNDING) * report.parameters_before
    assert report.chosen.parameters == artifact.description.parameters
    found = {one.description.partition(",")[0].partition(" tokens")[1] for one in report.candidates}
    assert "" in found, "the layers alone were tried"
    figures = version.lineage.figures
    assert ("vocabulary" in figures) == ("tokens" in figures["way"])
    assert set(figures["calibration_lost_nats_per_byte"]) == {
        one.description for one in report.candidates
    }
    both = replace(request, out="both", vocabulary=0.8)
    version, artifact, report = prune_decoder(store, *made, both)
    assert report is not None
    assert report.chosen.description.startswith("512 of 603 tokens, ")
    assert artifact.description.parameters <= (0.8 + ROUNDING) * report.parameters_before


def test_as_few_as_cost_hardly_anything(store: Store, made: Any, text: Path) -> None:
    request = PruningRequest(None, "auto", text, vocabulary="auto", tokens=1024)
    version, _, _ = prune_decoder(store, *made, request)
    found = version.lineage.figures["vocabulary"]
    assert 256 < found["tokens"] < SIZE
    assert max(found["longer_by_source"].values()) <= 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": None}, "nothing is to be pruned"),
        ({"parameters": None, "vocabulary": 128}, "tokens must stay"),
        ({"parameters": None, "vocabulary": 9000}, "keep fewer of them than that, not 9,000"),
    ],
)
def test_what_cannot_be_done_is_said(
    store: Store, made: Any, text: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"parameters": 0.8, "out": "x", "calibration": text, "tokens": 1024}
    with pytest.raises(CompressionError, match=message):
        prune_decoder(store, *made, PruningRequest(**{**arguments, **changes}))


def test_bytes_alone_leave_nothing_to_remove(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    made = put(store, replace(MODEL, vocab=257))
    text = write_text(tmp_path / "text.txt", 20_000)
    request = PruningRequest(None, "small", text, tokens=1024, vocabulary="auto")
    with pytest.raises(CompressionError, match="no token can go"):
        prune_decoder(store, *made, request)


def test_words_for_numbers_of_tokens() -> None:
    assert [parse_vocabulary(one) for one in ("24000", "0.5", "all", "auto")] == [
        24_000, 0.5, "all", "auto",
    ]  # fmt: skip
    for wrong in ("most", "-1", "0", "1.5", True, None):
        with pytest.raises(ValueError, match="must be a number of tokens"):
            parse_vocabulary(wrong)


def test_the_spec_says_how_many_stay() -> None:
    spec = CompressSpec.model_validate({"prune": {"vocabulary": 24_000}})
    assert spec.is_pipeline
    assert spec.prune.is_wanted
    with pytest.raises(ValueError, match="set 'parameters'"):
        CompressSpec.model_validate({"prune": {"vocabulary": "all"}})
    with pytest.raises(ValueError, match="must be a number of tokens"):
        CompressSpec.model_validate({"prune": {"vocabulary": "few"}})
