"""Models side by side, from what is recorded of them and what is measured now.

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
    HELD_OUT,
    HELD_OUT_TEXTS,
    HELD_OUT_TOKENS,
    TASK,
    EvaluationSuite,
    Named,
    describe_arithmetic,
    describe_form,
    find_root,
    find_text,
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
    """How its weights are when it is run: `f16`, `int8`, `int4`."""
    parameters: int
    size_bytes: int | None
    """Of all files, in the form that is run."""
    bits_per_weight: float | None
    """Of all weights, the table and scales included."""
    quality: dict[str, Any] | None
    """A decoder's."""
    embeddings: dict[str, Any] | None
    """An encoder's."""
    tasks: dict[str, dict[str, Any]]
    speed: dict[str, Any] | None
    lineage: list[LineageStep]
    """From the model itself to what it was made from first."""


@dataclass(frozen=True)
class Comparison:
    """All of them, and what they were measured on."""

    reference: str
    family: Family
    """Of the reference; nothing is said of how good models of the other are."""
    rows: list[Row]
    text: dict[str, Any]
    """The text's name, and what figures on it depend on."""
    tasks: list[str]
    speed: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As `thrifty compare --json` tells it."""
        return {
            "reference": self.reference,
            "text": self.text,
            "speed": self.speed,
            "models": [_row_as_dict(row) for row in self.rows],
            "notes": self.notes,
        }


def compare(
    models: Sequence[str],
    *,
    store: Store,
    home: Home,
    machine: Machine,
    reference: str | None = None,
    text: str | None = None,
    tokens: int | None = None,
    tasks: Sequence[str] = (),
    items: int | None = None,
    measure: bool = True,
    speed_again: bool = False,
    on_model: Callable[[str], None] = lambda label: None,
    on_progress: OnProgress = ignore_progress,
) -> Comparison:
    """Put `models` side by side. What is not recorded is measured, unless `measure` is off. Blocks.

    Args:
        models: Stored names, sources, or paths.
        store: Where models are kept.
        home: Where texts and references are kept.
        machine: What this machine is.
        reference: What they are held to. Default: what the first was made from in the end.
        text: Held-out text. Default: what most of them were measured on; `wiki` where none was.
        tokens: How much of it.
        tasks: Questions. Default: those that any of them was asked.
        items: At most so many of each.
        measure: Whether to measure what is missing.
        speed_again: Whether to measure speeds that are recorded, too: the machine may have been busy.
        on_model: Told of each model that is measured.
        on_progress: Told of every step.
    """
    found: list[Model] = []
    notes: list[str] = []
    for name in models:
        model = fetch_model(store, name, on_progress=on_progress)
        same = [known for known, artifact in found if artifact.id == model[1].id]
        if same:
            notes.append(f"{model[0].label} is the same model as {same[0].label}")
        else:
            found.append(model)
    if reference is not None:
        root = fetch_model(store, reference, on_progress=on_progress)[0]
    else:
        root = find_root(store, found[0][0])
    family = store.load(root.artifact).description.family
    if family is Family.ENCODER and (tasks or tokens is not None):
        raise EvaluationError(
            f"{root.label} is an encoder: it answers no tasks, and is judged by {HELD_OUT_TEXTS:,} passages"
        )
    suite = _choose_suite(
        root, family, found, text, tokens, tasks, items, measure, store, home, on_progress
    )
    rows = []
    for version, artifact in found:
        if measure:
            on_model(version.label)
        rows.append(
            _make_row(version, artifact, suite, measure, speed_again, store, home, machine, notes, on_progress)
        )  # fmt: skip
        notes += _tell_of_others(version, artifact, suite, store, machine)
    conditions = {"name": suite.text.name, **suite.text_conditions} if suite.text else {}
    speed = make_conditions(choose_engine("auto", found[0][1]), machine)
    return Comparison(
        root.label,
        suite.family,
        rows,
        conditions,
        [task.name for task in suite.tasks],
        speed,
        notes,
    )


def _choose_suite(
    root: NamedVersion,
    family: Family,
    found: Sequence[Model],
    text: str | None,
    tokens: int | None,
    tasks: Sequence[str],
    items: int | None,
    measure: bool,
    store: Store,
    home: Home,
    on_progress: OnProgress,
) -> EvaluationSuite:
    """As it is asked for; else what most of the models were measured on before."""
    make_private_folder(home.data)
    here = describe_arithmetic().items()
    recorded = [
        one
        for _, artifact in found
        for one in store.read_measurements(artifact.id)
        if one.conditions.get("reference") == root.artifact and here <= one.conditions.items()
    ]
    kind = EvaluationSuite(root, family=family).kind
    texts = [one for one in recorded if one.kind == kind]
    chosen = find_text(text, home.data, store, on_progress) if text is not None else None
    if chosen is not None:
        texts = [one for one in texts if one.conditions["text_sha256"] == chosen.sha256]
    if tokens is not None:
        texts = [one for one in texts if one.conditions["tokens"] == tokens]
    usual_text, usual = _most_usual(texts)
    if usual is not None and family is Family.DECODER:
        tokens = int(usual.conditions["tokens"])
    chosen = chosen or usual_text
    if chosen is None and measure:
        chosen = find_text(HELD_OUT, home.data, store, on_progress)
    questions = [find_text(name, home.data, store, on_progress) for name in tasks]
    asked = [one for one in recorded if one.kind == TASK]
    if questions:
        named = {task.sha256 for task in questions}
        asked = [one for one in asked if one.conditions["task_sha256"] in named]
    usual_task = _most_usual(asked)[1]
    if items is None and usual_task is not None:
        items = usual_task.conditions["items"]
    if not questions:
        same = [one for one in asked if one.conditions["items"] == items]
        questions = list({one.values["task"]: _named(one, "task") for one in same}.values())
    return EvaluationSuite(
        root, chosen, family, tokens=tokens or HELD_OUT_TOKENS, tasks=tuple(questions), items=items
    )


def _most_usual(recorded: Sequence[Measurement]) -> tuple[Named | None, Measurement | None]:
    """The text, or task, that most figures are of; of several, the one measured last."""
    if not recorded:
        return None, None
    counts = Counter(str(sorted(one.conditions.items(), key=str)) for one in recorded)
    best = max(
        recorded,
        key=lambda one: (counts[str(sorted(one.conditions.items(), key=str))], one.measured),
    )
    return _named(best, "task" if best.kind == TASK else "text"), best


def _named(one: Measurement, kind: str) -> Named:
    return Named(one.values[kind], Path(one.values["path"]), one.conditions[f"{kind}_sha256"])


def _make_row(
    version: NamedVersion,
    artifact: Artifact,
    suite: EvaluationSuite,
    measure: bool,
    speed_again: bool,
    store: Store,
    home: Home,
    machine: Machine,
    notes: list[str],
    on_progress: OnProgress,
) -> Row:
    quality: Measurement | None = None
    tasks: dict[str, dict[str, Any]] = {}
    comparable = artifact.description.family is suite.family
    if measure and comparable:
        try:
            _require_files(suite)
            measure_quality(store, home.evaluations, version, artifact, suite, on_progress)
        except EvaluationError as error:
            notes.append(f"{version.label}: its quality was not measured: {error}")
    as_is = _is_made_gguf(version, artifact)
    if as_is:
        notes.append(
            f"{version.label} is shown as the file is; its quality is that of its weights dequantized, and "
            "its speed is not measured: the engine here does not run GGUF's forms as they are"
        )
    if measure and not as_is:
        try:
            measure_speed(store, home, version, artifact, machine, on_progress, again=speed_again)
        except (BenchError, FleetError, SpecError) as error:
            notes.append(f"{version.label}: its speed was not measured: {error}")
    recorded = store.read_measurements(artifact.id)
    if suite.text is not None and comparable:
        quality = find_measurement(recorded, suite.kind, suite.text_conditions)
    encoder = suite.family is Family.ENCODER
    for task in suite.tasks:
        known = find_measurement(recorded, TASK, suite.task_conditions(task))
        if known is not None:
            tasks[task.name] = known.values
    speed = None if as_is else find_speed(store, artifact, machine)
    run = artifact if as_is else _find_run(store, artifact)
    if run is not None and run.id != artifact.id and artifact.description.format is Format.GGUF:
        notes.append(
            f"{version.label} is a GGUF of {artifact.description.weights} "
            f"({format_bytes(artifact.size_bytes)}); it is run, and shown, with its weights "
            "dequantized to 16 bits"
        )
    return Row(
        version.label,
        artifact.id,
        artifact.description.weights if as_is else describe_form(artifact),
        artifact.description.parameters,
        run.size_bytes if run is not None else None,
        _count_bits(run),
        quality.values if quality and not encoder else None,
        quality.values if quality and encoder else None,
        tasks,
        speed.values if speed else None,
        describe_lineage(store, version),
    )


def _require_files(suite: EvaluationSuite) -> None:
    """Texts that figures are of may be gone, or have changed since."""
    files = [one for one in suite.tasks if not is_harness_task(one.name)]
    for one in (suite.text, *files):
        if one is not None and (not one.path.exists() or digest_file(one.path) != one.sha256):
            raise EvaluationError(
                f"{one.path} is no longer what others were measured on; name text with --text, and "
                "questions with --task"
            )


def _is_made_gguf(version: NamedVersion, artifact: Artifact) -> bool:
    """Whether it was quantized for llama.cpp. A GGUF that a source gave is a checkpoint to begin with."""
    return artifact.description.format is Format.GGUF and bool(version.lineage.parents)


def _find_run(store: Store, artifact: Artifact) -> Artifact | None:
    """The files that are run: those of the checkpoint with 16-bit weights, if they are made yet."""
    if artifact.description.format is Format.OPENVINO:
        return artifact
    return choose_engine("auto", artifact).find_prepared(artifact, "none", store)


def _count_bits(run: Artifact | None) -> float | None:
    if run is None or not run.description.parameters:
        return None
    weights = [
        entry.size
        for entry in run.files
        if entry.path == "openvino_model.bin" or entry.path.endswith(".gguf")
    ]
    return 8 * sum(weights) / run.description.parameters if weights else None


def _tell_of_others(
    version: NamedVersion,
    artifact: Artifact,
    suite: EvaluationSuite,
    store: Store,
    machine: Machine,
) -> list[str]:
    """Figures that are recorded and not in the table, because they were measured otherwise."""
    shown: list[dict[str, Any]] = [suite.task_conditions(task) for task in suite.tasks]
    if suite.text is not None:
        shown.append(suite.text_conditions)
    shown.append(make_conditions(choose_engine("auto", artifact), machine))
    here = make_conditions(choose_engine("auto", artifact), machine)["features"]
    told = []
    for one in store.read_measurements(artifact.id):
        if one.conditions in shown:
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
            what = f"it on {subject} ({count:,}) beside {one.values.get('beside')}"
        told.append(f"{version.label}: not shown, measured otherwise: {what}; {where}")
    return told


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
