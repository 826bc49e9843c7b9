"""Tasks of lm-evaluation-harness, run on our models and compared with a reference item by item.

`lm_eval:NAME` is a task, a group or a tag of that package, or of YAML files in the user's own
folders. The package defines the questions and the metrics; scoring tokens, recording answers and
comparing models is done here. It is optional: `pip install 'thrifty[lm-eval]'`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.errors import EvaluationError, ThriftyError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.statistics import (
    PairedDifference,
    Proportion,
    bootstrap_pair,
    mean_with_interval,
    paired_difference,
    paired_means,
    proportion,
)
from thrifty.evaluate.task_result import TaskResult
from thrifty.types import OnProgress, ignore_progress

PREFIX = "lm_eval:"
SEED, SHOTS_SEED = 0, 1234
"""The package's defaults, so that the same examples are shown and the same items are drawn."""


@dataclass(frozen=True)
class MetricValues:
    """One metric of one task, item by item."""

    metric: str
    items: tuple[int, ...]
    """The numbers of the items in their task."""
    values: tuple[Any, ...]
    """A number for each item, or the input of `aggregate`."""
    answers: tuple[str, ...]
    """The model's answers, as far as the package reveals them."""
    higher_is_better: bool
    aggregate: Callable[[list[Any]], float] | None
    """None: the mean."""


def is_harness_task(task: str) -> bool:
    """Whether a task's name refers to lm-evaluation-harness."""
    return task.startswith(PREFIX)


