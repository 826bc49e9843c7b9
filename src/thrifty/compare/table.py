"""Models side by side, from recorded measurements and new ones.

One table has one suite: one reference, one amount of the same domains, one engine and one processor
with its features. A model's worst domain stands for it. Measurements under other conditions are not
mixed in; notes beside the table name them and say how the processors differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.compare.answers import ask, find_recorded, make_request
from thrifty.compare.lineage import LineageStep, describe_lineage
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import BenchError, EvaluationError, FleetError, SpecError
from thrifty.evaluate.domains import find_worst_of
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.run import DOMAIN_TEXTS, DOMAIN_TOKENS
from thrifty.evaluate.suite import (
    EMBEDDINGS,
    QUALITY,
    TASK,
    DataFile,
    EvaluationSuite,
    FindLog,
    describe_arithmetic,
    describe_weights,
    find_data,
    find_domains,
    find_root,
    measure_quality,
    name_default_domains,
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
    domains: dict[str, dict[str, Any]]
    """What was measured on each domain, by its name."""
    tasks: dict[str, dict[str, Any]]
    speed: dict[str, Any] | None
    lineage: list[LineageStep]
    """From the model itself back to its source."""
    answers: dict[str, Any] | None = None
    """For chat models: their answers beside the reference's."""

    @property
    def worst(self) -> str | None:
        """The name of the worst domain."""
        return find_worst_of(self.domains)

    @property
    def quality(self) -> dict[str, Any] | None:
        """What was measured on the worst domain."""
        return None if self.worst is None else self.domains[self.worst]


