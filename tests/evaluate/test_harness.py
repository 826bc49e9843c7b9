"""Tasks of lm-evaluation-harness, compared with its own PyTorch class on the same model.

Runs if `lm_eval` is installed; `tests/peers/test_lm_eval.py` runs it in its own environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from tests.artifacts.models import Llama
from tests.artifacts.stored import SOURCE
from tests.evaluate.bigram import Bigram
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import EvaluationError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.harness import Harness, MetricValues, compare_measured
from thrifty.evaluate.harness_model import HarnessModel
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.open_model import open_model
from thrifty.types import ignore_progress

pytestmark = [pytest.mark.peer, pytest.mark.engine, pytest.mark.filterwarnings("default")]

END = 256
MODEL = Llama(vocab=257, head_dim=32, kv_heads=2, heads=2, hidden=64, context=96, tied=False)
DOCS = [
    {"question": f"Which is number {n}?", "choices": ["one", "two", "another one"], "answer": n % 3}
    for n in range(12)
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "choices", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "letters": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}} " * 5,
        "doc_to_choice": ["A", "B", "C"], "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "bare": {
        "output_type": "multiple_choice", "doc_to_text": "", "doc_to_choice": "choices",
        "target_delimiter": "", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{question * (answer * 3 + 1)}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "sampled": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.7},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's tasks: a file for each, beside the items."""
    made = tmp_path_factory.mktemp("tasks")
    data = made / "docs.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, settings in TASKS.items():
        task = {
            "task": f"our_{name}", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(data)}}, **settings,
        }  # fmt: skip
        (made / f"{name}.yaml").write_text(json.dumps(task))
    (made / "group.yaml").write_text(
        json.dumps({"group": "ours", "task": ["our_choice", "our_letters"]})
    )
    return made


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """With a model this small, more threads only wait for each other."""
    pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _no_hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module", params=["plain", "starts"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A checkpoint as transformers writes it; its tokenizer may prepend a token to texts."""
    from tokenizers.processors import TemplateProcessing

    store = Store(tmp_path_factory.mktemp("harness") / "models")
    tokenizer = make_tokenizer().tokenizer
    if request.param == "starts":
        tokenizer.post_processor = TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", END)]
        )
    with store.stage("tiny") as stage:
        random = MODEL.write_safetensors(stage / "random", eos_token_id=END, bos_token_id=END)
        # Written in 16 bits, so that everything that loads it computes with the same numbers.
        write_decoder(load_decoder(random), stage / "model")
        tokenizer.save(str(stage / "model" / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>",
            "eos_token": "<|end|>", "pad_token": "<|end|>",
        }  # fmt: skip
        (stage / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
        made = store.add(stage / "model", "tiny", SOURCE)
    prepare_model(store, *made, "int8", ignore_progress)
    return store


def instances(kind: str, *arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, 0) for each in arguments]  # type: ignore[arg-type]


CONTEXT = "Which of them is the larger one? "
PAIRS = [
    ("Q: What?\nA:", " one"), ("Q: What?\nA: ", "two"), ("Q: What?\nA:", " A"),
    ("Q: What?\nA:", " B"), ("", "Without a context"), ("", "<|end|>Within"), ("x", "yz"),
    # Longer than the model accepts, by one token and by many.
    ((CONTEXT * 9)[: 96 - 3], "four"), ((CONTEXT * 9)[: 96 - 4], "four"), (CONTEXT * 9, " end"),
    (CONTEXT * 2, "a" * 95),
]  # fmt: skip
TEXTS = ["Short.", CONTEXT * 2 + "and then", CONTEXT * 6, (CONTEXT * 6)[:192]]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_log_likelihoods_and_answers_are_those_of_the_packages_own_class(
    store: Store, tmp_path: Path, backend: str
) -> None:
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    _, artifact = store.find("tiny")
    theirs = HFLM(
        pretrained=str(store.folder_of(artifact.id)), device="cpu", dtype="float32", batch_size=1
    )
    assert theirs.max_length == 96
    scorer = open_model("tiny", store, exact=True, backend=backend)
    written = ({"until": ["\n", "e"], "max_gen_toks": 24}, {"until": "q", "max_new_tokens": 40})
    contexts = ["Q: What?\nA:", CONTEXT, CONTEXT * 9]
    asked = [(context, settings) for settings in written for context in contexts]
    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        ours = HarnessModel(scorer, kept)
        for one, two in zip(
            ours.loglikelihood(instances("loglikelihood", *PAIRS)),
            theirs.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True),
            strict=True,
        ):
            # float32, summed in another order; no activations of the graph are in 16 bits.
            assert one[0] == pytest.approx(two[0], rel=1e-4, abs=1e-3)
            assert one[1] == two[1]
        texts = [(text,) for text in TEXTS]
        assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)) == pytest.approx(
            theirs.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)), rel=1e-4
        )  # fmt: skip
        assert ours.generate_until(instances("generate_until", *asked)) == theirs.generate_until(
            instances("generate_until", *asked)
        )
    scorer.close()


