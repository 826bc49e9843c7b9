"""From a stored checkpoint to what the engine loads, and that the engine then says the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tokenizers import Tokenizer

from tests.artifacts.models import Llama
from tests.artifacts.stored import SOURCE
from tests.graphs.test_decoder import EXACT, Graph, compute_logits
from tests.graphs.test_encoder import embed_plainly, make_tensors
from tests.graphs.test_encoder import write as write_encoder
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.chat_templates import read_chat_templates, write_chat_templates
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.openvino.messages import Add, Embed
from thrifty.engines.openvino.options import OpenVinoOptions
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
from thrifty.engines.openvino.prepare import RECIPE_VERSION, kv_bytes_per_token, prepare_model
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import Output, Sampling
from thrifty.errors import ArtifactError, FormatRefused, IntegrityError
from thrifty.graphs.arithmetic import LIMIT_VARIABLE
from thrifty.types import Progress, ignore_progress

pytestmark = pytest.mark.engine

END = 256
MODEL = Llama(vocab=257, head_dim=32, kv_heads=2, heads=2, hidden=64, context=256, tied=False)
PROMPT = list(b"The quick brown fox jumps over the lazy dog")


def make_settings(
    folder: str, family: str, threads: int, *, kv_blocks: int = 0,
    eos_token_ids: tuple[int, ...] = (), **options: Any,
) -> Settings:  # fmt: skip
    """What a worker is told; activations are computed in float32 unless something else is said."""
    values = OpenVinoOptions(**{"activation_group": 0, **options}).model_dump()
    return Settings(folder, family, threads, values, kv_blocks, eos_token_ids)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def put(store: Store, model: Llama = MODEL, **changes: Any) -> tuple[NamedVersion, Artifact]:
    """Add a checkpoint whose tokens are bytes; no tokenizer where `tokenizer` is None."""
    tokenizer = changes.pop("tokenizer", make_tokenizer().tokenizer)
    templates = changes.pop("templates", {})
    config = {"eos_token_id": END, **changes}
    with store.stage("tiny") as stage:
        folder = model.write_safetensors(stage / "model", **config)
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
        write_chat_templates(folder, templates)
        return store.add(folder, "tiny", SOURCE)


def prepare(
    store: Store, made: tuple[NamedVersion, Artifact], scheme: str
) -> tuple[NamedVersion, Path]:
    version, artifact = prepare_model(store, *made, scheme, ignore_progress)
    return version, store.folder_of(artifact.id)


# what is written


@pytest.mark.parametrize(("scheme", "name"), [("none", "tiny"), ("int8", "tiny-int8")])
def test_prepared_model_is_a_version_of_its_own(store: Store, scheme: str, name: str) -> None:
    source = put(store)
    version, folder = prepare(store, source, scheme)
    assert version.label == f"{name}-openvino@v1"
    (parent,) = version.lineage.parents
    assert (parent.id, parent.name) == (source[1].id, "tiny@v1")
    assert version.lineage.recipe == {
        "step": "openvino",
        "quantize": scheme,
        "version": RECIPE_VERSION,
    }
    note = json.loads((folder / "thrifty.json").read_text())
    assert note["family"] == "decoder"
    assert (note["context_length"], note["eos_token_ids"]) == (256, [END])
    assert note["weights"] == ("f16" if scheme == "none" else scheme)
    assert {path.name for path in folder.iterdir()} >= {
        "openvino_model.xml", "openvino_model.bin", "openvino_detokenizer.xml", "tokenizer.json",
        "config.json", "grammar",
    }  # fmt: skip


def test_it_is_prepared_once(store: Store) -> None:
    source = put(store)
    told: list[Progress] = []
    first = prepare_model(store, *source, "int8", told.append)
    assert told
    told.clear()
    assert prepare_model(store, *source, "int8", told.append) == first
    assert not told
    assert prepare_model(store, *source, "none", ignore_progress)[1].id != first[1].id


def test_saved_graph_gives_the_same_logits(store: Store) -> None:
    _, folder = prepare(store, put(store), "none")
    graph = Graph(ov.Core().read_model(folder / "openvino_model.xml"))
    expected = compute_logits(MODEL, PROMPT)
    np.testing.assert_allclose(graph.run([PROMPT])[0], expected, atol=EXACT)


def test_end_of_sequence_is_guessed_only_where_nobody_says(store: Store) -> None:
    tokenizer = make_tokenizer().tokenizer
    tokenizer.add_special_tokens(["<|im_end|>"])
    model = replace(MODEL, vocab=258)
    _, folder = prepare(store, put(store, model, tokenizer=tokenizer, eos_token_id=None), "int8")
    assert json.loads((folder / "thrifty.json").read_text())["eos_token_ids"] == [257]


# what is refused


def test_added_tokens_that_the_model_does_not_have_are_text(store: Store) -> None:
    """The engine would read zeros for them, or what lies behind the table."""
    tokenizer = make_tokenizer().tokenizer
    tokenizer.add_special_tokens(["<|pad|>"])
    _, folder = prepare(store, put(store, tokenizer=tokenizer), "int8")
    served = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert served.token_to_id("<|pad|>") is None
    assert max(served.encode("a <|pad|>", add_special_tokens=False).ids) < 257


def test_a_vocabulary_beyond_the_model_is_refused(store: Store) -> None:
    made = json.loads(make_tokenizer().tokenizer.to_str())
    made["model"]["vocab"]["beyond"] = 400
    tokenizer = Tokenizer.from_str(json.dumps(made))
    with pytest.raises(
        FormatRefused, match=r"has a token 400 \('beyond'\), but the model only 257"
    ):
        prepare(store, put(store, tokenizer=tokenizer), "int8")


def test_tokens_behind_an_answer_in_a_template_end_it(store: Store) -> None:
    """No list has these tokens; the template shows what they are for."""
    tokenizer = make_tokenizer().tokenizer
    tokenizer.add_special_tokens(["<|mine|>", "<|ours|>", "<|other|>"])
    templates = {
        "default": "{% for m in messages %}<|other|>{{ m.content }}<|mine|>{% endfor %}",
        "tool_use": "{{ tools }}{% for m in messages %}{{ m.content }}<|ours|>{% endfor %}",
    }
    source = put(store, replace(MODEL, vocab=260), tokenizer=tokenizer, templates=templates)
    _, folder = prepare(store, source, "int8")
    note = json.loads((folder / "thrifty.json").read_text())
    assert set(note["eos_token_ids"]) == {END, 257, 258}
    assert read_chat_templates(folder) == templates


def test_model_without_a_tokenizer_says_what_to_do(store: Store) -> None:
    with pytest.raises(FormatRefused, match=r"no tokenizer\.json; save its fast tokenizer with it"):
        prepare(store, put(store, tokenizer=None), "int8")
    assert [version.name for version in store.versions()] == ["tiny"]


class Loud(Llama):
    """A llama with weights beyond float16."""

    def make_tensors(self) -> dict[str, Any]:
        tensors = super().make_tensors()
        tensors["lm_head.weight"] = tensors["lm_head.weight"] * 1e6
        return tensors


class Broken(Llama):
    """A llama with a weight that is no number."""

    def make_tensors(self) -> dict[str, Any]:
        tensors = super().make_tensors()
        tensors["lm_head.weight"][3, 4] = np.nan
        return tensors


def test_weights_beyond_sixteen_bits_may_have_eight(store: Store) -> None:
    source = put(store, Loud(**vars(MODEL)))
    with pytest.raises(FormatRefused, match=r"do not fit 16 bits: .* 65504.*; choose int8"):
        prepare(store, source, "none")
    version, _ = prepare(store, source, "int8")
    assert version.label == "tiny-int8-openvino@v1"


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_weights_that_are_no_numbers_are_refused(store: Store, scheme: str) -> None:
    source = put(store, Broken(**vars(MODEL)))
    with pytest.raises(IntegrityError, match="not a finite number"):
        prepare(store, source, scheme)


def test_settings_that_are_not_those_of_the_weights_are_refused(store: Store) -> None:
    with pytest.raises(ArtifactError, match="its model's settings say"):
        prepare(store, put(store, num_key_value_heads=1), "int8")


# the engine itself, which pages the cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("prepared") / "models")
    return prepare(store, put(store), "none")[1]


@pytest.fixture(scope="module")
def worker(folder: Path) -> Any:
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=32, kv_precision="f16", prefill_chunk=32,
        eos_token_ids=(END,),
    )  # fmt: skip
    return DecoderWorker(settings)


def generate(worker: Any, *jobs: tuple[list[int], Sampling]) -> list[list[Output]]:
    """The outputs of each of these jobs, which run together."""
    for number, (prompt, sampling) in enumerate(jobs):
        worker.add(Add(number, prompt, sampling))
    outputs: list[list[Output]] = [[] for _ in jobs]
    while worker.busy:
        step = worker.report(worker.step())
        assert not step.failures
        for output in step.outputs:
            outputs[output.job].append(output)
    return outputs


def ids(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


NOISE = 0.5
"""The engine computes in bfloat16 where the processor can, and logits are of the order of 10."""


def check_greedy(prompt: list[int], outputs: list[Output], noise: float = NOISE) -> None:
    """Whether the reference, given the same tokens so far, would have chosen each next one."""
    tokens = ids(outputs)
    given = [value for output in outputs for value in output.logprobs or []]
    assert len(given) == len(tokens)
    logits = compute_logits(MODEL, prompt + tokens)[len(prompt) - 1 : -1]
    top = logits.max(axis=1, keepdims=True)
    logprobs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    expected = logprobs[range(len(tokens)), tokens]
    assert (expected >= logprobs.max(axis=1) - noise).all()
    np.testing.assert_allclose(given, expected, atol=noise)
    # By chance, none of this would hold.
    assert (expected - np.median(logprobs, axis=1)).min() > 4 * NOISE


GREEDY = Sampling(max_tokens=12, temperature=0.0, logprobs=True, ignore_eos=True)


def test_engine_generates_what_the_reference_does(worker: Any) -> None:
    """Prompts of more than one chunk, together in one batch, each in pages of its own."""
    prompts = [PROMPT, PROMPT[::-1], list(b"ab")]
    answers = generate(worker, *((prompt, GREEDY) for prompt in prompts))
    for prompt, outputs in zip(prompts, answers, strict=True):
        assert len(ids(outputs)) == 12
        assert [output.finish for output in outputs] == [""] * (len(outputs) - 1) + ["length"]
        check_greedy(prompt, outputs)


def test_cached_beginnings_change_no_answer(worker: Any) -> None:
    prompt = list(b"A beginning that is long enough to fill more than one block of the cache. ")
    cached = []
    for _ in range(2):
        (outputs,) = generate(worker, (prompt, GREEDY))
        check_greedy(prompt, outputs)
        cached.append([output.cached_tokens for output in outputs])
    assert cached == [[0] * 12, [2 * BLOCK_TOKENS] + [0] * 11]
    other = [*prompt[: BLOCK_TOKENS + 3], 1, 2, 3]
    (outputs,) = generate(worker, (other, GREEDY))
    assert outputs[0].cached_tokens == BLOCK_TOKENS
    check_greedy(other, outputs)


def test_equal_beginnings_that_come_together_are_computed_once(worker: Any) -> None:
    beginning = [(5 * i + 11) % 250 for i in range(3 * BLOCK_TOKENS)]
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    for job in range(3):
        worker.take(Add(job, [*beginning, job, 7], sampling))
    worker.take(Add(3, [9] * BLOCK_TOKENS, sampling))
    cached, steps, done = {}, 0, 0
    while done < 4:
        steps += 1
        for output in worker.report(worker.step()).outputs:
            cached.setdefault(output.job, output.cached_tokens)
            done += bool(output.finish)
    assert cached == {0: 0, 1: 3 * BLOCK_TOKENS, 2: 3 * BLOCK_TOKENS, 3: 0}
    # Four chunks for the first and one for the last; the others have theirs beside them.
    assert steps <= 5 + 8 + 1


def test_cached_tokens_are_those_that_the_engine_skips(folder: Path) -> None:
    """The engine does not tell, but it needs a step for each chunk of what is not cached.

    While the pool fills for the first time, its choice of what to give up is not quite the index's.
    """
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=24, prefill_chunk=BLOCK_TOKENS, eos_token_ids=(END,)
    )
    worker = DecoderWorker(settings)
    generator = random.Random(5)
    counts, wrong = [], 0
    for number in range(120):
        # Four families of prompts, which branch now and then, in a pool too small for all.
        family, prompt = generator.randrange(4), []
        for block in range(generator.randint(1, 7)):
            branch = generator.randint(1, 3) if generator.random() < 0.1 else 0
            prompt += [family * 17 + block * 5 + branch] * BLOCK_TOKENS
        prompt += [number] * generator.randint(1, BLOCK_TOKENS - 1)
        length = generator.choice([1, 3, 40])
        worker.add(Add(number, prompt, Sampling(max_tokens=length, temperature=0, ignore_eos=True)))
        steps, cached = 0, None
        while worker.busy:
            outputs = worker.step()
            if cached is None:
                steps += 1
                cached = outputs[0].cached_tokens if outputs else None
        assert cached is not None
        wrong += steps != -(-(len(prompt) - cached) // BLOCK_TOKENS)
        counts.append(cached)
    assert wrong <= 2
    assert sum(1 for count in counts if count) > 60
    assert counts[40:].count(0) > 5


def test_stop_tokens_end_an_answer(worker: Any) -> None:
    tokens = ids(generate(worker, (PROMPT, GREEDY))[0])
    sampling = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(tokens[3],))
    (outputs,) = generate(worker, (PROMPT, sampling))
    assert ids(outputs) == tokens[: tokens.index(tokens[3]) + 1]
    assert outputs[-1].finish == "stop"


def test_seeds_decide_what_is_drawn(worker: Any) -> None:
    def draw(seed: int) -> list[int]:
        sampling = Sampling(max_tokens=8, temperature=1.5, seed=seed, ignore_eos=True)
        return ids(generate(worker, (PROMPT, sampling))[0])

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(6)}) > 3


def test_prompt_that_no_cache_could_hold_fails_alone(worker: Any) -> None:
    worker.add(Add(0, [1] * (33 * BLOCK_TOKENS), GREEDY))
    step = worker.report(worker.step())
    ((failure),) = step.failures
    assert failure.kind == "memory"
    assert "33 blocks" in failure.message or "34 blocks" in failure.message
    assert "there are 32" in failure.message
    assert not worker.busy


def test_cancelled_job_gives_its_blocks_back(worker: Any) -> None:
    worker.add(Add(0, PROMPT, Sampling(max_tokens=200, temperature=0.0, ignore_eos=True)))
    worker.step()
    worker.cancel(0)
    steps = 0
    while worker.busy:
        assert worker.step() == []
        steps += 1
    assert steps <= 2
    assert worker._index._running_blocks == 0
    assert not worker._index._used


def test_what_a_prompt_left_behind_when_it_was_cancelled_is_not_taken_for_computed(
    folder: Path,
) -> None:
    """A prompt that is cancelled between two chunks has a block that is computed in part."""
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=64, kv_precision="f16", prefill_chunk=40,
        eos_token_ids=(END,),
    )  # fmt: skip
    prompt = [(7 * i * i + 3 * i) % 250 for i in range(150)]
    for steps in (1, 2, 3):
        worker = DecoderWorker(settings)
        worker.add(Add(0, prompt, GREEDY))
        for _ in range(steps):
            worker.step()
        worker.cancel(0)
        while worker.busy:
            worker.step()
        (outputs,) = generate(worker, (prompt, GREEDY))
        check_greedy(prompt, outputs)


def test_what_the_cache_has_no_room_for_waits_for_its_turn(folder: Path) -> None:
    """More than three times what the cache holds: nothing fails, and the answers are the same."""
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=16, kv_precision="f16", prefill_chunk=32,
        eos_token_ids=(END,),
    )  # fmt: skip
    worker = DecoderWorker(settings)
    prompts = [[(n * 31 + i * i) % 250 for i in range(100)] for n in range(14)]
    for number, prompt in enumerate(prompts):
        worker.take(Add(number, prompt, GREEDY))
    outputs: list[list[Output]] = [[] for _ in prompts]
    most = 0
    while worker.busy:
        step = worker.report(worker.step())
        assert not step.failures
        most = max(most, step.running + step.waiting)
        for output in step.outputs:
            outputs[output.job].append(output)
    assert most >= 12
    for prompt, given in zip(prompts, outputs, strict=True):
        assert len(ids(given)) == 12
        check_greedy(prompt, given)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_answers_that_outgrow_the_cache_go_on_where_they_were(
    folder: Path, prefix_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fit when they begin, and not when they are long: some step back and come again.

    Computed in float32: bfloat16's rounding, over answers this long, is as large as the logits.
    """
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX512_CORE_VNNI")
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=12, kv_precision="f16", prefill_chunk=32,
        eos_token_ids=(END,), prefix_cache=prefix_cache,
    )  # fmt: skip
    worker = DecoderWorker(settings)
    long = Sampling(max_tokens=180, temperature=0.0, logprobs=True, ignore_eos=True)
    prompts = [[(n * 31 + i * i) % 250 for i in range(40)] for n in range(5)]
    for number, prompt in enumerate(prompts):
        worker.take(Add(number, prompt, long))
    outputs: list[list[Output]] = [[] for _ in prompts]
    while worker.busy:
        step = worker.report(worker.step())
        assert not step.failures
        for output in step.outputs:
            outputs[output.job].append(output)
    for prompt, given in zip(prompts, outputs, strict=True):
        assert len(ids(given)) == 180
        assert [output.finish for output in given if output.finish] == ["length"]
        assert sum(output.cached_tokens > 0 for output in given) <= 1
        check_greedy(prompt, given, noise=0.1)
    assert worker._index._running_blocks == 0


