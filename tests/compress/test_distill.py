"""Distillation: the losses are correct, and trainings resume where they stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from tests.parts import running_echo
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.compress.distill.answers import (
    RemoteTeacher,
    Sampling,
    ask_teacher,
    read_beginnings,
    serve_remote,
)
from thrifty.compress.distill.settings import DIVERGENCES as NAMES
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.training_examples import (
    LinePieces,
    LiveTeacher,
    Part,
    TrainingExamples,
    pack,
)
from thrifty.compress.mix import as_mix
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.scorer import TopTokens
from thrifty.evaluate.windows import TokenWindow
from thrifty.home import Home

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from thrifty.compress.distill import losses  # noqa: E402
from thrifty.compress.distill.distill import (  # noqa: E402
    DistillationRequest,
    distill_model,
)
from thrifty.train import lora, student  # noqa: E402
from thrifty.train.state import Objective  # noqa: E402

pytestmark = pytest.mark.engine

TEACHER = Llama(
    vocab=257, layers=2, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)
STUDENT = Llama(
    vocab=257, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)
TRAINING = Training(tokens=8_000, batch_tokens=512, learning_rate=3e-3, every_steps=5)
WINDOW = 128


def draw(rows: int, vocab: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * 2


# losses


def test_names_are_those_of_the_losses() -> None:
    assert set(NAMES) == set(losses.DIVERGENCES)


def test_with_all_tokens_known_they_are_the_textbooks() -> None:
    teacher, student = draw(6, 9, 1).log_softmax(1), draw(6, 9, 2).log_softmax(1)
    p, q = teacher.exp(), student.exp()
    m = (p + q) / 2
    expected = {
        "forward": (p * (p / q).log()).sum(1),
        "reverse": (q * (q / p).log()).sum(1),
        "jensen-shannon": 0.5 * (p * (p / m).log()).sum(1) + 0.5 * (q * (q / m).log()).sum(1),
        "skewed-forward": (p * (p / (0.1 * p + 0.9 * q)).log()).sum(1),
        "skewed-reverse": (q * (q / (0.1 * q + 0.9 * p)).log()).sum(1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses.DIVERGENCES[name](teacher, student), value)
        zero = losses.DIVERGENCES[name](teacher, teacher)
        torch.testing.assert_close(zero, torch.zeros(6), atol=1e-6, rtol=0)


def test_coarse_is_never_more_than_whole_and_has_gradients() -> None:
    teacher, logits = draw(20, 50, 3).log_softmax(1), draw(20, 50, 4).requires_grad_()
    top = teacher.topk(8, dim=1)
    tail = 1 - top.values.exp().sum(1)
    coarse = losses.add_rest(logits.log_softmax(dim=1).gather(1, top.indices))
    assert coarse.shape == (20, 9)
    torch.testing.assert_close(coarse.exp().sum(1), torch.ones(20))
    found = losses.forward_kl(losses.teacher_log_probabilities(top.values, tail), coarse)
    whole = losses.forward_kl(teacher, logits.log_softmax(1))
    assert bool((found <= whole + 1e-5).all())
    found.sum().backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad.abs().sum()) > 0


@pytest.mark.parametrize("part_bytes", [1, 4 * 50 * 7, 1 << 20])
def test_chosen_log_probabilities_and_their_gradients_are_those_of_a_softmax(
    monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(student, "PART_BYTES", part_bytes)
    wanted = torch.randint(0, 50, (20, 5), generator=torch.Generator().manual_seed(6))
    wanted[3, 1] = wanted[3, 0]  # the text's next token is often among the likeliest
    outer = draw(20, 5, 7)
    found = {}
    for way in ("parts", "whole"):
        states, head = draw(20, 12, 8).requires_grad_(), draw(50, 12, 9).requires_grad_()
        if way == "parts":
            values = student._ChosenLogProbabilities.apply(states, head, wanted)
        else:
            values = (states @ head.T).log_softmax(dim=1).gather(1, wanted)
        (values * outer).sum().backward()
        found[way] = values.detach(), states.grad, head.grad
    for parts, whole in zip(found["parts"], found["whole"], strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_student_says_what_its_model_does(tmp_path: Path) -> None:
    from thrifty.evaluate.torch_model import load_torch_model

    TEACHER.write_safetensors(tmp_path)
    model = load_torch_model(tmp_path, "tiny").eval()
    tokens = torch.arange(24).reshape(2, 12) * 7 % 257
    positions = torch.arange(12).repeat(2, 1)
    wanted = tokens[:, 1:].reshape(-1, 1)
    with torch.no_grad():
        expected = model(tokens).logits[:, :-1].log_softmax(2).flatten(0, 1).gather(1, wanted)
        found, hidden = student.Student(model)(tokens, positions, wanted, hidden=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert hidden is not None
    assert hidden.shape == (TEACHER.layers + 1, 2, 12, TEACHER.hidden)


def test_low_rank_changes_merge_into_what_they_were() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=60,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before, names = model(tokens).logits, set(model.state_dict())
        lora.attach(model, 4, seed=1)
        torch.testing.assert_close(model(tokens).logits, before)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len(trained) == 2 * 7 * 2
        for parameter in trained:
            parameter += 0.05 * torch.randn_like(parameter)
        changed = model(tokens).logits
        assert float((changed - before).abs().max()) > 1e-3
        lora.merge(model)
        torch.testing.assert_close(model(tokens).logits, changed, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == names


def make_windows(*sizes: tuple[int, int]) -> list[TokenWindow]:
    """Texts of so many tokens, of which so many predictions count, all but the first."""
    rng = np.random.default_rng(3)
    return [
        TokenWindow(
            rng.integers(0, 256, length),
            (np.arange(length - 1) >= 1) & (np.arange(length - 1) < 1 + counted),
        )
        for length, counted in sizes
    ]


def open_student(folder: Path) -> Any:
    from thrifty.evaluate.torch_model import load_torch_model

    STUDENT.write_safetensors(folder)
    return student.Student(load_torch_model(folder, "tiny")).eval()


def test_each_prediction_that_counts_weighs_the_same_and_no_other_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.compress.distill.next_tokens import NextTokens

    model = open_student(tmp_path)
    windows = make_windows((100, 12), (60, 58), (100, 90), (30, 5))
    parts = [Part("a", LinePieces(windows[:3])), Part("b", LinePieces(windows[3:]))]
    objective = NextTokens(TrainingExamples(parts, 1, has_teacher=False), [], TRAINING)
    assert objective.weigh([0, 1, 2]) == pytest.approx(3), "a domain keeps its share"
    assert objective.weigh([0]) / objective.weigh([2]) == pytest.approx(12 / 90)
    assert objective.weigh([3]) == pytest.approx(1)
    rows = []
    head = student._logits
    monkeypatch.setattr(student, "_logits", lambda x, w: rows.append(len(x)) or head(x, w))
    found, count = objective.loss(model, [0, 1, 2], "cpu")
    assert (count, sum(rows)) == (260, 160)
    losses = []
    for one in windows[:3]:
        logits = model.inner(torch.from_numpy(one.tokens)[None]).logits[0, :-1]
        chosen = logits.log_softmax(1).gather(1, torch.from_numpy(one.tokens[1:, None]))[:, 0]
        losses.append(-chosen[torch.from_numpy(one.counted)])
    assert found.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    found.backward()


def test_a_window_without_anything_to_learn_gives_no_gradient(tmp_path: Path) -> None:
    from thrifty.compress.distill.next_tokens import NextTokens

    model = open_student(tmp_path)
    parts = [Part("a", LinePieces(make_windows((20, 0))))]
    objective = NextTokens(TrainingExamples(parts, 1, has_teacher=False), [], TRAINING)
    loss, _ = objective.loss(model, [0], "cpu")
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


class Asked:
    """A live teacher that is shown what the student writes, and predicts anything."""

    vocab_size = 257

    def rank(self, tokens: Any, k: int, rows: Any) -> Any:
        ids = np.tile(np.arange(k), (len(tokens) - 1, 1))
        return TopTokens(
            ids, np.full(ids.shape, -6.0, np.float32), np.zeros(len(ids)), np.zeros((0, 257))
        )


def test_what_a_student_writes_begins_and_ends_with_an_answer(tmp_path: Path) -> None:
    from thrifty.compress.distill.next_tokens import NextTokens

    model = open_student(tmp_path)
    asked: Any = Asked()
    teacher = LiveTeacher(asked, 8)
    tokens = np.arange(40) % 256
    turns = np.isin(np.arange(39), [*range(24, 30), *range(34, 39)])
    plain = np.ones(39, np.bool_)
    texts = [TokenWindow(tokens, turns), TokenWindow(tokens, plain)]
    parts = [Part("talks", LinePieces(texts, teacher))]
    examples = TrainingExamples(parts, 40, has_teacher=True, live=teacher)
    training = Training(tokens=8_000, on_policy=1.0)

    def write(number: int, step: int = 0, ends: Any = ()) -> Any:
        objective = NextTokens(examples, [], training, ends=ends)
        objective.steps_made = step
        return objective._read(model, number, "cpu")

    answer = write(0)
    np.testing.assert_array_equal(answer.tokens[:25], tokens[:25])
    assert len(answer.tokens) == 40
    assert np.flatnonzero(answer.loss_mask).tolist() == list(range(24, 39))
    assert len(write(0, ends=range(257)).tokens) == 26, "nothing stands behind the turn's end"
    half = write(1)
    np.testing.assert_array_equal(half.tokens[:20], tokens[:20])
    assert int(np.argmax(half.loss_mask)) == 19
    torch.manual_seed(77)  # As after a restart.
    np.testing.assert_array_equal(write(0).tokens, answer.tokens)
    assert (write(0, step=1).tokens != answer.tokens).any()


# short texts share windows


def test_short_texts_fill_windows_in_order() -> None:
    lengths = np.random.default_rng(3).integers(5, 60, 200).tolist()
    packs = pack(lengths, 128)
    assert sorted(number for one in packs for number in one) == list(range(200))
    assert all(sum(lengths[number] for number in one) <= 128 for one in packs)
    assert len(packs) < 1.15 * sum(lengths) / 128
    assert all(max(one) - min(one) < 100 for one in packs), "the order is roughly preserved"
    assert pack([200, 5, 300, 7], 128) == [[0], [1, 3], [2]]
    assert pack([], 128) == []


def test_texts_that_share_a_window_do_not_see_each_other(tmp_path: Path) -> None:
    from thrifty.compress.distill.next_tokens import NextTokens
    from thrifty.evaluate.torch_model import load_torch_model

    STUDENT.write_safetensors(tmp_path)
    model = student.Student(load_torch_model(tmp_path, "tiny")).eval()
    rng = np.random.default_rng(8)
    texts = [rng.integers(0, 256, length) for length in (20, 31, 44, 12, 50)]
    firsts = [3, 0, 20, 10, 7]
    counted = [np.arange(len(t) - 1) >= f for t, f in zip(texts, firsts, strict=True)]
    windows = [TokenWindow(t, c) for t, c in zip(texts, counted, strict=True)]
    parts = [Part("texts", LinePieces(windows))]
    together = NextTokens(TrainingExamples(parts, 128, has_teacher=False), [0, 1], TRAINING)
    alone = NextTokens(TrainingExamples(parts, 1, has_teacher=False), range(5), TRAINING)
    assert together._examples.count == 2
    with torch.no_grad():
        total, count = together.measure(model, "cpu", 0, 1)["texts"]
        expected, predictions = alone.measure(model, "cpu", 0, 1)["texts"]
    assert count == predictions == sum(len(t) - 1 - f for t, f in zip(texts, firsts, strict=True))
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"divergence": "hellinger"}, {"tokens": 0}, {"mix": 2.0}, {"learning_rate": 0.0}, {"lora_rank": -1}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CompressionError):
        Training(**{"tokens": 100, **wrong})


# trainings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("distilled") / "models")
    tensors = TEACHER.make_tensors()
    put(store, TEACHER)
    with store.stage("student") as stage:
        small = {name: t for name, t in tensors.items() if "layers.1." not in name}
        folder = STUDENT.write_safetensors(stage / "model", tensors=small, eos_token_id=256)
        make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
        store.add(folder, "student", Lineage())
    return store


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "train.txt", 30_000, seed=5)


def run(store: Store, folder: Path, text: Path, out: str, **changes: Any) -> Any:
    training = Training(**{**vars(TRAINING), **changes})
    return distill_model(
        store,
        Home(folder),
        DistillationRequest(
            "student", "tiny@v1", text=text, out=out, training=training, window=WINDOW
        ),
    )


@pytest.fixture(scope="module")
def plain(store: Store, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of an uninterrupted training."""
    version, _ = run(store, tmp_path_factory.mktemp("plain"), text, "plain")
    figures: dict[str, Any] = version.lineage.figures
    assert figures["after"] < 0.95 * figures["before"]
    return figures


