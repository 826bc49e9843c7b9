"""The quality of stored models relative to a reference, recorded with each model and reused.

Models are measured on domains, one measurement for each. A measurement records what it was made on:
the reference, the data and how much of it, the engine, the processor and its features (8-bit
arithmetic differs from one to the next).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.data import SETS, fetch_set
from thrifty.engines.machine import detect_machine
from thrifty.errors import EvaluationError
from thrifty.evaluate.backends import DEFAULT_BACKEND, describe_backend
from thrifty.evaluate.divergence import Divergence
from thrifty.evaluate.domains import Domain, find_worst_of
from thrifty.evaluate.embeddings import EmbeddingAgreement
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.open_model import has_chat_template
from thrifty.evaluate.run import (
    DOMAIN_TEXTS,
    DOMAIN_TOKENS,
    TOP_K,
    WINDOW,
    EvaluationOptions,
    evaluate,
)
from thrifty.evaluate.windows import digest_file
from thrifty.graphs.arithmetic import ACTIVATION_GROUP, limit_features
from thrifty.types import Family, Format, OnProgress, ignore_progress

QUALITY, EMBEDDINGS, TASK = "quality", "embeddings", "task"
"""Kinds of measurements: decoders on a domain, encoders on a domain, decoders on tasks."""
DOMAINS = ("chat", "encyclopedia", "web", "code", "questions")
"""The data sets that chat models are evaluated on by default."""
CONVERSATIONS = frozenset({"chat", "questions"})
"""Those of them that need a chat template."""
ENCODER_DOMAINS = ("wiki", "pairs")
"""The data sets that encoders are evaluated on by default: passages, and pairs of texts."""
LOG = "log:"
"""Begins the name of a deployment whose recorded conversations are a domain."""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})=(.+)", re.DOTALL)

FindLog = Callable[[str], Path]
"""Gives the file with a deployment's recorded conversations. Raises `EvaluationError`."""


@dataclass(frozen=True)
class DataFile:
    """A text, a domain, or the questions of a task: the file, and the name that reports use."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class EvaluationSuite:
    """A reference, and the data on which models are compared with it."""

    reference: NamedVersion
    domains: tuple[DataFile, ...] = ()
    """What models are compared on, one by one."""
    family: Family = Family.DECODER
    """The reference's. Models of the other family are not evaluated."""
    tokens: int = DOMAIN_TOKENS
    """Tokens of each domain, for decoders."""
    texts: int = DOMAIN_TEXTS
    """Texts of each domain, for encoders."""
    tasks: tuple[DataFile, ...] = ()
    items: int | None = None
    """The most items of each task."""

    @property
    def kind(self) -> str:
        """The kind of measurements on domains."""
        return EMBEDDINGS if self.family is Family.ENCODER else QUALITY

    def domain_conditions(self, domain: DataFile) -> dict[str, Any]:
        """The conditions of measurements on a domain."""
        if self.family is Family.ENCODER:
            much: dict[str, Any] = {"text_sha256": domain.sha256, "texts": self.texts}
        else:
            much = {"domain_sha256": domain.sha256, "tokens": self.tokens, "top_k": TOP_K}
        return {
            "reference": self.reference.artifact,
            **much,
            "window": WINDOW,
            **describe_arithmetic(),
        }

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