def test_an_answer_too_long_for_the_whole_cache_fails_alone(folder: Path) -> None:
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=4, kv_precision="f16", eos_token_ids=(END,)
    )
    worker = DecoderWorker(settings)
    endless = Sampling(max_tokens=200, temperature=0.0, ignore_eos=True)
    worker.take(Add(0, [1, 2, 3] * 20, endless))
    worker.take(Add(1, [4, 5, 6], Sampling(max_tokens=5, temperature=0.0, ignore_eos=True)))
    failures, tokens = [], {0: 0, 1: 0}
    while worker.busy:
        step = worker.report(worker.step())
        failures += step.failures
        for output in step.outputs:
            tokens[output.job] += len(output.token_ids)
    assert [(failure.job, failure.kind) for failure in failures] == [(0, "memory")]
    assert tokens[1] == 5


def test_background_jobs_get_the_answers_that_others_get(worker: Any) -> None:
    """Their prompts are computed in slices, between the steps of what runs."""
    prompts = [
        [(n * 31 + i * i) % 250 for i in range(length)] for n, length in enumerate((150, 97, 5))
    ]
    for number, prompt in enumerate(prompts):
        worker.take(Add(number, prompt, GREEDY, priority=1))
    outputs: list[list[Output]] = [[] for _ in prompts]
    while worker.busy:
        step = worker.report(worker.step())
        assert not step.failures
        for output in step.outputs:
            outputs[output.job].append(output)
    for prompt, given in zip(prompts, outputs, strict=True):
        assert len(ids(given)) == 12
        check_greedy(prompt, given)
    assert worker._index._running_blocks == 0
    assert not worker._index._used