def test_a_student_comes_nearer_and_is_served_and_evaluated(
    store: Store, text: Path, tmp_path: Path
) -> None:
    changes = {"lora_rank": 16, "learning_rate": 5e-3, "divergence": "skewed-forward", "mix": 0.1}
    version, artifact = run(store, tmp_path, text, "taught", **changes)
    figures = version.lineage.figures
    assert figures["after"] < 0.99 * figures["before"]
    assert len(figures["losses"]) == figures["steps"] == 16
    assert load_decoder(store.folder_of(artifact.id)).shape.layers == 1
    held_out = write_text(tmp_path / "held.txt", 3000, seed=9)
    found = {
        name: evaluate(
            name, "tiny@v1", EvaluationOptions(text=held_out, window=WINDOW), store=store,
            folder=tmp_path / "e",
        ).divergence.kl_divergence.mean
        for name in ("student", version.label)
    }  # fmt: skip
    assert found[version.label] < found["student"]
    assert found[version.label] == pytest.approx(figures["after"], rel=0.25)
    again, _ = run(store, tmp_path, text, "taught", **changes)
    assert again.label == version.label
    assert not list(Home(tmp_path).trainings.iterdir()), "checkpoints are removed at the end"


def test_embeddings_that_are_frozen_stay_and_the_rest_learns(
    store: Store, text: Path, tmp_path: Path
) -> None:
    version, artifact = run(store, tmp_path, text, "frozen", freeze_embeddings=True)
    assert version.lineage.figures["after"] < 0.95 * version.lineage.figures["before"]
    before, after = (
        load_decoder(store.folder_of(one)).tensors
        for one in (store.find("student")[1].id, artifact.id)
    )
    name, learned = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
    # Written in 16 bits.
    np.testing.assert_allclose(after.read_tensor(name), before.read_tensor(name), rtol=1e-3)
    assert np.abs(after.read_tensor(learned) - before.read_tensor(learned)).max() > 1e-2