@dataclass(frozen=True)
class Comparison:
    """All rows, and the conditions of their measurements."""

    reference: str
    family: Family
    """The reference's. Models of the other family have no quality here."""
    rows: list[Row]
    domains: list[dict[str, Any]]
    """The name of each domain, and the conditions of measurements on it."""
    tasks: list[str]
    speed: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty compare --json`."""
        return {
            "reference": self.reference,
            "domains": self.domains,
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
    domains: Sequence[str] = ()
    """Domains. Default: those that most of them were measured on; else
    those of `suite.name_default_domains`."""
    tokens: int | None = None
    """How many tokens of each domain."""
    tasks: Sequence[str] = ()
    """Questions. Default: those that any of them was measured on."""
    items: int | None = None
    """The most items of each task."""
    measure: bool = True
    """Whether to measure what is missing."""
    speed_again: bool = False
    """Whether to measure recorded speeds again, because the machine may have been busy."""
    answers: bool = True
    """Whether to ask chat models questions."""


@dataclass(frozen=True)
class _Run:
    """What the steps of one comparison share."""

    request: ComparisonRequest
    store: Store
    home: Home
    machine: Machine
    on_progress: OnProgress
    find_log: FindLog | None
    notes: list[str] = field(default_factory=list)


def compare(
    request: ComparisonRequest,
    *,
    store: Store,
    home: Home,
    machine: Machine,
    on_model: Callable[[str], None] = lambda label: None,
    on_progress: OnProgress = ignore_progress,
    find_log: FindLog | None = None,
) -> Comparison:
    """Compare models, and measure what is not recorded yet. Blocks.

    `home` stores texts and references; `on_model` is called with each model that is measured;
    `find_log` finds domains of the request log. Raises `ThriftyError` and its subclasses.
    """
    run = _Run(request, store, home, machine, on_progress, find_log)
    models = _fetch_models(run)
    if request.reference is not None:
        root = fetch_model(store, request.reference, on_progress=on_progress)[0]
    else:
        root = find_root(store, models[0][0])
    family = store.load(root.artifact).description.family
    if family is Family.ENCODER and (request.tasks or request.tokens is not None):
        raise EvaluationError(
            f"{root.label} is an encoder: it answers no tasks, and is evaluated on "
            f"{DOMAIN_TEXTS:,} texts of each domain"
        )
    suite = _choose_suite(run, root, family, models)
    asking = None
    if request.answers and request.measure:
        asking = make_request(store, home, root, machine, on_progress)
    rows = []
    for model in models:
        if request.measure:
            on_model(model[0].label)
        if asking is not None and model[1].description.family is family:
            problem = ask(asking, model, store, home, on_progress)
            run.notes.extend([problem] if problem else [])
        row = _make_row(run, model, suite)
        answers = find_recorded(store, model[1], root, asking) if request.answers else None
        rows.append(replace(row, answers=answers))
        run.notes.extend(_describe_others(run, model, suite))
    domains = [{"name": one.name, **suite.domain_conditions(one)} for one in suite.domains]
    speed = make_conditions(choose_engine("auto", models[0][1]), machine)
    tasks = [task.name for task in suite.tasks]
    return Comparison(root.label, suite.family, rows, domains, tasks, speed, run.notes)


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
    here = describe_arithmetic().items()
    recorded = [
        one
        for _, artifact in models
        for one in run.store.read_measurements(artifact.id)
        if one.conditions.get("reference") == root.artifact and here <= one.conditions.items()
    ]
    domains, tokens = _choose_domains(run, root, family, recorded)
    tasks, items = _choose_tasks(run, recorded)
    return EvaluationSuite(root, domains, family, tokens=tokens, tasks=tasks, items=items)


def _choose_domains(
    run: _Run, root: NamedVersion, family: Family, recorded: Sequence[Measurement]
) -> tuple[tuple[DataFile, ...], int]:
    """The domains, and how many tokens of each."""
    request, data = run.request, make_private_folder(run.home.data)
    decoder = family is Family.DECODER
    checksum = "domain_sha256" if decoder else "text_sha256"
    kind = EvaluationSuite(root, family=family).kind
    # Those of earlier releases have other conditions.
    known = [one for one in recorded if one.kind == kind and "domain" in one.values]
    domains = find_domains(request.domains, data, run.store, run.on_progress, run.find_log)
    if domains:
        known = [
            one for one in known if one.conditions[checksum] in {file.sha256 for file in domains}
        ]
    tokens = request.tokens
    if decoder and tokens is None:
        amounts = Counter(int(one.conditions["tokens"]) for one in known)
        tokens = amounts.most_common(1)[0][0] if amounts else DOMAIN_TOKENS
    if decoder:
        known = [one for one in known if one.conditions["tokens"] == tokens]
    if not domains:
        counts = Counter(one.conditions[checksum] for one in known)
        files = {
            one.conditions[checksum]: _read_data_file(one, "domain", checksum) for one in known
        }
        most = max(counts.values(), default=0)
        domains = tuple(files[sha256] for sha256, count in counts.items() if count == most)
    if not domains and request.measure:
        names = name_default_domains(run.store, run.store.load(root.artifact))
        domains = find_domains(names, data, run.store, run.on_progress)
    return domains, tokens or DOMAIN_TOKENS


def _choose_tasks(
    run: _Run, recorded: Sequence[Measurement]
) -> tuple[tuple[DataFile, ...], int | None]:
    """The tasks, and how many items of each."""
    request, items = run.request, run.request.items
    tasks = [find_data(name, run.home.data, run.store, run.on_progress) for name in request.tasks]
    asked = [one for one in recorded if one.kind == TASK]
    if tasks:
        checksums = {task.sha256 for task in tasks}
        asked = [one for one in asked if one.conditions["task_sha256"] in checksums]
    if items is None and asked:
        items = _find_most_usual(asked).conditions["items"]
    if not tasks:
        same = [one for one in asked if one.conditions["items"] == items]
        files = [_read_data_file(one, "task", "task_sha256") for one in same]
        tasks = list({file.name: file for file in files}.values())
    return tuple(tasks), items


def _find_most_usual(recorded: Sequence[Measurement]) -> Measurement:
    """One under the conditions of most measurements; of several, the latest."""
    counts = Counter(str(sorted(one.conditions.items(), key=str)) for one in recorded)
    return max(
        recorded,
        key=lambda one: (counts[str(sorted(one.conditions.items(), key=str))], one.measured),
    )


def _read_data_file(one: Measurement, name: str, checksum: str) -> DataFile:
    return DataFile(one.values[name], Path(one.values["path"]), one.conditions[checksum])


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
    found: dict[str, dict[str, Any]] = {}
    for domain in suite.domains if comparable else ():
        measured = find_measurement(recorded, suite.kind, suite.domain_conditions(domain))
        if measured is not None:
            found[domain.name] = measured.values
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
    return Row(
        version.label,
        artifact.id,
        artifact.description.weights if quantized_gguf else describe_weights(artifact),
        artifact.description.parameters,
        served.size_bytes if served is not None else None,
        _count_bits(served),
        found,
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
    for one in (*suite.domains, *files):
        if not one.path.exists() or digest_file(one.path) != one.sha256:
            raise EvaluationError(
                f"{one.path} has changed since other models were measured on it; name domains with "
                "--domain and tasks with --task"
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
    shown += [suite.domain_conditions(domain) for domain in suite.domains]
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
            keys = ("domain", "text", "task")  # before domains, decoders were measured on a text
            subject = next((one.values[key] for key in keys if key in one.values), None)
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
    quality = row.quality or {}
    speed = found.pop("speed") or {}
    return {
        **found,
        "worst": row.worst,
        "kl_divergence": quality.get("kl_divergence"),
        "same_top_token": quality.get("same_top_token"),
        "same_top_token_stderr": quality.get("same_top_token_stderr"),
        "perplexity_ratio": quality.get("perplexity_ratio"),
        "perplexity_ratio_stderr": quality.get("perplexity_ratio_stderr"),
        "tokens": quality.get("tokens"),
        "cosine": quality.get("cosine"),
        "rank_correlation": quality.get("rank_correlation"),
        "same_nearest": quality.get("same_nearest"),
        "load_s": speed.get("load_s"),
        "ttft_s": speed.get("ttft_s"),
        "tokens_per_s": speed.get("tokens_per_s"),
        "texts_per_s": speed.get("texts_per_s"),
        "memory_bytes": speed.get("memory_bytes"),
        "busy_before": speed.get("busy_before"),
    }
