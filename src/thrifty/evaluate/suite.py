"""The quality of stored models relative to a reference, recorded with each model and reused.

A measurement records what it was made on: the reference, the text and how much of it, the engine,
the processor and its features (8-bit arithmetic differs from one to the next).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.data import SETS, fetch_set
from thrifty.engines.machine import detect_machine
from thrifty.errors import EvaluationError
from thrifty.evaluate.backends import DEFAULT_BACKEND, describe_backend
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.run import TOP_K, WINDOW, EvaluationOptions, evaluate
from thrifty.evaluate.windows import digest_file
from thrifty.graphs.arithmetic import ACTIVATION_GROUP, limit_features
from thrifty.types import Family, Format, OnProgress, ignore_progress

QUALITY, EMBEDDINGS, TASK = "quality", "embeddings", "task"
"""Kinds of measurements: decoders on text, encoders on text, decoders on tasks."""
HELD_OUT = "wiki"
HELD_OUT_TOKENS = 16_384
HELD_OUT_TEXTS = 1024
"""Passages of held-out text that encoders are evaluated on."""


@dataclass(frozen=True)
class DataFile:
    """A text, or the questions of a task: the file, and the name that reports use."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class EvaluationSuite:
    """A reference, and the data on which models are compared with it."""

    reference: NamedVersion
    text: DataFile | None = None
    family: Family = Family.DECODER
    """The reference's. Models of the other family are not evaluated."""
    tokens: int = HELD_OUT_TOKENS
    """Tokens of the text, for decoders."""
    texts: int = HELD_OUT_TEXTS
    """Passages of the text, for encoders."""
    tasks: tuple[DataFile, ...] = ()
    items: int | None = None
    """The most items of each task."""

    @property
    def kind(self) -> str:
        """The kind of measurements on the text."""
        return EMBEDDINGS if self.family is Family.ENCODER else QUALITY

    @property
    def text_conditions(self) -> dict[str, Any]:
        """The conditions of measurements on the text."""
        assert self.text is not None
        if self.family is Family.ENCODER:
            much: dict[str, int] = {"texts": self.texts}
        else:
            much = {"tokens": self.tokens, "top_k": TOP_K}
        return {
            "reference": self.reference.artifact, "text_sha256": self.text.sha256, **much,
            "window": WINDOW, **describe_arithmetic(),
        }  # fmt: skip

    def task_conditions(self, task: DataFile) -> dict[str, Any]:
        """The conditions of measurements on a task."""
        return {
            "reference": self.reference.artifact, "task": task.name, "task_sha256": task.sha256,
            "items": self.items, **describe_arithmetic(),
        }  # fmt: skip


def describe_arithmetic() -> dict[str, Any]:
    """The conditions that describe how models compute on this machine."""
    machine = detect_machine()
    return {
        "engine": describe_backend(DEFAULT_BACKEND), "processor": machine.processor,
        "features": sorted(limit_features(machine.features)), "activation_group": ACTIVATION_GROUP,
    }  # fmt: skip


def find_data(
    name: str, data: Path, store: Store, on_progress: OnProgress = ignore_progress
) -> DataFile:
    """The file `name`, or the data set `name`, fetched if it is not here. Blocks.

    Raises `EvaluationError` if there is neither.
    """
    problem = describe_missing(name)
    if problem is not None:
        raise EvaluationError(f"{name!r} {problem}")
    if is_harness_task(name):
        return DataFile(name, Path(name), f"lm_eval {package_version('lm_eval')}")
    if name in SETS:
        path = fetch_set(name, data, store, on_progress)
    else:
        path = Path(name).expanduser().resolve()
    return DataFile(path.stem, path, digest_file(path))


def describe_missing(name: str) -> str | None:
    """What is wrong with `name`; None for a data set, an existing file or an available task."""
    if is_harness_task(name):
        if find_spec("lm_eval") is None:
            return "needs lm-evaluation-harness: pip install 'thrifty[lm-eval]'"
        return None
    if name in SETS or Path(name).expanduser().is_file():
        return None
    return f"is neither a file nor a data set; data sets are {', '.join(sorted(SETS))}"


def measure_quality(
    store: Store,
    folder: Path,
    version: NamedVersion,
    artifact: Artifact,
    suite: EvaluationSuite,
    on_progress: OnProgress = ignore_progress,
) -> list[Measurement]:
    """A stored model's measurements under `suite`; measures and records those that are missing.

    `folder` stores intermediate results. Blocks. Raises `EvaluationError`.
    """
    if artifact.description.family is not suite.family:
        return []
    encoder = suite.family is Family.ENCODER
    recorded = store.read_measurements(artifact.id)
    text = suite.text
    found: dict[str, Measurement | None] = {}
    if text is not None:
        found[suite.kind] = find_measurement(recorded, suite.kind, suite.text_conditions)
    for task in suite.tasks:
        found[task.name] = find_measurement(recorded, TASK, suite.task_conditions(task))
    missing = [task for task in suite.tasks if found[task.name] is None]
    lacks_text = text is not None and found[suite.kind] is None
    if missing or lacks_text:
        reference = suite.reference
        options = EvaluationOptions(
            text=text.path if text is not None and lacks_text else None,
            tasks=[str(task.path) for task in missing],
            max_tokens=None if encoder else suite.tokens,
            max_items=suite.texts if encoder else suite.items,
        )
        measured = evaluate(
            version.label, reference.label, options, store=store, folder=folder,
            on_progress=on_progress,
        )  # fmt: skip
        common = {"beside": reference.label, "form": describe_weights(artifact)}
        on_text = measured.embeddings if encoder else measured.divergence
        if on_text is not None:
            assert text is not None
            values = {**common, "text": text.name, "path": str(text.path), **asdict(on_text)}
            found[suite.kind] = store.record_measurement(
                artifact.id, suite.kind, suite.text_conditions, values
            )
        scores = measured.as_dict().get("tasks", {})
        for task in missing:
            values = {
                **common, "task": task.name, "path": str(task.path), **scores[_key_of(task)],
            }  # fmt: skip
            found[task.name] = store.record_measurement(
                artifact.id, TASK, suite.task_conditions(task), values
            )
    return [one for one in found.values() if one is not None]


def _key_of(task: DataFile) -> str:
    return task.name if is_harness_task(task.name) else task.path.stem


def describe_weights(artifact: Artifact) -> str:
    """The weight format in which a stored model runs; checkpoints get 16-bit weights."""
    if artifact.description.format is Format.OPENVINO:
        return artifact.description.weights or "f16"
    return "f16"


def find_root(store: Store, version: NamedVersion) -> NamedVersion:
    """The model at the start of the lineage of `version`, as far as it is still stored."""
    known = store.versions()
    seen = {version.artifact}
    while version.lineage.parents:
        parent = version.lineage.parents[0]
        candidates: Sequence[NamedVersion] = [v for v in known if v.artifact == parent.id]
        if not candidates or parent.id in seen:
            break
        version = next((v for v in candidates if v.label == parent.name), candidates[-1])
        seen.add(version.artifact)
    return version
