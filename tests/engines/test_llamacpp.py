"""The llama.cpp engine: grammars and tokens as it has them, preparation, and models that cannot be."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import psutil
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import make_gpt2_metadata
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.sources import fetch_model
from thrifty.engines.base import Served
from thrifty.engines.known_answers import measure_difference, read_known_answers
from thrifty.engines.llamacpp import packages
from thrifty.engines.llamacpp.adapter import LlamaCppEngine
from thrifty.engines.llamacpp.backend import LlamaCppBackend
from thrifty.engines.llamacpp.gbnf import translate
from thrifty.engines.llamacpp.prepare import NOTE, count_kv_values
from thrifty.engines.llamacpp.requests import make_body
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.engines.llamacpp.tokens import TokenBytes
from thrifty.engines.machine import detect_machine
from thrifty.engines.server.backend import Failure, Grammar, Load, Output, Sampling
from thrifty.engines.server.binding import bind_answer
from thrifty.engines.server.tools import ToolPlan
from thrifty.errors import EngineError, FormatRefused, ThriftyError
from thrifty.spec import load_spec
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, ignore_progress

VOCABULARY = 400
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
needs_llama_cpp = [
    pytest.mark.engine,
    pytest.mark.skipif(not packages.is_here(), reason="needs the pinned xllamacpp"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "models")


def write(path: Path, kind: str = "llama", *, template: str = TEMPLATE, **settings: Any) -> Path:
    metadata = make_gpt2_metadata(VOCABULARY, settings.pop("pre", "smollm"))
    extra = {**metadata, "tokenizer.chat_template": template}
    model = Llama(kind=kind, vocab=VOCABULARY, context=2048, inner=64)
    return model.write_gguf(path, extra=extra, **settings)


def prepare(store: Store, model: Path, **flags: str) -> Served:
    """As a service would: refused by the check, or prepared."""
    engine = LlamaCppEngine()
    flags = {"compress": "none", **{key.replace("__", "."): one for key, one in flags.items()}}
    spec = load_spec(flags={"engine.kind": "llamacpp", "model": str(model), **flags}).spec
    found = fetch_model(store, spec.model)
    problems = engine.check(spec, found[1], detect_machine())
    if problems:
        raise ThriftyError("; ".join(f"{one.path} {one.message}" for one in problems))
    return engine.prepare(spec, found, store, detect_machine(), ignore_progress)


def test_the_lock_has_the_version_that_is_installed_on_first_use() -> None:
    lock = (Path(__file__).parents[2] / "constraints" / "dev.txt").read_text()
    assert f"\n{packages.PACKAGE}=={packages.VERSION}\n" in lock


# grammars and tokens


def test_biases_stand_beside_banned_tokens() -> None:
    sampling = Sampling(max_tokens=3, logit_bias=((5, -100.0), (7, 0.5)))
    body = make_body([1], sampling, count=3, context=9, prefix_cache=True, banned=[2])
    assert body["logit_bias"] == [[5, -100.0], [7, 0.5], [2, False]]


def test_grammar_loses_what_llama_cpp_does_not_read() -> None:
    text = 'root ::= r0\nr0 ::= "{" r1 "}" (=r2)\nr1 ::= [a\\-\\^\\]] | "\\u00e9"\nr2 ::= ""'
    found = translate(Grammar(text))
    assert found == {
        "grammar": 'root ::= r0\nr0 ::= "{" r1 "}"\nr1 ::= [a\\x2D\\x5E\\]] | "\\u00e9"\nr2 ::= ""'
    }


@pytest.mark.parametrize("repeats", ["true", "false"])
def test_grammar_of_optional_calls_begins_at_their_tag(repeats: str) -> None:
    rule = f'TagDispatch(("<tool_call>", r1), loop_after_dispatch={repeats})'
    found = translate(Grammar(f'root ::= r0\nr0 ::= {rule}\nr1 ::= "x"'))
    again = r' ([\n ]? [\n ]? "<tool_call>" r1)*' if repeats == "true" else ""
    assert found["grammar"] == f'root ::= r0\nr0 ::= "<tool_call>" r1{again}\nr1 ::= "x"'
    assert found["grammar_lazy"] is True
    assert found["grammar_triggers"] == [{"type": 1, "value": "<tool_call>"}]


def test_tokens_that_are_parts_of_a_character_are_found(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(build_tokenizer(GgufFile(write(tmp_path / "m.gguf"))), None)
    known = TokenBytes(tokenizer)
    for text in ("🦙", "龘", "a龘", "é"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert known.complete(ids[-1], text) == ids
    assert len(tokenizer.encode("龘", add_special_tokens=False)) > 1
    plain = tokenizer.encode(" x", add_special_tokens=False)[-1]
    assert known.complete(plain, tokenizer.token_text(plain)) == [plain]
    control = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    assert known.complete(control[0], "") == control
    # Cut otherwise than the tokenizer would, by the bytes alone.
    byte = {one: tokenizer.tokenizer.token_to_id(chr(one)) for one in b"()"}
    assert known.complete(byte[ord(")")], "()") == [byte[ord("(")], byte[ord(")")]]


def test_size_of_the_kv_cache(tmp_path: Path) -> None:
    # 2 layers of 2 heads of 8 numbers, keys and values.
    assert count_kv_values(GgufFile(write(tmp_path / "m.gguf"))) == 2 * 2 * 8 * 2


# what cannot be served


def test_four_bits_of_four_bits_are_refused(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)
    with pytest.raises(ThriftyError, match=r"compress asks for int4.*already in q4_0.*none"):
        prepare(store, path, compress="int4")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine__context": "4096"}, r"engine.context 4096 tokens .* at most 2048"),
        ({"engine__speculation": "draft"}, r"engine.draft_model .*give both"),
        ({"engine__draft_model": "small"}, r"engine.draft_model .*give both"),
        ({"engine__slot": "1"}, r"engine.slot is not an option.*slots"),
    ],
)
def test_options_that_cannot_be(
    store: Store, tmp_path: Path, flags: dict[str, str], message: str
) -> None:
    with pytest.raises(ThriftyError, match=message):
        prepare(store, write(tmp_path / "m.gguf"), **flags)


class TestPrepare:
    """Preparation, for which llama.cpp loads the model."""

    pytestmark = needs_llama_cpp

    def test_broken_chat_template_is_found(self, store: Store, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", template="{% for m in messages %}")
        with pytest.raises(FormatRefused, match="chat template cannot be compiled"):
            prepare(store, path)

    def test_unknown_architecture_is_found(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="no models of the architecture 'nosuch'"):
            prepare(store, write(tmp_path / "m.gguf", kind="nosuch"))

    def test_what_llama_cpp_refuses_is_told_in_its_words(
        self, store: Store, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "m.gguf", leave_out=("attention.head_count",))
        with pytest.raises(
            EngineError, match=r"cannot load the model: .*blk\.0\.attn_q\.weight.*Fetch it"
        ):
            prepare(store, path)

    def test_unknown_pre_tokenizer_is_one_of_the_known_or_refused(
        self, store: Store, tmp_path: Path
    ) -> None:
        # llama.cpp's name for another model's, which cuts like that of GPT-2 with single digits.
        served = prepare(store, write(tmp_path / "m.gguf", pre="refact"))
        assert served.context_length == 2048
        with pytest.raises(FormatRefused, match=r"'deepseek-llm'.*cannot reproduce"):
            prepare(store, write(tmp_path / "n.gguf", pre="deepseek-llm"))

    def test_tokenizer_that_composes_characters_is_served(
        self, store: Store, tmp_path: Path
    ) -> None:
        """llama.cpp leaves that out, and gets tokens in place of texts."""
        served = prepare(store, write(tmp_path / "m.gguf", pre="qwen2"))
        assert served.artifact is not None
        tokenizer = TextTokenizer.load(store.folder_of(served.artifact))
        assert tokenizer.encode("e\u0301") == tokenizer.encode("é")

    def test_kv_cache_beyond_the_memory_is_refused(self, store: Store, tmp_path: Path) -> None:
        machine = dataclasses.replace(detect_machine(), memory_bytes=1_000_000)
        path = write(tmp_path / "m.gguf")
        prepare(store, path)
        spec = load_spec(flags={"engine.kind": "llamacpp", "compress": "none"}).spec
        with pytest.raises(EngineError, match=r"need 1\.0 MB of KV cache.*engine\.slots"):
            LlamaCppEngine().prepare(spec, store.find("m"), store, machine, ignore_progress)

    def test_weights_as_they_are_take_no_disk(self, store: Store, tmp_path: Path) -> None:
        served = prepare(store, write(tmp_path / "m.gguf"))
        assert served.artifact is not None
        folder = store.folder_of(served.artifact)
        assert (folder / "m.gguf").stat().st_nlink >= 3  # the blob, the checkpoint, this
        note = json.loads((folder / NOTE).read_text())
        assert (note["context_length"], note["eos_token_ids"]) == (2048, [2])
        version, _ = store.find("m-llamacpp")
        assert [parent.name for parent in version.lineage.parents] == ["m@v1"]
        # Once: the same model again is the same version, and is its own preparation.
        assert prepare(store, tmp_path / "m.gguf") == served
        assert len(store.versions()) == 2

    def test_an_adapter_is_merged_into_the_weights(self, store: Store, tmp_path: Path) -> None:
        base = fetch_model(store, str(write(tmp_path / "m.gguf")))
        version, tuned = put_adapter(store, base, make_lora(store, base[1]))
        engine = LlamaCppEngine()
        spec = load_spec(flags={"engine.kind": "llamacpp", "compress": "none"}).spec
        assert engine.check(spec, tuned, detect_machine()) == []
        served = engine.prepare(spec, (version, tuned), store, detect_machine(), ignore_progress)
        assert served.artifact is not None
        made, _ = store.find("tuned-llamacpp")
        assert [parent.name for parent in made.lineage.parents] == [version.label]
        found = [load_decoder(store.folder_of(one)).tensors for one in (tuned.id, served.artifact)]
        for matrix in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.1.{matrix}.weight"
            ours, theirs = (tensors.read_tensor(name) for tensors in found)
            np.testing.assert_allclose(ours, theirs, atol=5e-3)

    @pytest.mark.parametrize(("scheme", "name"), [("int8", "q8_0"), ("int4", "q4_0")])
    def test_fewer_bits_keep_all_else(
        self, store: Store, tmp_path: Path, scheme: str, name: str
    ) -> None:
        path = write(tmp_path / "m.gguf")
        plain = prepare(store, path)
        served = prepare(store, path, compress=scheme)
        assert served.artifact is not None
        assert plain.artifact is not None
        before, after = GgufFile(path), GgufFile(store.folder_of(served.artifact) / "model.gguf")
        for key, value in before.metadata.items():
            if key.startswith(("tokenizer.", "llama.")):
                assert after.metadata[key] == value
        kinds = {
            gguf.GGMLQuantizationType(tensor.ggml_type).name.lower()
            for tensor in after.tensors.values()
        }
        assert kinds == {"f32", name, *(["q8_0"] if scheme == "int4" else [])}
        assert store.load(served.artifact).description.weights in (name, "q8_0")
        most = {"int8": 1e-4, "int4": 0.02}[scheme]
        for tensor in before.tensors:
            floats, there = before.read_tensor(tensor), after.read_tensor(tensor)
            assert float(((floats - there) ** 2).sum()) <= most * float((floats**2).sum()), tensor
        known = [
            read_known_answers(store.folder_of(one)) for one in (plain.artifact, served.artifact)
        ]
        assert known[0] is not None
        assert known[1] is not None
        chosen = [(one.tokens[0], one.logprobs[0]) for one in known[1].tokens]
        # Nats. Random weights lose more than trained ones; rows in a wrong order cost several.
        assert measure_difference(known[0].tokens, chosen) < {"int8": 0.3, "int4": 2.0}[scheme]

    def test_split_model_is_served(self, store: Store, tmp_path: Path) -> None:
        whole = write(tmp_path / "m.gguf")
        folder = split(whole, tmp_path / "parts" / "m")
        served = prepare(store, folder)
        assert served.artifact is not None
        assert len(list(store.folder_of(served.artifact).glob("*.gguf"))) == 2
        (folder / "m-00002-of-00002.gguf").unlink()
        with pytest.raises(ThriftyError, match=re.escape("lacks parts of a model: m-00002-of")):
            prepare(store, folder)


@asynccontextmanager
async def running(store: Store, model: Path, **flags: str) -> AsyncIterator[Running]:
    """A backend as a replica's process makes it."""
    engine = LlamaCppEngine()
    served = await asyncio.to_thread(prepare, store, model, **flags)
    given = json.loads(engine.launch(served, store, 1, [0], 0.5).command[-1])
    tokenizer = TextTokenizer.load(Path(given["folder"]))
    backend = LlamaCppBackend(
        Path(given["python"]), Path(given["folder"]),
        msgspec.convert(given["worker"], WorkerSettings), tokenizer,
        family=Family(given["family"]), eos_token_ids=given["eos_token_ids"],
        kv_bytes=given["kv_bytes"],
    )  # fmt: skip
    try:
        facts = (await backend.start()).facts
        assert facts is not None
        yield Running(backend, tokenizer, facts)
    finally:
        await backend.stop()