def test_a_live_teacher_shows_its_hidden_states_and_answers_to_what_the_student_writes(
    store: Store, text: Path, tmp_path: Path
) -> None:
    version, _ = run(store, tmp_path, text, "live", hidden=0.5, on_policy=0.3, tokens=6000)
    figures = version.lineage.figures
    assert figures["after"] < 0.95 * figures["before"]
    assert version.lineage.recipe["live"] == "torch"


def test_several_processes_learn_what_one_does(
    store: Store, text: Path, tmp_path: Path, plain: dict[str, Any]
) -> None:
    figures = distill_model(
        store,
        Home(tmp_path),
        DistillationRequest(
            "student",
            "tiny@v1",
            text=text,
            out="by-two",
            window=WINDOW,
            training=TRAINING,
            processes=2,
        ),
    )[0].lineage.figures
    np.testing.assert_allclose(figures["losses"], plain["losses"], rtol=2e-2)
    assert figures["after"] == pytest.approx(plain["after"], rel=2e-2)


async def test_a_teacher_that_is_served_teaches_by_what_it_writes(
    store: Store, text: Path, tmp_path: Path
) -> None:
    async with running_echo() as url:
        version, _ = await asyncio.to_thread(
            distill_model,
            store,
            Home(tmp_path),
            DistillationRequest("student", url, text, "told", TRAINING, window=WINDOW),
        )
    figures = version.lineage.figures
    assert figures["after"] < 0.9 * figures["before"]
    assert version.lineage.recipe["teacher"] == url


