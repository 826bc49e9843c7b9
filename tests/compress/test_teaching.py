"""The teacher's own answers, and trainings that last for a number of minutes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compress.test_distill import STUDENT, TEACHER
from tests.engines.test_prepare import put
from tests.engines.test_prompt import find_tokenizer
from tests.evaluate.bigram import write_text
from tests.parts import running_echo
from tests.text import templates
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.chat_templates import write_chat_templates
from thrifty.compress.distill import teaching as teaching_module
from thrifty.compress.distill.answers import (
    MOST_ROUNDS,
    Sampling,
    Tally,
    is_loop,
    read_document_prompts,
    read_prompts,
)
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.teaching import (
    Teacher,
    Teaching,
    plan_parts,
    read_windows,
    write_window,
)
from thrifty.compress.distill.training_examples import (
    LinePieces,
    Part,
    TrainingExample,
    TrainingExamples,
    join,
)
from thrifty.compress.mix import Mix, Source, as_mix, read_source
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.asking import Serve
from thrifty.evaluate.reference import open_record
from thrifty.evaluate.scorer import TopTokens
from thrifty.evaluate.windows import TokenWindow, count_all
from thrifty.home import Home

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from thrifty.compress.distill import budget, distill, worker  # noqa: E402
from thrifty.compress.distill.distill import DistillationRequest, distill_model  # noqa: E402

pytestmark = pytest.mark.engine

TRAINING = Training(tokens=6000, batch_tokens=512, learning_rate=3e-3, every_steps=5)
WINDOW = 256


# answers


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("yes " * 100, True), ("no, I said no. " * 40, True), ("-" * 200, True),
        (" ".join(map(str, range(100))), False), ("yes yes yes", False), ("", False),
    ],
)  # fmt: skip
def test_answers_that_repeat_themselves_are_found(text: str, loop: bool) -> None:
    assert is_loop(text) is loop


@pytest.mark.parametrize(
    "tally", [Tally(40, 0, empty=11), Tally(40, 0, loops=11), Tally(40, 900, cut=33)]
)
def test_a_teacher_that_answers_badly_stops_the_training(tally: Tally) -> None:
    with pytest.raises(CompressionError, match="teacher answers badly: of 40 answers"):
        tally.check("teacher")
    Tally(39, 0, empty=39).check("teacher")
    Tally(40, 900, empty=5, loops=5, cut=20).check("teacher")


def test_prompts_are_those_of_conversations_and_about_passages(tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"},
                                 {"role": "assistant", "content": "b"}]})
        + "\n" + json.dumps({"instruction": "c"}) + "\n"
    )  # fmt: skip
    prompts = list(read_prompts(as_mix(talks).sources[0]))
    assert [one.messages[0]["content"] for one in prompts] == ["a", "c"] * MOST_ROUNDS
    passages = tmp_path / "text.txt"
    passages.write_text("\n\n".join(" ".join([f"word{n}"] * 100) for n in range(7)))
    asked = [p.messages[0]["content"] for p in read_document_prompts(as_mix(passages).sources[0])]
    assert len(asked) == 7
    assert all(f"word{n}" in one for n, one in enumerate(asked))
    assert asked[0].partition("\n")[0] != asked[1].partition("\n")[0]
    assert asked == [
        p.messages[0]["content"] for p in read_document_prompts(as_mix(passages).sources[0])
    ]


# examples


def test_examples_keep_their_numbers_when_parts_grow() -> None:
    rng = np.random.default_rng(5)
    texts = [count_all(rng.integers(0, 256, size)) for size in rng.integers(10, 60, 60)]

    def make(*ends: int) -> TrainingExamples:
        parts = [
            Part("a", LinePieces(texts[:30]), list(ends)),
            Part("b", LinePieces(texts[30:]), list(ends)),
        ]
        return TrainingExamples(parts, 64, has_teacher=False)

    short, long = make(12), make(12, 30)
    assert short.count < long.count
    for number in range(short.count):
        assert short.domain(number) == long.domain(number)
        np.testing.assert_array_equal(short.read(number).tokens, long.read(number).tokens)
    held_out = short.choose_held_out(256, 0.5)
    assert held_out == long.choose_held_out(256, 0.5)
    assert {short.domain(number) for number in held_out} == {"a", "b"}
    assert len(make(1).choose_held_out(256, 0.1)) == 1, "there is always one"


def test_what_stands_between_texts_has_a_finite_loss_that_does_not_count() -> None:
    from thrifty.compress.distill import losses

    def example(size: int) -> TrainingExample:
        ids = np.tile(np.arange(4), (size - 1, 1))
        logprobs = np.full((size - 1, 4), -2.0, np.float32)
        tail = np.full(size - 1, 1 - 4 * np.exp(-2.0), np.float32)
        mask = np.ones(size - 1, np.bool_)
        return TrainingExample(np.arange(size), mask, ids=ids, logprobs=logprobs, tail=tail)

    joined = join([example(5), example(7)])
    assert joined.loss_mask.tolist() == [True] * 4 + [False] + [True] * 6
    assert joined.positions is not None
    assert joined.positions.tolist() == [*range(5), *range(7)]
    assert joined.logprobs is not None
    teacher = losses.teacher_log_probabilities(
        torch.from_numpy(joined.logprobs), torch.from_numpy(joined.tail)
    )
    student = torch.randn(11, 9).requires_grad_()
    chosen = student.log_softmax(1).gather(1, torch.from_numpy(joined.ids))
    loss = losses.forward_kl(teacher, losses.add_rest(chosen))
    (loss * torch.from_numpy(joined.loss_mask)).sum().backward()
    assert bool(torch.isfinite(student.grad).all())
    assert float(student.grad[4].abs().sum()) == 0


# parts


def test_lines_keep_which_turns_count(tmp_path: Path) -> None:
    counted = np.isin(np.arange(39), [*range(5, 9), *range(20, 39)])
    window = TokenWindow(np.arange(40), counted)
    path = tmp_path / "lines.jsonl"
    answer = {"tokens": [1, 2, 3, 4], "first": 1}
    unusable = {"tokens": [], "first": 0}
    path.write_bytes(
        write_window(window) + "".join(json.dumps(o) + "\n" for o in (answer, unusable)).encode()
        + b'{"tokens": [1'
    )  # fmt: skip
    found = read_windows(path)
    assert len(found) == 2
    np.testing.assert_array_equal(found[0].counted, counted)
    assert found[1].counted.tolist() == [False, True, True]


class Uniform:
    """A teacher to whom all tokens are equal; counts what it reads."""

    vocab_size, context_length = 257, 512

    def __init__(self) -> None:
        self.read = 0

    def rank(self, tokens: Any, k: int, rows: Any) -> TopTokens:
        self.read += len(tokens)
        ids = np.tile(np.arange(k), (len(tokens) - 1, 1))
        logprobs = np.full(ids.shape, -np.log(257), np.float32)
        return TopTokens(ids, logprobs, logprobs[:, 0], np.zeros((len(rows), 257), np.float32))

    def close(self) -> None:
        """Nothing to do."""


def make_teaching(folder: Path, text: Path, teacher: Any = None) -> Teaching:
    one = Teacher(
        "uniform", "uniform", make_tokenizer(), Sampling(window=64), folder,
        open=None if teacher is None else lambda: teacher,
    )  # fmt: skip
    return Teaching(one, plan_parts(as_mix(text), asks=False), lambda _: None, lambda _: None)


def test_text_that_is_learned_without_records_grows_with_the_training(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 4000, seed=5)
    teaching = make_teaching(tmp_path, text)
    (part,) = teaching.parts
    path = Path(teaching.locate(part)["lines"])
    first = teaching.extend(200)
    assert 200 <= teaching.tokens < 264
    kept = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"tokens": [1')  # A killed run's.
    second = make_teaching(tmp_path, text).extend(1000)
    assert second[part.name] > first[part.name]
    assert path.read_bytes().startswith(kept)
    longest = teaching.extend(100_000)
    windows = read_windows(path)
    assert longest[part.name] == len(windows)
    expected = list(read_source(part.source, make_tokenizer(), 64))
    for found, window in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(found.tokens, window.tokens)


def test_trainings_that_record_at_the_same_time_keep_each_others_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text.txt", 4000, seed=5)
    slow, fast = Uniform(), Uniform()
    waiting = make_teaching(tmp_path, text, slow)
    (part,) = waiting.parts
    waiting.extend(200)
    lock = teaching_module.lock_file

    def wait(path: Path) -> Any:
        """While one waits for the lock, another training records more."""
        monkeypatch.setattr(teaching_module, "lock_file", lock)
        make_teaching(tmp_path, text, fast).extend(1000)
        return lock(path)

    monkeypatch.setattr(teaching_module, "lock_file", wait)
    slow.read = 0
    waiting.extend(1200)
    record = open_record(Path(waiting.locate(part)["record"]))
    expected = list(read_source(part.source, make_tokenizer(), 64))
    assert record.windows == -(-1200 // 64)
    for found, window in zip(record.read(), expected, strict=False):
        np.testing.assert_array_equal(found.tokens, window.tokens)
    assert slow.read < 300, "what the other one recorded is not recorded again"
    assert fast.read > 700


# trainings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("taught") / "models")
    fill_store(store)
    return store


def fill_store(store: Store) -> None:
    """A teacher of two layers, and a student of one."""
    chat = {"default": templates.CHATML}
    put(store, TEACHER, templates=chat)
    small = {name: t for name, t in TEACHER.make_tensors().items() if "layers.1." not in name}
    with store.stage("student") as stage:
        folder = STUDENT.write_safetensors(stage / "model", tensors=small, eos_token_id=256)
        make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
        write_chat_templates(folder, chat)
        store.add(folder, "student", Lineage())


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mix:
    folder = tmp_path_factory.mktemp("mix")
    text = write_text(folder / "passages.txt", 60_000, seed=5)
    talks = write_talks(folder / "talks.jsonl", text)
    return Mix((Source("talks", talks, "talks", 0.5), Source("passages", text, "passages", 0.5)))


def write_talks(path: Path, text: Path, size: int = 20) -> Path:
    """300 prompts, each with so many characters of a text."""
    written = " ".join(text.read_text().split())
    ends = range(size, 300 * size + 1, size)
    lines = [json.dumps({"question": f"say {written[at - size : at]}"}) for at in ends]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


class Echo:
    """Serves the echo engine as the teacher; counts how often."""

    def __init__(self, url: str) -> None:
        self.url, self.started = url, 0

    def __call__(self, version: Any, artifact: Any, on_progress: Any) -> Serve:
        def serve(use: Any) -> None:
            self.started += 1
            use(self.url, "echo")

        return serve


@pytest.mark.long
async def test_a_student_learns_what_its_teacher_answers(
    store: Store, mix: Mix, tmp_path: Path
) -> None:
    notes: list[str] = []

    def run(serve: Any, out: str, **changes: Any) -> Any:
        training = Training(**{**vars(TRAINING), **changes})
        request = DistillationRequest(
            "student", "tiny@v1", mix, out, training, window=WINDOW, serve=serve
        )
        return distill_model(store, Home(tmp_path), request, on_note=notes.append)

    async with running_echo() as url:
        echo = Echo(url)
        version, _ = await asyncio.to_thread(run, echo, "taught")
        figures = version.lineage.figures
        started = echo.started
        assert figures["answers"]["talks"]["asked"] > 10
        assert set(figures["domains"]) <= {"talks", "passages", "documents"}
        assert {"talks", "passages"} <= set(figures["domains"])
        for domain in figures["domains"].values():
            assert domain["after"] < domain["before"]
        assert any("answers prompts of talks" in note for note in notes)
        await asyncio.to_thread(run, echo, "again", mix=0.5)
        assert echo.started == started, "the answers are kept for other trainings"
    with pytest.raises(CompressionError, match="holds prompts"):
        run(None, "unasked")


async def test_answers_end_where_the_teacher_ended(store: Store, tmp_path: Path) -> None:
    from thrifty.compress.distill.answers import Prompt, Sampling, ask_teacher, serve_remote
    from thrifty.compress.distill.answers import RemoteTeacher as Remote

    tokenizer = find_tokenizer(templates.CHATML)
    (end,) = tokenizer.find_turn_ends()[:1]
    path = tmp_path / "answers.jsonl"
    long = " ".join(f"word{n}" for n in range(40))
    said = ["How are you today?", long, "x " * 800]

    def ask(url: str) -> Tally:
        return ask_teacher(
            serve_remote(Remote(url)), None, "echo",
            lambda: iter(Prompt([{"role": "user", "content": one}]) for one in said), tokenizer,
            path, tokens=10_000, sampling=Sampling(window=900),
        )  # fmt: skip

    async with running_echo() as url:
        tally = await asyncio.to_thread(ask, url)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["end"] == "stop"
    assert lines[0]["tokens"][-1] == end
    answer = tokenizer.decode(lines[0]["tokens"][lines[0]["first"] + 1 :])
    assert answer.strip() == said[0]
    assert lines[2]["end"] == "too long", "a prompt that fills the window is not asked"
    assert tally.asked == 2


@pytest.mark.slow
@pytest.mark.long
def test_minutes_end_in_time_and_go_on(
    store: Store, mix: Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_here(module: str, job: Any, folder: Path, *_: Any) -> Any:
        # Other tests in this process may have chosen another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        (folder / "report.json").unlink(missing_ok=True)
        (folder / "job.json").write_text(json.dumps(job))
        worker.train(folder, job)
        return distill.read_report(folder) or {}

    from accelerate.state import AcceleratorState

    # In this process: importing PyTorch again takes longer than the training.
    monkeypatch.setattr(distill, "run_worker", run_here)
    monkeypatch.setattr(budget, "STARTS_S", 0.0)
    monkeypatch.setattr(budget, "FIRST_TOKENS", 4000)
    monkeypatch.setattr("thrifty.train.loop.FIRST_EVALUATION_S", 1.0)
    text = mix.sources[1].path
    settings = {**vars(TRAINING), "tokens": None, "every_steps": 0, "patience": 1000}

    def run(minutes: float, **more: Any) -> Any:
        training = Training(**{**settings, "minutes": minutes})
        request = DistillationRequest(
            "student", "tiny@v1", text, "timed", training, window=WINDOW, **more
        )
        return distill_model(store, Home(tmp_path), request)[0].lineage.figures

    with pytest.raises(CompressionError, match=r"no training to extend"):
        run(1, resume=True)
    with pytest.raises(CompressionError, match=r"too short.* minutes would be enough"):
        run(0.001)
    minutes, first = 0.4, None
    while first is None:
        began_s = time.monotonic()
        try:
            first = run(minutes)
        except CompressionError as refusal:  # The machine is busy; it says what is enough.
            enough = re.search(r"([0-9.]+) minutes would be enough", str(refusal))
            if enough is None or float(enough[1]) <= minutes:
                raise
            minutes = float(enough[1])
    took_s = time.monotonic() - began_s
    assert first["budget"]["minutes"] == minutes
    assert first["after"] < first["before"]
    assert first["schedule"] == "constant, then falling"
    assert took_s < 60 * minutes * 1.1
    longer = run(minutes + 0.2, resume=True)
    assert longer["steps"] > first["steps"]
    # It goes on from before the learning rate fell.
    kept = first["falls_from"]
    assert 0 < kept < first["steps"] - 1
    assert longer["losses"][:kept] == first["losses"][:kept]
    same = [one for one in first["held_out"] if one[0] <= kept]
    assert longer["held_out"][: len(same)] == same
    # Starting takes much of these seconds, so that it may fall at once.
    assert longer["falls_from"] >= kept
    with pytest.raises(CompressionError, match="counts them"):
        run(minutes + 0.1, resume=True)