@dataclass
class Running:
    """A backend that runs, and its tokenizer."""

    backend: LlamaCppBackend
    tokenizer: TextTokenizer
    facts: dict[str, float]

    async def ask(
        self, text: str | list[int], sampling: Sampling, priority: int = 0
    ) -> list[Output]:
        """All outputs of one generation. Raises `EngineError` where it fails."""
        prompt = self.tokenizer.encode(text) if isinstance(text, str) else text
        found: list[Output] = []
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(output: Output) -> None:
            found.append(output)
            if output.finish:
                ended.set_result(None)

        def fail(failure: Failure) -> None:
            ended.set_exception(EngineError(f"{failure.kind}: {failure.message}"))

        self.backend.submit(prompt, sampling, take, fail, priority)
        await ended
        return found

    async def score(self, prompt: list[int]) -> list[float]:
        """The log-probabilities of a prompt's tokens behind its first."""
        sampling = Sampling(max_tokens=0, logprobs=True, prompt_logprobs=True)
        (output,) = await self.ask(prompt, sampling)
        assert output.prompt is not None
        return output.prompt.logprobs

    def text_of(self, outputs: list[Output]) -> str:
        return self.tokenizer.decode([token for one in outputs for token in one.token_ids])


def greedy(count: int, **more: Any) -> Sampling:
    return Sampling(max_tokens=count, temperature=0.0, **more)