def test_answers_are_asked_for_once(store: Store, text: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    teacher = RemoteTeacher("http://127.0.0.1:9/v1", "none")
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"tokens": list(range(50)), "first": 9}) + "\n" + '{"tokens": [1')

    def ask(tokens: int) -> None:
        ask_teacher(
            serve_remote(teacher), None, "teacher",
            lambda: read_beginnings(as_mix(text).sources[0], tokenizer, WINDOW), tokenizer, path,
            tokens=tokens, sampling=Sampling(window=WINDOW),
        )  # fmt: skip

    ask(50)
    with pytest.raises(CompressionError, match="cannot be reached"):
        ask(51)
    assert path.read_text().count("\n") == 1, "an incomplete line is truncated"


def test_an_encoder_embeds_where_its_teacher_does(text: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    store = Store(tmp_path / "models")
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 257,
    }
    torch.manual_seed(1)
    teacher = BertModel(BertConfig(num_hidden_layers=2, initializer_range=0.2, **settings))
    student = BertModel(BertConfig(num_hidden_layers=1, **settings))
    student.load_state_dict({k: v for k, v in teacher.state_dict().items() if "layer.1." not in k})
    for name, model in (("teacher", teacher), ("student", student)):
        with store.stage(name) as stage:
            model.save_pretrained(stage / "model")
            make_tokenizer().tokenizer.save(str(stage / "model" / "tokenizer.json"))
            store.add(stage / "model", name, Lineage())
    version, artifact = distill_model(
        store,
        Home(tmp_path),
        DistillationRequest(
            "student",
            "teacher@v1",
            text=text,
            out="small",
            training=Training(tokens=20_000, batch_tokens=1500, learning_rate=3e-3, every_steps=5),
        ),
    )
    figures = version.lineage.figures
    assert figures["unit"] == "1 - cosine"
    assert figures["after"] < 0.7 * figures["before"]
    assert load_encoder(store.folder_of(artifact.id)).shape.layers == 1
    with pytest.raises(CompressionError, match="on this machine"):
        distill_model(
            store,
            Home(tmp_path),
            DistillationRequest(
                "student", "http://127.0.0.1:9", text=text, out="x", training=TRAINING
            ),
        )


