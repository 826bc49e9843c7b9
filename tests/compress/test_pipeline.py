"""From a checkpoint to the served model, in stages that are registered, measured and reused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.verdicts import find_failure
from thrifty.compress.pipeline import PipelineResult, check_compress, run_pipeline
from thrifty.errors import CompressionError, FleetError
from thrifty.evaluate.answers import ANSWERS, DEFAULT_SETS
from thrifty.evaluate.gate import ANSWERS_KEPT
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec
from thrifty.types import Format, Progress

pytestmark = pytest.mark.engine

MODEL = Llama(vocab=257, layers=4, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=128,
              context=2048, tied=True)  # fmt: skip
PRUNE = {"parameters": 0.75, "depth": True, "tokens": 2048}
INT4 = {"scheme": "int4", "tokens": 2048}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def store(home: Home) -> Store:
    return Store(home.models)


@pytest.fixture(scope="module")
def source(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store, MODEL)


@pytest.fixture(scope="module")
def texts(home: Home) -> dict[str, Any]:
    """Keys of the spec that name small texts."""
    learned = write_text(home.root / "learned.txt", 30_000, seed=5)
    judged = write_text(home.root / "judged.txt", 3000, seed=9)
    task = home.root / "letters.jsonl"
    items = [
        {"context": f"{letter} then", "choices": [" a", " b"], "answer": n % 2}
        for n, letter in enumerate("abcdefgh")
    ]
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    return {
        "text": str(learned), "held_out": str(judged), "held_out_tokens": 2048,
        "tasks": [str(task)],
    }  # fmt: skip


def run(
    source: tuple[NamedVersion, Artifact], store: Store, home: Home, **keys: Any
) -> tuple[PipelineResult, list[str]]:
    """Run a pipeline without measuring the speed; also returns the reported stages."""
    steps: list[str] = []

    def note(step: Progress) -> None:
        steps.append(step.step)

    compress = CompressSpec.model_validate(keys)
    return run_pipeline(compress, source, store=store, home=home, on_progress=note), steps


@pytest.fixture(scope="module")
def compressed(source: Any, store: Store, home: Home, texts: Any) -> PipelineResult:
    return run(source, store, home, prune=PRUNE, quantize=INT4, **texts)[0]


def test_each_stage_is_a_model_made_from_the_one_before(
    compressed: PipelineResult, source: Any
) -> None:
    assert [stage.name for stage in compressed.stages] == ["prune", "quantize"]
    pruned, quantized = compressed.stages
    assert (pruned.version.name, quantized.version.name) == ("tiny-pruned", "tiny-pruned-int4")
    assert pruned.version.lineage.parents[0].id == source[1].id
    assert quantized.version.lineage.parents[0].id == pruned.artifact.id
    assert quantized.version.lineage.figures["bits_per_weight"] <= 5.0
    assert (pruned.artifact.description.format, quantized.artifact.description.format) == (
        Format.SAFETENSORS, Format.OPENVINO,
    )  # fmt: skip
    assert compressed.result == (quantized.version, quantized.artifact)


def test_each_stage_is_held_to_the_model_that_nothing_was_done_to(
    compressed: PipelineResult, source: Any, store: Store
) -> None:
    divergences = []
    for stage in compressed.stages:
        by_kind = {one.kind: one for one in store.read_measurements(stage.artifact.id)}
        assert set(by_kind) - {"gate"} == {"quality", "task"}
        quality, task = by_kind["quality"], by_kind["task"]
        for one in (quality, task):
            assert one.conditions["reference"] == source[1].id
            assert one.conditions["engine"].startswith("openvino 20")
            assert one.conditions["processor"]
            assert one.values["beside"] == "tiny@v1"
        assert quality.values["domain"] == "judged"
        assert quality.values["tokens"] > 1000
        assert (task.values["task"], task.values["items"]) == ("letters", 8)
        assert quality.values["form"] == {"prune": "f16", "quantize": "int4"}[stage.name]
        divergences.append(quality.values["kl_divergence"]["mean"])
    assert 0 < divergences[0] < divergences[1]


def test_the_result_is_judged(
    compressed: PipelineResult, source: Any, store: Store, home: Home, texts: Any
) -> None:
    """Only the result: a pruned model may be worse than what training makes of it."""
    pruned, quantized = compressed.stages
    kinds = [{m.kind for m in store.read_measurements(s.artifact.id)} for s in (pruned, quantized)]
    assert ["gate" in found for found in kinds] == [False, True]
    assert compressed.verdict is not None
    assert set(compressed.verdict.drops) == {"judged"}
    assert compressed.verdict.max_drop == 0.25
    ratio = next(m for m in quantized.measured if m.kind == "quality").values["perplexity_ratio"]
    assert compressed.verdict.drops["judged"] == pytest.approx(max(0, 1 - 1 / ratio))
    stricter = run(source, store, home, prune=PRUNE, quantize=INT4, max_drop=0.1, **texts)[0]
    assert stricter.result == compressed.result
    assert stricter.verdict is not None
    assert stricter.verdict.max_drop == 0.1
    assert (find_failure(store, quantized.version) is None) == stricter.verdict.passed
    assert find_failure(store, pruned.version) is None


def test_what_is_done_already_costs_a_look(
    compressed: PipelineResult, source: Any, store: Store, home: Home, texts: Any
) -> None:
    again, steps = run(source, store, home, prune=PRUNE, quantize=INT4, **texts)
    assert again.result == compressed.result
    assert again.stages[0].measured == compressed.stages[0].measured
    assert not steps


@pytest.mark.long
def test_auto_is_a_stage_too_and_names_can_be_given(
    compressed: PipelineResult, source: Any, store: Store, home: Home, texts: Any
) -> None:
    less = {key: texts[key] for key in ("text", "held_out", "held_out_tokens")}
    found, steps = run(source, store, home, prune=PRUNE, out="small", **less)
    assert found.stages[0].version == compressed.stages[0].version
    assert found.result[0].name == "small"
    assert found.result[1].description.weights == "int8"
    assert not any(step.startswith("prune") for step in steps)
    alone, _ = run(source, store, home, quantize="none", prune=PRUNE, **less)
    assert [stage.name for stage in alone.stages] == ["prune"]


@pytest.mark.long
def test_a_model_that_does_not_start_is_said_and_no_more(
    source: Any, store: Store, home: Home, texts: Any
) -> None:
    from thrifty.errors import FleetError

    def fail(*_: Any) -> Any:
        raise FleetError("no room")

    told: list[str] = []
    found = run_pipeline(
        CompressSpec(held_out=texts["held_out"], held_out_tokens=2048), source, store=store,
        home=home, measure_speed=fail, on_stage=told.append,
    )  # fmt: skip
    assert found.stages[0].not_measured == "no room"
    assert told[-3:-1] == [
        "quantize tiny@v1: to int8", "tiny-int8@v1: its speed was not measured: no room",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prune": 0.01}, r"^prune \(tiny@v1\): 1% of the parameters cannot be reached"),
        ({"distill": 1000}, "would learn from itself"),
        ({"distill": {"tokens": 1000, "teacher": "nobody"}, "prune": 0.8},
         r"^distill \(tiny@v1\): no model is named 'nobody'"),
        ({"prune": 0.8, "held_out": "learned"}, "contains 100.0% of"),
        ({"prune": {**PRUNE, "parameters": 0.8, "steps": 2}, "distill": 1000},
         r"^prune 1 of 2 \(tiny@v1\): this step already leaves 7\d\.\d% .*set fewer steps"),
    ],
)  # fmt: skip
def test_faults_name_the_stage(
    source: Any, store: Store, home: Home, texts: Any, tmp_path: Path, keys: Any, message: str
) -> None:
    if keys.get("held_out"):
        copy = tmp_path / "copy.txt"
        copy.write_bytes(Path(texts["text"]).read_bytes())
        keys = {**keys, "held_out": str(copy)}
    with pytest.raises(CompressionError, match=message):
        run(source, store, home, **{**texts, **keys})


def test_what_is_prepared_already_is_no_beginning(
    compressed: PipelineResult, store: Store, home: Home, texts: Any
) -> None:
    with pytest.raises(CompressionError, match="is already prepared for an engine"):
        run(compressed.result, store, home, prune=0.5, **texts)


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ({"quantize": "none", "out": "x"}, ["compress: the pipeline has no stage"]),
        ({"prune": {"parameters": 0.5, "steps": 2}}, ["compress.prune.steps: needs distillation"]),
        ({"prune": 0.5, "text": "nowhere.txt"}, ["compress.text: 'nowhere.txt' is neither a file"]),
        ({"prune": 0.5, "text": "piqa", "held_out": "boolq"},
         ["compress.text: 'piqa' holds questions", "compress.held_out: 'boolq' holds questions"]),
        ({"prune": 0.5, "text": "wiki", "held_out": "wiki"}, ["compress.held_out: must differ from the text"]),
        ({"prune": 0.5, "tasks": ["wiki", "nothing"]},
         ["compress.tasks.0: 'wiki' is text", "compress.tasks.1: 'nothing' is neither a file"]),
    ],
)  # fmt: skip
def test_what_can_be_refused_before_a_model_is_fetched_is(keys: Any, problems: list[str]) -> None:
    found = [str(one) for one in check_compress(CompressSpec.model_validate(keys))]
    assert len(found) == len(problems)
    for one, beginning in zip(found, problems, strict=True):
        assert one.startswith(beginning)


def test_training_without_pytorch_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = check_compress(CompressSpec.model_validate({"prune": 0.8, "distill": "1M"}))
    assert [one.path for one in found] == ["compress.distill"]
    assert "pip install 'thrifty[compress]'" in found[0].message


def test_a_teacher_that_is_served_elsewhere_is_refused() -> None:
    keys = {"prune": 0.8, "distill": {"tokens": "1M", "teacher": "https://x/v1"}}
    found = check_compress(CompressSpec.model_validate(keys))
    assert any("served elsewhere" in str(one) for one in found)


def test_a_pruned_chat_model_is_asked_questions_and_they_are_shown(
    store: Store, home: Home, texts: Any
) -> None:
    from thrifty.engines.machine import detect_machine
    from thrifty.own_replica import make_server

    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    source = put(store, dataclasses.replace(MODEL, seed=5), templates={"default": template})
    home.data.mkdir(exist_ok=True)
    for name in DEFAULT_SETS:
        (home.data / f"{name}.jsonl").write_text(
            json.dumps({"prompt": f"Q: Which {name}?\nA:", "answers": ["none"]}) + "\n"
        )
    told: list[str] = []
    held_out = {key: texts[key] for key in ("text", "held_out", "held_out_tokens")}

    def make(**keys: Any) -> list[str]:
        """What is measured of the last stage."""
        told.clear()
        compress = CompressSpec.model_validate({**keys, **held_out})
        server = make_server(store, home, detect_machine())
        found = run_pipeline(
            compress, source, store=store, home=home, serve=server, on_stage=told.append
        )
        return [one.kind for one in found.stages[-1].measured]

    def refuse(*anything: Any) -> Any:
        raise FleetError("no core is free")

    keys = {"prune": PRUNE, "quantize": "none", "max_drop": 0.99, **held_out}
    compress = CompressSpec.model_validate(keys)
    unasked = run_pipeline(compress, source, store=store, home=home, serve=refuse)
    assert unasked.verdict is not None
    assert unasked.verdict.failed == [ANSWERS_KEPT]
    assert "no core is free" in str(find_failure(store, unasked.result[0]))
    assert ANSWERS in make(prune=PRUNE, quantize="none", max_drop=0.99)
    assert find_failure(store, unasked.result[0]) is None
    assert "the gate" in told[-1]
    shown = told[-11:-1]
    label = source[0].label
    assert shown[0].startswith("tiny-pruned@")
    assert f"still right of what {label} answers right" in shown[0]
    assert [line.partition(":")[0].strip() for line in shown[1:]] == [
        "Q", label, shown[0].partition(":")[0],
    ] * 3  # fmt: skip
    assert ANSWERS in make(quantize="int8")
