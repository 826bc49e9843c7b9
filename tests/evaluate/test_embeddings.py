"""Comparison of encoders: vectors, similarities, and the resumption of interrupted runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from tests.artifacts.stored import SOURCE
from tests.graphs.test_encoder import CONTEXT, EXACT, VOCAB, embed_plainly, write_pooling
from tests.graphs.test_encoder import write as write_encoder
from thrifty.artifacts import Store
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import EvaluationError, ThriftyError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.domains import Domain
from thrifty.evaluate.embedder import Vectors, encode_text
from thrifty.evaluate.embeddings import (
    CHUNK,
    PASSAGE_CHARS,
    TextVectors,
    cluster_pairs,
    compare_pairs,
    compare_vectors,
    cosines,
    read_pairs,
    read_passages,
)
from thrifty.evaluate.open_model import open_encoder
from thrifty.evaluate.statistics import rank_correlation
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import ignore_progress

WORDS = [f"w{number}" for number in range(4, VOCAB)]


def make_words() -> Tokenizer:
    """One token per word, between a start and an end token."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_texts(path: Path, count: int, seed: int = 1) -> Path:
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        words = generator.choice(WORDS, generator.integers(2, 40))
        lines.append(json.dumps({"text": " ".join(words)}) + "\n")
    path.write_text("".join(lines))
    return path


class Encoder:
    """Vectors from a table of words; counts the texts that it embeds."""

    def __init__(self, noise: float = 0.0, width: int = 16, label: str = "table") -> None:
        generator = np.random.default_rng(5)
        self._table = generator.normal(0, 1, (VOCAB, 16))[:, :width]
        self._table = self._table + np.random.default_rng(6).normal(0, noise, self._table.shape)
        self.label = label
        self.identity = f"{label}-{noise}-{width}"
        self.tokenizer = TextTokenizer(make_words(), None)
        self.width = width
        self.context_length = 1000
        self.given = 0

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        self.given += len(texts)
        return np.array([self._table[ids].sum(axis=0) for ids in texts], np.float32)

    def close(self) -> None: ...