CHILD = """
import sys
from pathlib import Path
from tests.compress.test_distill import run
from thrifty.artifacts import Store
run(Store(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), "killed")
"""


@pytest.mark.long
def test_a_killed_training_goes_on_to_the_same_curve(
    store: Store, text: Path, tmp_path: Path, plain: dict[str, Any]
) -> None:
    arguments = [sys.executable, "-c", CHILD, str(store.root), str(tmp_path / "killed"), str(text)]
    process = subprocess.Popen(arguments, cwd=Path(__file__).parents[2])
    note = Home(tmp_path / "killed").trainings
    deadline_s = time.monotonic() + 120
    while not list(note.glob("*/state.json")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = json.loads(next(note.glob("*/state.json")).read_text())
    assert 5 <= state["step"] < 16
    again, _ = run(store, tmp_path / "killed", text, "killed")
    np.testing.assert_allclose(
        again.lineage.figures["losses"], plain["losses"], rtol=1e-3, atol=1e-4
    )


class Climbing(Objective):
    """A loss that falls until it becomes `after` at some step."""

    unit, examples, example_tokens, held_out_tokens = "loss", 10, 1, 1
    domains = ["numbers"]

    def __init__(self, step: int, after: float) -> None:
        self.calls, self.step, self.after = 0, step, after

    def weigh(self, numbers: Any) -> float:
        return len(numbers)

    def loss(self, model: Any, numbers: Any, device: Any) -> tuple[Any, int]:
        self.calls += 1
        loss = model(torch.ones(1, 1)).square().mean()
        return (loss * self.after if self.calls > self.step else loss), 1

    def measure(self, model: Any, device: Any, rank: int, ranks: int) -> dict[str, Any]:
        return {"numbers": (float(model(torch.ones(1, 1)).square()), 1)}


@pytest.mark.parametrize(
    ("settings", "batch_tokens", "rate"),
    [
        ({"tokens": 320_000}, 512, 3e-4),
        ({"tokens": 600_000}, 1024, 3e-4 * 2**0.5),
        ({"tokens": 100_000_000}, 4096, 5e-4),
        ({"tokens": 40_000, "micro_batch": 16}, 8192, 5e-4),
        ({"tokens": 320_000, "batch_tokens": 2048, "learning_rate": 1e-3}, 2048, 1e-3),
        ({"minutes": 30.0}, 1024, 1e-4),
        ({"minutes": 30.0, "batch_tokens": 4096}, 4096, 2e-4),
        ({"minutes": 30.0, "lora_rank": 8}, 1024, 3e-4 * 2**0.5),
    ],
)
def test_steps_and_their_rate_go_with_the_tokens(
    tmp_path: Path, settings: dict[str, Any], batch_tokens: int, rate: float
) -> None:
    from accelerate import Accelerator

    from thrifty.train.loop import Trainer

    class Windows(Climbing):
        example_tokens = 512

    model, training = torch.nn.Linear(1, 1), Training(**settings)
    trainer = Trainer(model, Windows(1, 1), training, tmp_path, Accelerator(cpu=True))
    assert trainer.batch_tokens == batch_tokens
    assert trainer.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("after", "said"), [(1e6, r"the loss is .*, after"), (float("nan"), "the loss is not a number")]
)  # fmt: skip
def test_an_exploding_loss_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, after: float, said: str
) -> None:
    from accelerate import Accelerator

    from thrifty.train.loop import Trainer

    settings = Training(tokens=40, batch_tokens=1, learning_rate=1e-3, every_steps=5)
    model = torch.nn.Linear(1, 1)
    trainer = Trainer(model, Climbing(27, after), settings, tmp_path, Accelerator(cpu=True))
    with pytest.raises(CompressionError, match=f"stopped at step 28: {said}.*of step 25 is kept"):
        trainer.run()
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 25
    assert (tmp_path / "best.safetensors").exists()
    again = Trainer(
        torch.nn.Linear(1, 1), Climbing(10**9, 1), settings, tmp_path, Accelerator(cpu=True)
    )
    assert again.run()
    assert again.state.step == 40, "it resumes once the fault is gone"


def test_faults_are_said_before_anything_runs(store: Store, text: Path, tmp_path: Path) -> None:
    short = write_text(tmp_path / "short.txt", 100)
    with pytest.raises(CompressionError, match="too short"):
        run(store, tmp_path, short, "x")
    with pytest.raises(CompressionError, match="contains"):
        distill_model(
            store,
            Home(tmp_path),
            DistillationRequest(
                "student", "tiny@v1", text=text, held_out=text, out="x", training=TRAINING
            ),
        )


def test_too_little_memory_is_said_before_training(
    store: Store, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.train import process

    # Enough for these weights, but not for the activations of 16 windows.
    monkeypatch.setattr(process, "available_memory_bytes", lambda: 3_000_000)
    with pytest.raises(CompressionError, match=r"needs about .* of memory, and 3\.0 MB are free"):
        run(store, tmp_path, text, "x", micro_batch=16)
    assert not list(Home(tmp_path).trainings.glob("*/job.json"))
    assert not Home(tmp_path).evaluations.exists(), "the teacher has not run"