def test_background_jobs_begin_when_nobody_waits_for_a_first_token(worker: Any) -> None:
    worker.take(Add(0, [1, 2, 3] * 70, GREEDY, priority=1))
    worker.add(Add(1, [4, 5, 6] * 30, GREEDY))
    first: dict[int, int] = {}
    for number in range(100):
        for output in worker.report(worker.step()).outputs:
            first.setdefault(output.job, number)
        if not worker.busy:
            break
    # Three chunks of the one that came last, and only then what may wait.
    assert first[1] == 2
    assert first[0] > first[1] + 2


def test_background_job_that_is_cancelled_never_begins(worker: Any) -> None:
    worker.take(Add(0, [9] * 100, GREEDY, priority=1))
    worker.take(Add(1, [8] * 10, GREEDY, priority=1))
    worker.step()
    worker.cancel(0)
    jobs = set()
    while worker.busy:
        jobs |= {output.job for output in worker.report(worker.step()).outputs}
    assert jobs == {1}


def test_cache_takes_what_was_foretold(folder: Path, worker: Any) -> None:
    """In 8 bits, which is the default, the pool is as large as the plan says, not larger."""
    from thrifty.artifacts.checkpoint import DecoderShape
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    shape = DecoderShape(
        architecture="llama", layers=2, hidden_size=64, heads=2, kv_heads=2, head_dim=32,
        vocab_size=257, context_length=256, norm_epsilon=1e-5, rope_theta=10_000.0,
    )  # fmt: skip
    note = json.loads((folder / "thrifty.json").read_text())
    assert note["kv_bytes_per_token"] == kv_bytes_per_token(shape)
    small = DecoderWorker(make_settings(str(folder), "decoder", 1, kv_blocks=16))
    facts = small.warm_up()
    assert facts["kv_tokens"] == 16 * BLOCK_TOKENS
    assert facts["kv_bytes"] == pytest.approx(
        kv_bytes_per_token(shape) * facts["kv_tokens"], rel=0.1
    )


