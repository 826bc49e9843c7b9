"""How good a stored model is beside another, kept with the model: measured once, found again.

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
from thrifty.evaluate.run import TOP_K, WINDOW, evaluate
from thrifty.evaluate.windows import digest_file
from thrifty.graphs.arithmetic import ACTIVATION_GROUP, limit_features
from thrifty.types import Family, Format, OnProgress, ignore_progress

QUALITY, EMBEDDINGS, TASK = "quality", "embeddings", "task"
"""Kinds of measurements: of decoders, of encoders, and of decoders' answers."""
HELD_OUT = "wiki"
HELD_OUT_TOKENS = 16_384
HELD_OUT_TEXTS = 1024
"""Passages of held-out text that encoders are judged by."""


@dataclass(frozen=True)
class Named:
    """A text or a task: the file, and what people call it."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class EvaluationSuite:
    """What models are held to: a reference, and what both are tried on."""

    reference: NamedVersion
    text: Named | None = None
    family: Family = Family.DECODER
    """Models of the other are not held to it."""
    tokens: int = HELD_OUT_TOKENS
    """For decoders."""
    texts: int = HELD_OUT_TEXTS
    """For encoders."""
    tasks: tuple[Named, ...] = ()
    items: int | None = None
    """At most so many of each task."""

    @property
    def kind(self) -> str:
        """Of measurements on the text."""
        return EMBEDDINGS if self.family is Family.ENCODER else QUALITY

    @property
    def text_conditions(self) -> dict[str, Any]:
        """What figures on the text depend on."""
        assert self.text is not None
        if self.family is Family.ENCODER:
            much: dict[str, int] = {"texts": self.texts}
        else:
            much = {"tokens": self.tokens, "top_k": TOP_K}
        return {
            "reference": self.reference.artifact, "text_sha256": self.text.sha256, **much,
            "window": WINDOW, **describe_arithmetic(),
        }  # fmt: skip

    def task_conditions(self, task: Named) -> dict[str, Any]:
        """What figures on a task depend on."""
        return {
            "reference": self.reference.artifact, "task": task.name, "task_sha256": task.sha256,
            "items": self.items, **describe_arithmetic(),
        }  # fmt: skip


def describe_arithmetic() -> dict[str, Any]:
    """What computes here, as far as figures of quality depend on it."""
    machine = detect_machine()
    return {
        "engine": describe_backend(DEFAULT_BACKEND), "processor": machine.processor,
        "features": sorted(limit_features(machine.features)), "activation_group": ACTIVATION_GROUP,
    }  # fmt: skip


def find_text(
    name: str, data: Path, store: Store, on_progress: OnProgress = ignore_progress
) -> Named:
    """The file `name`, or the set of that name, fetched where it is not here. Blocks.

    Raises `EvaluationError` where there is neither.
    """
    problem = describe_missing(name)
    if problem is not None:
        raise EvaluationError(f"{name!r} {problem}")
    if is_harness_task(name):
        return Named(name, Path(name), f"lm_eval {package_version('lm_eval')}")
    if name in SETS:
        path = fetch_set(name, data, store, on_progress)
    else:
        path = Path(name).expanduser().resolve()
    return Named(path.stem, path, digest_file(path))


def describe_missing(name: str) -> str | None:
    """What is wrong with `name`; None where it is a set, a file that is here, or a task that can be had."""
    if is_harness_task(name):
        if find_spec("lm_eval") is None:
            return "needs lm-evaluation-harness: pip install 'thrifty[lm-eval]'"
        return None
    if name in SETS or Path(name).expanduser().is_file():
        return None
    return f"is no file here, and no set of data; there are {', '.join(sorted(SETS))}"


def measure_quality(
    store: Store,
    folder: Path,
    version: NamedVersion,
    artifact: Artifact,
    suite: EvaluationSuite,
    on_progress: OnProgress = ignore_progress,
) -> list[Measurement]:
    """The figures of a stored model under `suite`, measured where they are not recorded yet,
    and recorded. `folder` keeps what evaluations leave. Blocks. Raises `EvaluationError`.
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
        measured = evaluate(
            version.label, reference.label, store=store, folder=folder,
            text=text.path if text is not None and lacks_text else None,
            tasks=[str(task.path) for task in missing],
            max_tokens=None if encoder else suite.tokens,
            max_items=suite.texts if encoder else suite.items, on_progress=on_progress,
        )  # fmt: skip
        common = {"beside": reference.label, "form": describe_form(artifact)}
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


def _key_of(task: Named) -> str:
    return task.name if is_harness_task(task.name) else task.path.stem


def describe_form(artifact: Artifact) -> str:
    """The form in which a stored model is run: checkpoints get 16-bit weights."""
    if artifact.description.format is Format.OPENVINO:
        return artifact.description.weights or "f16"
    return "f16"


def find_root(store: Store, version: NamedVersion) -> NamedVersion:
    """What `version` was made from in the end, as far as that is still stored."""
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