class TestBackend:
    """What llama.cpp makes of requests, on a model with random weights."""

    pytestmark = needs_llama_cpp

    async def test_guessed_tokens_are_those_that_the_model_would_choose(
        self, store: Store, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "m.gguf")
        flags = {"engine__speculation": "prompt_lookup", "engine__lookup_match": "2"}
        async with running(store, path, **flags) as model:
            # What repeats itself can be guessed.
            grammar = Grammar('root ::= "' + "hello world. " * 12 + '"')
            bound = await model.ask("Once", greedy(300, logprobs=True, grammar=grammar))
            tokens = [token for one in bound for token in one.token_ids]
            assert model.tokenizer.decode(tokens) == "hello world. " * 12
            scores = await model.score([*model.tokenizer.encode("Once"), *tokens])
            assert model.backend.load().facts["speculation_acceptance"] > 0.1
        told = [logprob for one in bound for logprob in one.logprobs or ()]
        assert scores[-len(told) :] == pytest.approx(told, abs=0.02)

    async def test_biases_are_added_to_what_the_model_says(
        self, store: Store, tmp_path: Path
    ) -> None:
        async with running(store, write(tmp_path / "m.gguf")) as model:

            async def say(**more: Any) -> list[int]:
                sampling = greedy(4, ignore_eos=True, **more)
                found = await model.ask("Once", sampling)
                return [token for one in found for token in one.token_ids]

            plain = await say()
            banned = await say(logit_bias=((plain[0], -100.0),))
            assert plain[0] not in banned
            assert await say(logit_bias=((plain[0], 0.0),)) == plain
            other = model.tokenizer.encode("x")[-1]
            assert await say(logit_bias=((other, 100.0),)) == [other] * 4
            # At least two tokens, of which the first request may not end the answer.
            least = await say(logit_bias=((other, 100.0),), min_tokens=2)
            assert least == [other] * 4

    async def test_bound_answers(self, store: Store, tmp_path: Path) -> None:
        schema = {
            "type": "object",
            "properties": {
                "kind": {"enum": ["a-b", "^c]"]},
                "é": {"type": "string", "maxLength": 4},
            },
            "required": ["kind", "é"],
            "additionalProperties": False,
        }
        async with running(store, write(tmp_path / "m.gguf")) as model:
            size = model.tokenizer.vocabulary_size
            grammar = bind_answer(schema, ToolPlan(), size)
            for seed in range(3):
                sampling = Sampling(max_tokens=200, temperature=1.0, seed=seed, grammar=grammar)
                found = json.loads(model.text_of(await model.ask("Say:", sampling)))
                assert found["kind"] in ("a-b", "^c]")
                assert len(found["é"]) <= 4
            # Free until the trigger has come, bound from there on.
            free = model.text_of(await model.ask("Say:", greedy(60, ignore_eos=True)))
            first = re.findall("[a-z]{2}|[0-9]{2}", free)[0]
            trigger = json.dumps(first)
            for repeats in ("true", "false"):
                rule = f"TagDispatch(({trigger}, r1), loop_after_dispatch={repeats})"
                text = f'root ::= r0\nr0 ::= {rule}\nr1 ::= "x!"'
                found = await model.ask("Say:", greedy(60, grammar=Grammar(text)))
                said = model.text_of(found)
                before, _, behind = said.partition(first)
                assert free.startswith(before)
                if repeats == "false":
                    assert (behind, found[-1].finish) == ("x!", "stop")
                else:  # it may be cut off in a further one
                    end = rf"([\n ]{{0,2}}({'|'.join((first[:1], first, first + 'x'))})?)?"
                    assert re.fullmatch(rf"x!([\n ]{{0,2}}{first}x!)*{end}", behind), said
            with pytest.raises(EngineError, match=r"grammar: .*parse grammar"):
                await model.ask("Say:", greedy(4, grammar=Grammar("root ::= [")))
            # It goes on.
            assert await model.ask("Say:", greedy(2, ignore_eos=True))

    async def test_batch_lines_give_way(self, store: Store, tmp_path: Path) -> None:
        async with running(store, write(tmp_path / "m.gguf"), engine__slots="1") as model:
            ended: list[str] = []

            async def ask(name: str, priority: int) -> None:
                await model.ask(name, greedy(30, ignore_eos=True), priority)
                ended.append(name)

            jobs = [("first", 0), ("line", 3), ("other", 0)]
            tasks = [asyncio.create_task(ask(*job)) for job in jobs]
            await asyncio.sleep(0)
            load = model.backend.load()
            assert (load.running, load.waiting) == (1, 2)
            await asyncio.gather(*tasks)
            assert ended == ["first", "other", "line"]
            assert model.backend.load() == Load(0, 0, 0.0)

    async def test_death_of_llama_cpp_ends_its_answers(self, store: Store, tmp_path: Path) -> None:
        async with running(store, write(tmp_path / "m.gguf")) as model:
            (worker,) = psutil.Process().children()
            asking = asyncio.create_task(model.ask("Once", greedy(2000, ignore_eos=True)))
            while not model.backend.load().kv_usage:  # until its first token
                await asyncio.sleep(0.01)
            worker.kill()
            with pytest.raises(EngineError, match=r"engine: llama\.cpp"):
                await asking
            assert await model.backend.wait_failed() == "it ended with signal 9"
            with pytest.raises(EngineError, match="the engine died"):
                await model.ask("Once", greedy(1))

    async def test_tokens_within_characters_have_their_log_probabilities(
        self, store: Store, tmp_path: Path
    ) -> None:
        async with running(store, write(tmp_path / "m.gguf")) as model:
            grammar = Grammar('root ::= "a龘🦙!"')
            found = await model.ask("Say:", greedy(60, logprobs=True, grammar=grammar))
            tokens = [token for one in found for token in one.token_ids]
            logprobs = [logprob for one in found for logprob in one.logprobs or ()]
            assert model.tokenizer.decode(tokens) == "a龘🦙!"
            assert len(tokens) == len(logprobs) > 5
            # The same numbers as when the answer is given as a prompt.
            prompt = model.tokenizer.encode("Say:")
            scores = await model.score([*prompt, *tokens])
            assert scores[len(prompt) - 1 :] == pytest.approx(logprobs, abs=0.01)
            # Cut off within a character, the count is right.
            found = await model.ask("Say:", greedy(3, grammar=Grammar('root ::= "龘🦙"')))
            assert sum(len(one.token_ids) for one in found) == 3
            assert found[-1].finish == "length"
            # What a grammar binds goes on where it was, and does not begin anew.
            found = await model.ask("Say:", greedy(3, grammar=Grammar('root ::= "a龘🦙"')))
            assert model.text_of(found) == "a"
            assert found[-1].finish == "length"

    async def test_a_grammar_is_not_joined_with_least_tokens(
        self, store: Store, tmp_path: Path
    ) -> None:
        async with running(store, write(tmp_path / "m.gguf")) as model:
            grammar = Grammar('root ::= "a" | "b"')
            with pytest.raises(EngineError, match="min_tokens: 'min_tokens' cannot be joined"):
                await model.ask("Say:", greedy(4, grammar=grammar, min_tokens=2))
            assert model.backend.load() == Load(0, 0, 0.0)

    async def test_a_job_that_is_cancelled_as_it_begins_gives_its_slot_back(
        self, store: Store, tmp_path: Path
    ) -> None:
        async with running(store, write(tmp_path / "m.gguf"), engine__slots="1") as model:
            backend, loop = model.backend, asyncio.get_running_loop()
            asking = asyncio.create_task(model.ask("Once", greedy(4, ignore_eos=True)))
            await asyncio.sleep(0)
            cancelled = asyncio.Event()
            waiting = backend.submit([1], greedy(4), lambda _: None, lambda _: None)

            def cancel_once_begun() -> None:
                """Before the first step of its task, which comes in the next turn at the earliest."""
                if backend.load().waiting:
                    loop.call_soon(cancel_once_begun)
                else:
                    backend.cancel(waiting)
                    cancelled.set()

            cancel_once_begun()
            await asking
            await cancelled.wait()
            async with asyncio.timeout(20):
                assert await model.ask("Once", greedy(2, ignore_eos=True))
                while backend.load() != Load(0, 0, 0.0):
                    await asyncio.sleep(0)


def split(path: Path, folder: Path) -> Path:
    """A GGUF in two parts, as llama.cpp's tool writes them."""
    file = GgufFile(path)
    folder.mkdir(parents=True)
    names = list(file.tensors)
    for number, part in enumerate((names[:9], names[9:])):
        writer = gguf.GGUFWriter(folder / f"m-{number + 1:05d}-of-00002.gguf", "llama")
        if not number:
            copy_metadata(file, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(names))
        for name in part:
            writer.add_tensor(name, file.read_tensor(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder


def copy_metadata(file: GgufFile, writer: gguf.GGUFWriter) -> None:
    add: Callable[..., None] = writer.add_key_value
    for key, value in file.metadata.items():
        kind, item = file.kinds[key]
        if key != "general.architecture":
            sub = None if item is None else gguf.GGUFValueType(item)
            add(key, value, gguf.GGUFValueType(kind), sub_type=sub)