# encoders


def test_engine_embeds_what_the_reference_does(store: Store) -> None:
    from thrifty.engines.openvino.encoder_worker import EncoderWorker

    with store.stage("bert") as stage:
        (stage / "model").mkdir()
        source = write_encoder(stage / "model")
        make_tokenizer().tokenizer.save(str(source / "tokenizer.json"))
        made = store.add(source, "bert", SOURCE)
    _, folder = prepare(store, made, "none")
    note = json.loads((folder / "thrifty.json").read_text())
    assert (note["family"], note["embedding_size"], note["context_length"]) == ("encoder", 32, 24)
    worker = EncoderWorker(make_settings(str(folder), "encoder", 1))
    assert worker.warm_up() == 32
    inputs = [[[2, 5, 3], [2, *range(6, 20), 3]], [[2, 9, 9, 3]]]
    answers = worker.embed([Embed(7, inputs[0]), Embed(8, inputs[1])])
    assert [answer.job for answer in answers] == [7, 8]
    for answer, texts in zip(answers, inputs, strict=True):
        for vector, text in zip(answer.vectors, texts, strict=True):
            # The processor may compute in bfloat16 here.
            close = float(np.frombuffer(vector, "<f4") @ embed_plainly(text))
            assert close == pytest.approx(1, abs=1e-3)


def test_encoder_weights_beyond_sixteen_bits_are_refused(store: Store) -> None:
    tensors = make_tensors()
    name = "encoder.layer.0.output.dense.weight"
    with store.stage("bert") as stage:
        (stage / "model").mkdir()
        source = write_encoder(stage / "model", tensors={**tensors, name: tensors[name] * 1e6})
        make_tokenizer().tokenizer.save(str(source / "tokenizer.json"))
        made = store.add(source, "bert", SOURCE)
    with pytest.raises(FormatRefused, match=r"do not fit 16 bits: .*; choose int8"):
        prepare(store, made, "none")
