"""Models side by side, from recorded measurements and new ones.

One table has one suite: one reference, one amount of one text, one engine and one processor with
its features. Measurements under other conditions are not mixed in; notes beside the table name them
and say how the processors differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.compare.lineage import LineageStep, describe_lineage
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import BenchError, EvaluationError, FleetError, SpecError
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.suite import (
    EMBEDDINGS,
    HELD_OUT,
    HELD_OUT_TEXTS,
    HELD_OUT_TOKENS,
    QUALITY,
    TASK,
    DataFile,
    EvaluationSuite,
    describe_arithmetic,
    describe_weights,
    find_data,
    find_root,
    measure_quality,
)
from thrifty.evaluate.windows import digest_file
from thrifty.home import Home, make_private_folder
from thrifty.speed_benchmark import SPEED, find_speed, make_conditions, measure_speed
from thrifty.types import Family, Format, OnProgress, ignore_progress
from thrifty.units import format_bytes

Model = tuple[NamedVersion, Artifact]


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    id: str
    form: str
    """The weight format in which it runs: `f16`, `int8`, `int4`."""
    parameters: int
    size_bytes: int | None
    """The size of all files that run."""
    bits_per_weight: float | None
    """Over all weights, embedding table and scales included."""
    quality: dict[str, Any] | None
    """For decoders."""
    embeddings: dict[str, Any] | None
    """For encoders."""
    tasks: dict[str, dict[str, Any]]
    speed: dict[str, Any] | None
    lineage: list[LineageStep]
    """From the model itself back to its source."""


@dataclass(frozen=True)
class Comparison:
    """All rows, and the conditions of their measurements."""

    reference: str
    family: Family
    """The reference's. Models of the other family have no quality here."""
    rows: list[Row]
    text: dict[str, Any]
    """The text's name, and the conditions of measurements on it."""
    tasks: list[str]
    speed: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty compare --json`."""
        return {
            "reference": self.reference,
            "text": self.text,
            "speed": self.speed,
            "models": [_row_as_dict(row) for row in self.rows],
            "notes": self.notes,
        }


@dataclass(frozen=True)
class ComparisonRequest:
    """Which models to compare, and on what."""

    models: Sequence[str]
    """Stored names, sources or paths."""
    reference: str | None = None
    """What they are compared with. Default: the source of the first model."""
    text: str | None = None
    """Held-out text. Default: the one that most of them were measured on; else `wiki`."""
    tokens: int | None = None
    """How many tokens of the text."""
    tasks: Sequence[str] = ()
    """Questions. Default: those that any of them was measured on."""
    items: int | None = None
    """The most items of each task."""
    measure: bool = True
    """Whether to measure what is missing."""
    speed_again: bool = False
    """Whether to measure recorded speeds again, because the machine may have been busy."""


@dataclass(frozen=True)
class _Run:
    """What the steps of one comparison share."""

    request: ComparisonRequest
    store: Store
    home: Home
    machine: Machine
    on_progress: OnProgress
    notes: list[str] = field(default_factory=list)


def compare(
    request: ComparisonRequest,
    *,
    store: Store,
    home: Home,
    machine: Machine,
    on_model: Callable[[str], None] = lambda label: None,
    on_progress: OnProgress = ignore_progress,
) -> Comparison:
    """Compare models, and measure what is not recorded yet. Blocks.

    `home` stores texts and references; `on_model` is called with each model that is measured.
    Raises `ThriftyError` and its subclasses.
    """
    run = _Run(request, store, home, machine, on_progress)
    models = _fetch_models(run)
    if request.reference is not None:
        root = fetch_model(store, request.reference, on_progress=on_progress)[0]
    else:
        root = find_root(store, models[0][0])
    family = store.load(root.artifact).description.family
    if family is Family.ENCODER and (request.tasks or request.tokens is not None):
        raise EvaluationError(
            f"{root.label} is an encoder: it answers no tasks, and is evaluated on "
            f"{HELD_OUT_TEXTS:,} passages"
        )
    suite = _choose_suite(run, root, family, models)
    rows = []
    for model in models:
        if request.measure:
            on_model(model[0].label)
        rows.append(_make_row(run, model, suite))
        run.notes.extend(_describe_others(run, model, suite))
    conditions = {"name": suite.text.name, **suite.text_conditions} if suite.text else {}
    speed = make_conditions(choose_engine("auto", models[0][1]), machine)
    tasks = [task.name for task in suite.tasks]
    return Comparison(root.label, suite.family, rows, conditions, tasks, speed, run.notes)


def _fetch_models(run: _Run) -> list[Model]:
    """The requested models without duplicates, which the notes name."""
    found: list[Model] = []
    for name in run.request.models:
        model = fetch_model(run.store, name, on_progress=run.on_progress)
        same = [known for known, artifact in found if artifact.id == model[1].id]
        if same:
            run.notes.append(f"{model[0].label} is the same model as {same[0].label}")
        else:
            found.append(model)
    return found


def _choose_suite(
    run: _Run, root: NamedVersion, family: Family, models: Sequence[Model]
) -> EvaluationSuite:
    """The requested data; by default, what most of the models were measured on."""
    request, tokens, items = run.request, run.request.tokens, run.request.items
    data = make_private_folder(run.home.data)
    here = describe_arithmetic().items()
    recorded = [
        one
        for _, artifact in models
        for one in run.store.read_measurements(artifact.id)
        if one.conditions.get("reference") == root.artifact and here <= one.conditions.items()
    ]
    kind = EvaluationSuite(root, family=family).kind
    texts = [one for one in recorded if one.kind == kind]
    text = None
    if request.text is not None:
        text = find_data(request.text, data, run.store, run.on_progress)
        texts = [one for one in texts if one.conditions["text_sha256"] == text.sha256]
    if tokens is not None:
        texts = [one for one in texts if one.conditions["tokens"] == tokens]
    usual_text, usual = _most_usual(texts)
    if usual is not None and family is Family.DECODER:
        tokens = int(usual.conditions["tokens"])
    text = text or usual_text
    if text is None and request.measure:
        text = find_data(HELD_OUT, data, run.store, run.on_progress)
    tasks = [find_data(name, data, run.store, run.on_progress) for name in request.tasks]
    asked = [one for one in recorded if one.kind == TASK]
    if tasks:
        checksums = {task.sha256 for task in tasks}
        asked = [one for one in asked if one.conditions["task_sha256"] in checksums]
    usual_task = _most_usual(asked)[1]
    if items is None and usual_task is not None:
        items = usual_task.conditions["items"]
    if not tasks:
        same = [one for one in asked if one.conditions["items"] == items]
        tasks = list({one.values["task"]: _read_data_file(one, "task") for one in same}.values())
    return EvaluationSuite(
        root, text, family, tokens=tokens or HELD_OUT_TOKENS, tasks=tuple(tasks), items=items
    )


def _most_usual(recorded: Sequence[Measurement]) -> tuple[DataFile | None, Measurement | None]:
    """The text or task of most measurements; of several, that of the latest measurement."""
    if not recorded:
        return None, None
    counts = Counter(str(sorted(one.conditions.items(), key=str)) for one in recorded)
    best = max(
        recorded,
        key=lambda one: (counts[str(sorted(one.conditions.items(), key=str))], one.measured),
    )
    return _read_data_file(best, "task" if best.kind == TASK else "text"), best


def _read_data_file(one: Measurement, kind: str) -> DataFile:
    return DataFile(one.values[kind], Path(one.values["path"]), one.conditions[f"{kind}_sha256"])


def _make_row(run: _Run, model: Model, suite: EvaluationSuite) -> Row:
    version, artifact = model
    comparable = artifact.description.family is suite.family
    quantized_gguf = _is_quantized_gguf(version, artifact)
    if run.request.measure:
        _measure(run, model, suite, quality=comparable, speed=not quantized_gguf)
    if quantized_gguf:
        run.notes.append(
            f"{version.label} is shown as it is stored; its quality is that of its dequantized "
            "weights, and its speed is not measured: the engine here does not run GGUF's weight "
            "formats"
        )
    recorded = run.store.read_measurements(artifact.id)
    quality: Measurement | None = None
    if suite.text is not None and comparable:
        quality = find_measurement(recorded, suite.kind, suite.text_conditions)
    tasks: dict[str, dict[str, Any]] = {}
    for task in suite.tasks:
        known = find_measurement(recorded, TASK, suite.task_conditions(task))
        if known is not None:
            tasks[task.name] = known.values
    speed = None if quantized_gguf else find_speed(run.store, artifact, run.machine)
    served = artifact if quantized_gguf else _find_served(run.store, artifact)
    if served is not None and served.id != artifact.id and _is_gguf(artifact):
        run.notes.append(
            f"{version.label} is a GGUF of {artifact.description.weights} "
            f"({format_bytes(artifact.size_bytes)}); it runs, and is shown, with its weights "
            "dequantized to 16 bits"
        )
    encoder = suite.family is Family.ENCODER
    return Row(
        version.label,
        artifact.id,
        artifact.description.weights if quantized_gguf else describe_weights(artifact),
        artifact.description.parameters,
        served.size_bytes if served is not None else None,
        _count_bits(served),
        quality.values if quality and not encoder else None,
        quality.values if quality and encoder else None,
        tasks,
        speed.values if speed else None,
        describe_lineage(run.store, version),
    )


def _measure(
    run: _Run, model: Model, suite: EvaluationSuite, *, quality: bool, speed: bool
) -> None:
    """Measure and record what is missing; the notes say what could not be measured."""
    version, artifact = model
    if quality:
        try:
            _require_files(suite)
            measure_quality(
                run.store, run.home.evaluations, version, artifact, suite, run.on_progress
            )
        except EvaluationError as error:
            run.notes.append(f"{version.label}: its quality was not measured: {error}")
    if speed:
        again = run.request.speed_again
        try:
            measure_speed(
                run.store, run.home, version, artifact, run.machine, run.on_progress, again=again
            )
        except (BenchError, FleetError, SpecError) as error:
            run.notes.append(f"{version.label}: its speed was not measured: {error}")


def _require_files(suite: EvaluationSuite) -> None:
    """Raise `EvaluationError` if a file is missing or has changed since it was used."""
    files = [one for one in suite.tasks if not is_harness_task(one.name)]
    for one in (suite.text, *files):
        if one is not None and (not one.path.exists() or digest_file(one.path) != one.sha256):
            raise EvaluationError(
                f"{one.path} has changed since other models were measured on it; name a text with "
                "--text and tasks with --task"
            )


def _is_gguf(artifact: Artifact) -> bool:
    return artifact.description.format is Format.GGUF


def _is_quantized_gguf(version: NamedVersion, artifact: Artifact) -> bool:
    """Whether it was quantized for llama.cpp here. A GGUF from a source counts as a checkpoint."""
    return _is_gguf(artifact) and bool(version.lineage.parents)


def _find_served(store: Store, artifact: Artifact) -> Artifact | None:
    """What runs: for a checkpoint, its graph with 16-bit weights, if that exists."""
    if artifact.description.format is Format.OPENVINO:
        return artifact
    return choose_engine("auto", artifact).find_prepared(artifact, "none", store)


def _count_bits(served: Artifact | None) -> float | None:
    if served is None or not served.description.parameters:
        return None
    weights = [
        entry.size
        for entry in served.files
        if entry.path == "openvino_model.bin" or entry.path.endswith(".gguf")
    ]
    return 8 * sum(weights) / served.description.parameters if weights else None


_SHOWN_KINDS = frozenset({QUALITY, EMBEDDINGS, TASK, SPEED})
"""Kinds of measurements that a table can show; others say how long a model takes to make."""


def _describe_others(run: _Run, model: Model, suite: EvaluationSuite) -> list[str]:
    """The recorded measurements that are not in the table because their conditions differ."""
    version, artifact = model
    shown: list[dict[str, Any]] = [suite.task_conditions(task) for task in suite.tasks]
    if suite.text is not None:
        shown.append(suite.text_conditions)
    conditions = make_conditions(choose_engine("auto", artifact), run.machine)
    shown.append(conditions)
    here = conditions["features"]
    notes = []
    for one in run.store.read_measurements(artifact.id):
        if one.conditions in shown or one.kind not in _SHOWN_KINDS:
            continue
        where = f"{one.conditions.get('engine')}, {one.conditions.get('processor')}"
        where += _describe_features(one.conditions.get("features"), here)
        if one.kind == SPEED:
            what = f"its speed with {one.conditions.get('threads')} threads"
        else:
            subject = one.values.get("text") or one.values.get("task")
            count = next(
                one.values[key] for key in ("tokens", "items", "texts") if key in one.values
            )
            what = f"it on {subject} ({count:,}) relative to {one.values.get('beside')}"
        notes.append(f"{version.label}: not shown, under other conditions: {what}; {where}")
    return notes


def _describe_features(features: Sequence[str] | None, here: Sequence[str]) -> str:
    """How a processor's features differ from those here; its arithmetic then differs, too."""
    if features is None:
        return " (its features were not recorded)"
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (("without", sorted(set(here) - set(features))),
                            ("with", sorted(set(features) - set(here))))
        if names
    ]  # fmt: skip
    return f" {' and '.join(parts)}" if parts else ""


def _row_as_dict(row: Row) -> dict[str, Any]:
    found = asdict(row)
    quality = found.pop("quality") or {}
    embeddings = found.pop("embeddings") or {}
    speed = found.pop("speed") or {}
    return {
        **found,
        "kl_divergence": quality.get("kl_divergence"),
        "same_top_token": quality.get("same_top_token"),
        "same_top_token_stderr": quality.get("same_top_token_stderr"),
        "perplexity_ratio": quality.get("perplexity_ratio"),
        "perplexity_ratio_stderr": quality.get("perplexity_ratio_stderr"),
        "tokens": quality.get("tokens"),
        "cosine": embeddings.get("cosine"),
        "rank_correlation": embeddings.get("rank_correlation"),
        "same_nearest": embeddings.get("same_nearest"),
        "load_s": speed.get("load_s"),
        "ttft_s": speed.get("ttft_s"),
        "tokens_per_s": speed.get("tokens_per_s"),
        "texts_per_s": speed.get("texts_per_s"),
        "memory_bytes": speed.get("memory_bytes"),
        "busy_before": speed.get("busy_before"),
    }