class Harness:
    """The requested tasks. Reads their data once, for any number of models."""

    def __init__(
        self,
        names: Sequence[str],
        include: Sequence[Path] = (),
        shots: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Load the tasks `names`, which begin with `PREFIX`, also from the folders `include`.

        Raises `EvaluationError` if a task or the package does not exist.
        """
        _require_package()
        self._limit = limit
        for folder in include:
            if not folder.is_dir():
                raise EvaluationError(
                    f"{folder} is not a folder with tasks of lm-evaluation-harness"
                )
        self._loaded = _load([name.removeprefix(PREFIX) for name in names], include)
        for loaded in self._loaded.values():
            for task in loaded["tasks"].values():
                _set_shots(task, shots)

    def answer(
        self, scorer: Scorer, kept: KeptAnswers, on_progress: OnProgress = ignore_progress
    ) -> dict[str, list[MetricValues]]:
        """The metrics of each task for `scorer`, by the task's name; a group's are over all of its
        items. Raises `EvaluationError`.
        """
        from lm_eval.evaluator import evaluate

        from thrifty.evaluate.harness_model import HarnessModel

        model = HarnessModel(scorer, kept, on_progress)
        found: dict[str, list[MetricValues]] = {}
        for name, loaded in self._loaded.items():
            run = partial(
                evaluate, model, loaded, limit=self._limit, bootstrap_iters=0, log_samples=True
            )
            results = _guard(name, run)
            tasks = loaded["tasks"]
            parts = {
                task: _read_metrics(tasks[task], samples)
                for task, samples in results["samples"].items()
            }
            if name not in parts:
                found[PREFIX + name] = _pool(list(parts.values()))
            found |= {PREFIX + task: metrics for task, metrics in parts.items()}
        return found


def compare_measured(
    given: dict[str, list[MetricValues]], known: dict[str, list[MetricValues]], margin: float
) -> dict[str, TaskResult]:
    """Compare two models: each task's first metric by its name, the others as `NAME/METRIC`."""
    found: dict[str, TaskResult] = {}
    for task, metrics in given.items():
        others = {one.metric: one for one in known[task]}
        lengths = {one.metric: one for one in metrics}.get("acc_norm")
        for index, one in enumerate(metrics):
            name = task if index == 0 else f"{task}/{one.metric}"
            found[name] = _compare(one, others[one.metric], lengths, margin)
    return found


def _compare(
    given: MetricValues, known: MetricValues, by_length: MetricValues | None, margin: float
) -> TaskResult:
    before = dict(zip(known.items, zip(known.values, known.answers, strict=True), strict=True))
    both = [
        (value, before[item], answer)
        for item, value, answer in zip(given.items, given.values, given.answers, strict=True)
        if item in before
    ]
    new, old = [value for value, _, _ in both], [value for _, (value, _), _ in both]
    is_share = given.aggregate is None and all(value in (0, 1) for value in (*new, *old))
    score, reference, paired = _measure_pair(new, old, given.aggregate, is_share)
    lengths = score
    if by_length is not None and all(value in (0, 1) for value in by_length.values):
        lengths = proportion(int(sum(by_length.values)), len(by_length.values))
    scale = 1.0 if is_share else abs(reference.share)
    worst = paired.low if given.higher_is_better else -paired.high
    return TaskResult(
        score=score,
        by_length=lengths,
        reference=reference,
        paired=paired,
        changed=sum(answer != other for _, (_, other), answer in both),
        not_inferior=bool(worst > -margin * scale),
        margin=margin,
        metric=given.metric,
        is_share=is_share,
        higher_is_better=given.higher_is_better,
    )


def _measure_pair(
    new: list[Any], old: list[Any], aggregate: Callable[[list[Any]], float] | None, is_share: bool
) -> tuple[Proportion, Proportion, PairedDifference]:
    if aggregate is not None:
        return bootstrap_pair(new, old, aggregate)
    a, b = np.array(new, dtype=np.float64), np.array(old, dtype=np.float64)
    if is_share:
        return (
            proportion(int(a.sum()), len(a)), proportion(int(b.sum()), len(b)),
            paired_difference(a, b),
        )  # fmt: skip
    return mean_with_interval(a), mean_with_interval(b), paired_means(a, b)


def _read_metrics(task: Any, samples: Iterable[dict[str, Any]]) -> list[MetricValues]:
    """A task's metrics, in its order. Metrics of all filters but the first name the filter."""
    from lm_eval.api.metrics import mean

    rows: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            row = (int(sample["doc_id"]), sample[metric], _tell_answer(sample["filtered_resps"]))
            rows.setdefault((metric, sample["filter"]), []).append(row)
    first = next((kind for _, kind in rows), "")
    aggregations, better = task.aggregation(), task.higher_is_better()
    found = []
    for (metric, kind), entries in rows.items():
        items, values, answers = zip(*sorted(entries, key=lambda row: row[0]), strict=True)
        aggregate = aggregations.get(metric, mean)
        simple = aggregate is mean and all(isinstance(v, int | float | np.number) for v in values)
        name = metric if kind == first else f"{metric},{kind}"
        rises = better.get(metric) is not False
        found.append(
            MetricValues(name, items, values, answers, rises, None if simple else aggregate)
        )
    return found


def _tell_answer(answers: Sequence[Any]) -> str:
    """A model's answer: the number of the likeliest choice, or the generated text."""
    if len(answers) > 1 and all(isinstance(one, tuple | list) for one in answers):
        return str(int(np.argmax([one[0] for one in answers])))
    if len(answers) == 1 and isinstance(answers[0], tuple | list) and len(answers[0]) == 2:
        return str(answers[0][1])
    return str(answers[0]) if answers and isinstance(answers[0], str) else ""


def _pool(parts: Sequence[list[MetricValues]]) -> list[MetricValues]:
    """The metrics that all tasks of a group have, over all items."""
    names = [one.metric for one in parts[0]]
    pooled = []
    for name in names:
        same = [one for part in parts for one in part if one.metric == name]
        if len(same) != len(parts) or any(one.aggregate is not None for one in same):
            continue
        values = tuple(value for one in same for value in one.values)
        answers = tuple(answer for one in same for answer in one.answers)
        numbers = tuple(range(len(values)))
        pooled.append(MetricValues(name, numbers, values, answers, same[0].higher_is_better, None))
    return pooled


def _load(names: Sequence[str], include: Sequence[Path]) -> dict[str, Any]:
    """Load tasks by name, from the user's folders alone if they contain all of them.

    The package's own tasks are thousands of files, which take seconds to index.
    """
    from lm_eval.tasks import TaskManager

    paths = [str(folder) for folder in include]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if all(name in manager.task_index for name in names):
        try:
            return _load_from(manager, names)
        except EvaluationError:
            if all(name in manager.all_subtasks for name in names):
                raise  # otherwise, a group may refer to the package's tasks
    manager = TaskManager(include_path=paths)
    for name in names:
        if name not in manager.task_index:
            raise EvaluationError(
                f"lm-evaluation-harness has no task {name!r} (list them with: lm-eval ls tasks; "
                "--include-path adds your own)"
            )
    return _load_from(manager, names)


def _load_from(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    random.seed(SEED)
    return {name: _guard(name, partial(manager.load, [name])) for name in names}


def _set_shots(task: Any, shots: int | None) -> None:
    """Set the number of solved examples, unless the task demands none."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=SHOTS_SEED)


def _require_package() -> None:
    if find_spec("lm_eval") is None:
        raise EvaluationError(
            f"{PREFIX} tasks need lm-evaluation-harness, which is not installed: "
            "pip install 'thrifty[lm-eval]'"
        )
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise EvaluationError(
            "the installed lm-evaluation-harness is too old: "
            "pip install --upgrade 'thrifty[lm-eval]'"
        )


def _guard(name: str, run: Callable[[], Any]) -> Any:
    """Call `run`; turn any error of the package or a task's own code into an `EvaluationError`."""
    try:
        return run()
    except ThriftyError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise EvaluationError(
            f"lm-evaluation-harness cannot run {name}: {type(error).__name__}: {first}"
        ) from error