# vectors


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with an encoder, also in 8 bits."""
    store = Store(tmp_path_factory.mktemp("encoders") / "models")
    with store.stage("tiny") as stage:
        (stage / "model").mkdir(parents=True)
        folder = write_encoder(stage / "model", model_type="bert")
        write_pooling(folder, "mean_tokens", normalize=True)
        make_words().save(str(folder / "tokenizer.json"))
        made = store.add(folder, "encoder", SOURCE)
    prepare_model(store, *made, "int8", ignore_progress)
    return store


TEXTS = [[2, 7, 30, 11, 3], [2, 3], [2, *range(4, 24), 3]]


@pytest.mark.engine
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_vectors_are_the_models(store: Store, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    encoder = open_encoder("encoder", store, exact=True, backend=backend)
    assert (encoder.width, encoder.context_length) == (32, CONTEXT)
    expected = [embed_plainly(ids) for ids in TEXTS]
    # The graph stores matrices in 16 bits, like the plain arithmetic; PyTorch uses float32.
    np.testing.assert_allclose(
        encoder.embed(TEXTS), expected, atol=EXACT if backend == "openvino" else 2e-3
    )
    encoder.close()


@pytest.mark.engine
def test_an_evaluation_tells_what_eight_bits_cost(store: Store, tmp_path: Path) -> None:
    text = write_texts(tmp_path / "texts.jsonl", 300)
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    scores = np.random.default_rng(3).uniform(0, 5, 60).round(2).tolist()
    entries = [
        {"texts": [lines[2 * i], lines[2 * i + 1]], "score": score}
        for i, score in enumerate(scores)
    ]
    pairs.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    steps: list[str] = []

    def run() -> Any:
        steps.clear()
        return evaluate(
            "encoder-int8-openvino",
            "encoder",
            EvaluationOptions(text=text, pairs=pairs),
            store=store,
            folder=tmp_path / "e",
            on_progress=lambda step: steps.append(step.step),
        )

    found = run()
    agreement = found.embeddings
    assert agreement is not None
    assert agreement.texts == 300
    assert 0.99 < agreement.cosine.mean < 1 - 1e-6
    assert agreement.cosine.min <= agreement.cosine.p1 <= agreement.cosine.p5
    assert agreement.rank_correlation.pairs == 300 * 299 // 2
    assert 0.95 < agreement.rank_correlation.spearman < 1
    assert agreement.pairs.pairs == 60
    people = agreement.labelled
    assert people.difference == pytest.approx(people.candidate - people.reference)
    assert {"reference", "evaluate"} <= set(steps)
    told = found.as_dict()
    assert told["cosine"]["mean"] == agreement.cosine.mean
    json.dumps(told)
    assert run() == found
    assert steps == [], "the second time, nothing runs"


@pytest.mark.engine
def test_domains_of_passages_and_of_pairs_stand_beside_each_other(
    store: Store, tmp_path: Path
) -> None:
    text = write_texts(tmp_path / "texts.jsonl", 60)
    lines = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    entries = [
        {"texts": [lines[i], lines[(i + 1 + step) % 40]], "score": 1 - step}
        for i in range(40)
        for step in (0, 1)
    ]
    pairs = tmp_path / "near.jsonl"
    pairs.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    steps: list[str] = []

    def run(limit: int | None) -> Any:
        steps.clear()
        domains = [Domain("passages", text), Domain("near", pairs)]
        return evaluate(
            "encoder-int8-openvino", "encoder", EvaluationOptions(domains=domains, max_items=limit),
            store=store, folder=tmp_path / "e", on_progress=lambda step: steps.append(step.step),
        )  # fmt: skip

    found = run(None)
    passages, near = found.agreements["passages"], found.agreements["near"]
    assert (passages.texts, passages.rank_correlation.pairs) == (60, 60 * 59 // 2)
    assert (near.texts, near.rank_correlation.pairs) == (40, 80), "each text is embedded once"
    assert near.same_nearest is None
    assert near.labelled is not None
    assert passages.labelled is None
    told = found.as_dict()
    lowest = min(found.agreements, key=lambda one: found.agreements[one].rank_correlation.spearman)
    assert told["worst"] == lowest
    assert set(told["domains"]) == {"passages", "near"}
    assert told["domains"]["near"]["rank_correlation"]["stderr"] > 0
    assert "cosine" not in told
    assert {"near: evaluate", "passages: reference"} <= set(steps)
    assert run(None) == found
    assert steps == []
    assert run(24).agreements["near"].rank_correlation.pairs == 12


@pytest.mark.engine
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["lm_eval:piqa"]}, "answers no tasks"),
        ({"max_tokens": 5}, "--items limits"),
        ({"text": None, "pairs": Path("nowhere.jsonl")}, "cannot be read"),
        ({"model": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"backend": "torch"}, "PyTorch"),
    ],
)
def test_what_cannot_be_evaluated_is_told_of(
    store: Store, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = changes.pop("model", "encoder-int8-openvino")
    options = EvaluationOptions(**{"text": write_texts(tmp_path / "texts.jsonl", 10), **changes})
    with pytest.raises(ThriftyError, match=message):
        evaluate(model, "encoder@v1", options, store=store, folder=tmp_path / "e")


# a served encoder


class Handler(BaseHTTPRequestHandler):
    """OpenAI's embeddings API over the table."""

    protocol_version = "HTTP/1.1"
    encoder = Encoder(0.1)

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "table"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        vectors = self.encoder.embed(body["input"])
        data = [{"index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
        self.answer({"data": data[::-1]})

    def answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_a_served_encoder_is_asked_by_tokens() -> None:
    from thrifty.evaluate.served_embedder import MOST_TEXTS, ServedEmbedder

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        served = ServedEmbedder(
            f"http://127.0.0.1:{server.server_port}/v1", Handler.encoder.tokenizer, 100
        )
        texts = [[2, number % 30 + 4, 3] for number in range(MOST_TEXTS + 5)]
        assert served.width == 16
        np.testing.assert_allclose(
            served.embed(texts), Handler.encoder.embed(texts), rtol=1e-6, atol=1e-6
        )
        served.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# recorded vectors


def test_a_run_that_is_broken_off_goes_on(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 3 * CHUNK + 10)

    def read() -> Iterator[str]:
        return read_passages(path)

    encoder = Encoder()
    whole = np.array(TextVectors(tmp_path / "a", path, 512, None).embed(encoder, read, "x"))
    assert encoder.given == len(whole) == 3 * CHUNK + 10
    again = TextVectors(tmp_path / "a", path, 512, None).embed(encoder, read, "x")
    assert encoder.given == len(whole), "nothing runs twice"
    np.testing.assert_array_equal(again, whole)
    (kept,) = (tmp_path / "a").rglob("*.f32")
    with kept.open("r+b") as file:
        file.truncate(4 * 16 * (2 * CHUNK + 7) + 5)
    other = Encoder()
    rest = TextVectors(tmp_path / "a", path, 512, None).embed(other, read, "x")
    assert other.given == CHUNK + 10
    np.testing.assert_array_equal(rest, whole)
    few = TextVectors(tmp_path / "a", path, 512, 5).embed(other, read, "x")
    np.testing.assert_array_equal(few, whole[:5])


def test_texts_are_cut_but_for_the_token_at_their_end() -> None:
    tokenizer = TextTokenizer(make_words(), None)
    assert encode_text(tokenizer, "w4 w5 w6", 10) == [2, 4, 5, 6, 3]
    assert encode_text(tokenizer, "w4 w5 w6", 4) == [2, 4, 5, 3]


def test_plain_text_is_cut_into_passages_at_sentences(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    sentences = [f"This is sentence number {number} of the text." for number in range(40)]
    path.write_text(" ".join(sentences[:25]) + "\n\n" + "\n".join(sentences[25:]))
    passages = list(read_passages(path))
    assert " ".join(passages) == " ".join(sentences)
    assert all(PASSAGE_CHARS <= len(one) < PASSAGE_CHARS + 60 for one in passages[:-1])


# statistics


def test_figures_are_those_of_the_definitions() -> None:
    generator = np.random.default_rng(2)
    old = generator.normal(0, 1, (70, 8)).astype(np.float32)
    new = (old + generator.normal(0, 0.4, old.shape)).astype(np.float32) * 3
    found = compare_vectors(new, old)
    expected = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(new.astype(float), old.astype(float), strict=True)
    ]
    assert found.cosine is not None
    assert found.cosine.mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.cosine.stderr == pytest.approx(np.std(expected, ddof=1) / np.sqrt(70), rel=1e-5)
    assert found.cosine.p5 == pytest.approx(np.quantile(expected, 0.05), abs=1e-6)
    both = list(itertools.combinations(range(70), 2))
    sides = [
        np.array([cosines(side[a : a + 1], side[b : b + 1])[0] for a, b in both])
        for side in (new, old)
    ]
    assert found.rank_correlation is not None
    assert found.rank_correlation.spearman == pytest.approx(rank_correlation(*sides), abs=1e-9)
    assert found.rank_correlation.pairs == len(both)
    same = compare_vectors(2 * old, old)
    assert same.cosine is not None
    assert same.cosine.mean == pytest.approx(1)
    assert same.rank_correlation is not None
    assert same.rank_correlation.spearman == pytest.approx(1)
    assert same.same_nearest == 1.0
    narrow = compare_vectors(old[:, :4], old)
    assert narrow.cosine is None
    assert narrow.rank_correlation is not None


def test_the_standard_error_of_a_rank_correlation_is_its_spread() -> None:
    """Over many samples of texts, the jackknife's mean is close to the estimates' deviation."""
    found = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        old = generator.normal(0, 1, (60, 6)).astype(np.float32)
        new = (old + generator.normal(0, 0.5, old.shape)).astype(np.float32)
        measured = compare_vectors(new, old).rank_correlation
        assert measured is not None
        found.append((measured.spearman, measured.stderr))
    figures = np.array(found)
    assert 0.6 < figures[:, 1].mean() / figures[:, 0].std(ddof=1) < 1.7


def test_pairs_are_compared_with_peoples_scores(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    old = generator.normal(0, 1, (160, 8)).astype(np.float32)
    new = (old + generator.normal(0, 0.3, old.shape)).astype(np.float32)
    truth = cosines(old[0::2], old[1::2])
    between, labelled = compare_pairs(new, old, truth.tolist())
    assert labelled is not None
    assert labelled.reference == pytest.approx(1)
    assert labelled.candidate == pytest.approx(between.spearman)
    assert labelled.difference < -2 * labelled.difference_stderr < 0
    assert compare_pairs(new, old, [])[1] is None


def test_pairs_that_share_texts_are_one_cluster() -> None:
    pairs = [(0, 1), (0, 2), (3, 4), (5, 2), (6, 7), (8, 9), (10, 11), (12, 13), (12, 14)]
    found = cluster_pairs(np.array(pairs).reshape(-1))
    together = [[n for n in range(9) if found[n] == one] for one in dict.fromkeys(found.tolist())]
    assert together == [[0, 1, 3], [2], [4], [5], [6], [7, 8]]
    one_query = np.array([(0, text) for text in range(1, 9)]).reshape(-1)
    assert cluster_pairs(one_query).tolist() == list(range(8)), "too few clusters"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 1: not a line of JSON"),
        ('{"texts": ["a"]}', "'texts' must be two strings"),
        ('{"texts": ["a", "b"], "score": "high"}', "'score' must be a number"),
        ('{"texts": ["a", "b"]}', "contains 1 pairs"),
        ("\n".join(['{"texts": ["a", "b"]}'] * 6 + ['{"texts": ["a", "b"], "score": 1}']),
         "1 of 7 pairs have a score"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_used_are_told_of(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_pairs(path)