def name_default_domains(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """What models are evaluated on if nothing is named, for a reference."""
    if artifact.description.family is Family.ENCODER:
        return ENCODER_DOMAINS
    if has_chat_template(store, artifact):
        return DOMAINS
    return tuple(name for name in DOMAINS if name not in CONVERSATIONS)


def find_domain(
    named: str,
    data: Path,
    store: Store,
    on_progress: OnProgress = ignore_progress,
    find_log: FindLog | None = None,
) -> DataFile:
    """The domain that `named` says: a set, a file, or `NAME=` and a set, a file or `log:` with a
    deployment. Blocks. Raises `EvaluationError`.
    """
    name, source = split_domain(named)
    if source.startswith(LOG):
        if find_log is None:
            raise EvaluationError(
                f"{named!r}: the request log can be a domain of 'thrifty evaluate' and 'thrifty "
                "compare' only; name a file"
            )
        path = find_log(source.removeprefix(LOG))
        return DataFile(name, path, digest_file(path))
    problem = describe_no_domain(named)
    if problem is not None:
        raise EvaluationError(f"{named!r} {problem}")
    return replace(find_data(source, data, store, on_progress), name=name)


def find_domains(
    named: Sequence[str],
    data: Path,
    store: Store,
    on_progress: OnProgress = ignore_progress,
    find_log: FindLog | None = None,
) -> tuple[DataFile, ...]:
    """`find_domain` for each. Raises `EvaluationError`, also if two have the same name."""
    found = tuple(find_domain(one, data, store, on_progress, find_log) for one in named)
    names = [domain.name for domain in found]
    if len(set(names)) < len(names):
        raise EvaluationError(
            f"two domains have the same name ({', '.join(names)}); name them apart (NAME=FILE)"
        )
    return found


def split_domain(named: str) -> tuple[str, str]:
    """The name of a domain, and the set or the file that it is."""
    found = _NAMED.fullmatch(named)
    if found is not None:
        return found[1], found[2]
    return (named if named in SETS else Path(named).stem), named


def describe_no_domain(named: str) -> str | None:
    """What is wrong with `named` as a domain; None for a set, or an existing file."""
    _, source = split_domain(named)
    if is_harness_task(source) or (source in SETS and SETS[source].kind == "questions"):
        return "holds questions, not text; name it as a task"
    return None if source.startswith(LOG) else describe_missing(source)


def find_worst_domain(measured: Iterable[Measurement]) -> Measurement | None:
    """Of a model's measurements, the one on its worst domain; None if there are none on domains."""
    # Earlier releases measured on one text, without the name of a domain.
    found = {
        one.values["domain"]: one
        for one in measured
        if one.kind in (QUALITY, EMBEDDINGS) and "domain" in one.values
    }
    worst = find_worst_of({name: one.values for name, one in found.items()})
    return None if worst is None else found[worst]


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
    on_domains = {
        domain: find_measurement(recorded, suite.kind, suite.domain_conditions(domain))
        for domain in suite.domains
    }
    on_tasks = {
        task: find_measurement(recorded, TASK, suite.task_conditions(task)) for task in suite.tasks
    }
    domains = [domain for domain, known in on_domains.items() if known is None]
    tasks = [task for task, known in on_tasks.items() if known is None]
    common = {"beside": suite.reference.label, "form": describe_weights(artifact)}

    def record(domain: DataFile, found: EmbeddingAgreement | Divergence) -> None:
        values = {**common, "domain": domain.name, "path": str(domain.path), **asdict(found)}
        on_domains[domain] = store.record_measurement(
            artifact.id, suite.kind, suite.domain_conditions(domain), values
        )

    if domains or tasks:
        options = EvaluationOptions(
            domains=[Domain(domain.name, domain.path) for domain in domains],
            tasks=[str(task.path) for task in tasks],
            domain_tokens=suite.tokens,
            max_items=suite.texts if encoder else suite.items,
        )
        measured = evaluate(
            version.label, suite.reference.label, options, store=store, folder=folder,
            on_progress=on_progress,
        )  # fmt: skip
        for domain in domains:
            given = measured.agreements if encoder else measured.domains
            record(domain, given[domain.name])
        for task in tasks:
            scores = measured.tasks[_key_of(task)].as_dict()
            values = {**common, "task": task.name, "path": str(task.path), **scores}
            on_tasks[task] = store.record_measurement(
                artifact.id, TASK, suite.task_conditions(task), values
            )
    return [one for one in (*on_domains.values(), *on_tasks.values()) if one is not None]


def _key_of(task: DataFile) -> str:
    return task.name if is_harness_task(task.name) else task.path.stem


def describe_weights(artifact: Artifact) -> str:
    """The weight format in which a stored model runs; checkpoints get 16-bit weights."""
    if artifact.description.format is Format.OPENVINO:
        return artifact.description.weights or "f16"
    return "f16"


def find_root(store: Store, version: NamedVersion) -> NamedVersion:
    """The model at the start of the lineage of `version`, as far as it is still stored."""
    *_, root = walk_lineage(store, version)
    return root