def test_a_task_scores_as_the_package_scores_it(store: Store, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from lm_eval.evaluator import evaluate as evaluate_there
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    _, artifact = store.find("tiny")
    theirs = HFLM(
        pretrained=str(store.folder_of(artifact.id)), device="cpu", dtype="float32", batch_size=1
    )
    names = ["our_choice", "our_letters", "our_bare", "our_write", "our_roll"]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = evaluate_there(theirs, manager.load(names), bootstrap_iters=0)
    assert expected is not None
    found = evaluate(
        "tiny",
        "tiny",
        EvaluationOptions(
            backend="torch", include=[folder], tasks=[f"lm_eval:{name}" for name in names]
        ),
        store=store,
        folder=tmp_path / "e",
    ).tasks
    for name in names:
        results = {
            key.removesuffix(",none"): value
            for key, value in expected["results"][name].items()
            if isinstance(value, float) and "stderr" not in key
        }
        assert results
        first = found[f"lm_eval:{name}"]
        for metric, value in results.items():
            ours = first if metric == first.metric else found[f"lm_eval:{name}/{metric}"]
            assert ours.score.share == pytest.approx(value, rel=1e-4)
            assert ours.score.count == len(DOCS)


def test_an_evaluation_pairs_items_with_the_reference_and_goes_on_where_it_was(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    steps: list[str] = []

    def run(limit: int | None = None) -> Any:
        steps.clear()
        return evaluate(
            "tiny-int8-openvino",
            "tiny@v1",
            EvaluationOptions(
                include=[folder],
                tasks=["lm_eval:ours", "lm_eval:our_write", "lm_eval:our_roll"],
                max_items=limit,
            ),
            store=store,
            folder=tmp_path / "e",
        )

    part = run(5)
    assert part.tasks["lm_eval:our_choice"].score.count == 5
    kept = sorted((tmp_path / "e" / "answers").glob("harness-*.jsonl"))
    assert len(kept) == 2, "the reference's and the candidate's"
    before = [path.read_bytes() for path in kept]
    kept[0].write_bytes(before[0][:-9])  # as a killed run leaves it
    whole = run()
    after = [path.read_bytes() for path in kept]
    cut = before[0].rindex(b"\n", 0, -1) + 1
    assert after[0].startswith(before[0][:cut])
    assert after[1].startswith(before[1])
    assert run() == whole
    assert [path.read_bytes() for path in kept] == after, "nothing is computed twice"
    told = whole.as_dict()["tasks"]
    json.dumps(told)
    assert told["lm_eval:ours"]["items"] == 2 * len(DOCS)
    choice = whole.tasks["lm_eval:our_choice"]
    assert choice.metric == "acc"
    assert choice.by_length == whole.tasks["lm_eval:our_choice/acc_norm"].score
    assert choice.score.low <= choice.score.share <= choice.score.high
    flips = told["lm_eval:our_choice"]["flips"]
    assert flips["gained"] - flips["lost"] == round(choice.paired.difference * len(DOCS))
    rolled = whole.tasks["lm_eval:our_roll"]
    assert (rolled.metric, rolled.is_share, rolled.higher_is_better) == (
        "word_perplexity", False, False,
    )  # fmt: skip
    assert rolled.score.low < rolled.score.share < rolled.score.high
    assert abs(rolled.paired.difference) < 0.5 * rolled.reference.share


def test_letters_of_options_cost_one_pass(folder: Path, tmp_path: Path) -> None:
    scorer = Bigram(0)
    asked = instances("loglikelihood", *[("Q:\nA:", f" {letter}") for letter in "ABCD"])
    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        together = HarnessModel(scorer, kept).loglikelihood(asked)
    assert scorer.passes == 1
    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        assert HarnessModel(scorer, kept).loglikelihood(asked) == together
    assert scorer.passes == 1
    for number, (total, greedy) in enumerate(together):
        text = f" {'ABCD'[number]}".encode()
        rows = [scorer.table[a, b] for a, b in zip(b":" + text[:1], text, strict=True)]
        assert total == pytest.approx(float(np.sum(rows)), abs=1e-4)
        assert not greedy


def test_tasks_that_cannot_be_run_are_told_of(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no task 'nonesuch'"):
        Harness(["lm_eval:nonesuch"], [folder])
    with pytest.raises(EvaluationError, match="is not a folder with tasks"):
        Harness(["lm_eval:our_choice"], [tmp_path / "nowhere"])
    with (
        KeptAnswers(tmp_path / "kept.jsonl") as kept,
        pytest.raises(EvaluationError, match="asks for sampled answers"),
    ):
        Harness(["lm_eval:our_sampled"], [folder]).answer(Bigram(0), kept)
    broken = tmp_path / "broken"
    broken.mkdir()
    task = {"task": "our_broken", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.json")}},
            **TASKS["choice"]}  # fmt: skip
    (broken / "broken.yaml").write_text(json.dumps(task))
    with pytest.raises(EvaluationError, match="cannot run our_broken: FileNotFoundError"):
        Harness(["lm_eval:our_broken"], [broken])


def measured(values: list[Any], metric: str = "f1", rises: bool = True) -> dict[str, Any]:
    items = tuple(range(len(values)))
    one = MetricValues(metric, items, tuple(values), ("",) * len(values), rises, None)
    return {"lm_eval:x": [one]}


def test_metrics_that_are_no_shares_have_intervals_and_a_margin_of_their_own() -> None:
    generator = np.random.default_rng(3)
    before = generator.uniform(2, 4, 400)
    after = before + generator.normal(0.02, 0.05, 400)
    known = measured(before.tolist())
    (found,) = compare_measured(measured(after.tolist()), known, 0.02).values()
    assert not found.is_share
    assert found.paired.low < 0.02 < found.paired.high
    assert found.paired.gained + found.paired.lost == 400
    assert found.not_inferior, "better is not worse"
    (falls,) = compare_measured(
        measured(after.tolist(), rises=False), measured(before.tolist(), rises=False), 0.002
    ).values()
    assert not falls.not_inferior, "0.02 more of 3 is more than 0.2% worse"
