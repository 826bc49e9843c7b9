"""From a checkpoint to what is served: pruned, then distilled, then quantized, each stage optional.

Every stage is a model in the store with its lineage and its measurements. A stage that was made before
from the same model by the same recipe is found there. So a pipeline that was killed goes on where it
stopped, and one that is done takes no time. Other modules make the stages; this one decides which there
are and in which order, what they learn from and what they are evaluated on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.calibration import check_no_overlap
from thrifty.data import SETS
from thrifty.engines.base import choose_runnable, find_scheme_fault
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import choose_engine
from thrifty.engines.scheme_choice import choose_scheme
from thrifty.errors import CompressionError, EngineError, Problem, ThriftyError
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.open_model import is_url
from thrifty.evaluate.suite import (
    HELD_OUT,
    HELD_OUT_TEXTS,
    HELD_OUT_TOKENS,
    EvaluationSuite,
    Named,
    describe_missing,
    find_text,
    measure_quality,
)
from thrifty.home import Home, make_private_folder
from thrifty.spec.compress import CompressSpec
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress

log = logging.getLogger(__name__)

Model = tuple[NamedVersion, Artifact]
MeasureSpeed = Callable[[NamedVersion, Artifact, OnProgress], Measurement]
"""Runs a model on the engine that will serve it; another layer's business."""

TEXT = "passages"
_FOR_TASKS = "file of questions (.jsonl)"


@dataclass(frozen=True)
class Stage:
    """One stage's model, and what is known of it."""

    name: str
    """`prune`, `distill` or `quantize`."""
    version: NamedVersion
    artifact: Artifact
    measured: list[Measurement] = field(default_factory=list)
    not_measured: str = ""
    """Why its speed is not known, where it is not."""


@dataclass(frozen=True)
class Compressed:
    """What a pipeline came to."""

    source: Model
    stages: list[Stage]

    @property
    def result(self) -> Model:
        """The last stage's model; the source, where `auto` left it as it is."""
        if not self.stages:
            return self.source
        last = self.stages[-1]
        return last.version, last.artifact


def check_compress(compress: CompressSpec) -> list[Problem]:
    """What can be told to be wrong before a model is fetched."""
    problems: list[Problem] = []
    if not _list_stages(compress):
        problems.append(
            Problem("compress", "nothing is done to the model: set prune, distill or quantize")
        )
    if compress.distill.tokens is not None:
        problems += _check_training()
    if is_url(compress.distill.teacher or ""):
        message = "is served elsewhere; such a teacher is for 'thrifty distill'. Name a model"
        problems.append(Problem("compress.distill.teacher", message))
    for key, name in (("text", compress.text), ("held_out", compress.held_out)):
        if name is not None and (missing := describe_missing(name)):
            problems.append(Problem(f"compress.{key}", f"{name!r} {missing}"))
        elif name is not None and _is_text(name) is False:
            problems.append(Problem(f"compress.{key}", f"{name!r} is questions, and no text"))
    if compress.text is not None and compress.text == compress.held_out:
        message = "is the text that is learned from, too; judge by other text"
        problems.append(Problem("compress.held_out", message))
    for index, name in enumerate(compress.tasks):
        path = f"compress.tasks.{index}"
        if missing := describe_missing(name):
            problems.append(Problem(path, f"{name!r} {missing}"))
        elif _is_text(name):
            problems.append(Problem(path, f"{name!r} is text, and no {_FOR_TASKS}"))
    return problems


def run_pipeline(
    compress: CompressSpec,
    source: Model,
    *,
    store: Store,
    home: Home,
    measure_speed: MeasureSpeed | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = ignore_progress,
) -> Compressed:
    """Carry out what `compress` asks for; whatever was made and measured before is taken as it is.

    Args:
        compress: What to do.
        source: The checkpoint to begin with.
        store: Where models are kept.
        home: Where texts, references and trainings are kept.
        measure_speed: Measures and records how fast a model is; None leaves that out.
        on_stage: Told of each stage as it begins, in words.
        on_progress: Told of every step, as `stage: step`.

    Raises `CompressionError`, which names the stage. Blocks.
    """
    version, artifact = source
    compress = _resolve_scheme(compress, artifact, store, on_stage)
    check_model(compress, source)
    learned, suite = _find_texts(compress, source, store, home, on_progress)
    teacher = version.label
    if compress.distill.teacher is not None:
        with _in_stage("distill", version.label):
            teacher = fetch_model(store, compress.distill.teacher, on_progress=on_progress)[0].label
    stages: list[Stage] = []
    names = _name_stages(compress, version.name)
    # One at a time: a second one of the same waits, and then finds what the first has made.
    with store.stage(f"pipeline {artifact.id}"):
        for name, out in names.items():
            label = version.label
            on_stage(f"{name}: {_describe_stage(name, compress, teacher)}, of {label}")
            with _in_stage(name, label):
                make = {"prune": _prune, "distill": _distill, "quantize": _quantize}[name]
                version, artifact = make(
                    compress, (version, artifact), out, learned, teacher, store, home,
                    _prefix(name, on_progress),
                )  # fmt: skip
            stage = _measure(
                name, version, artifact, suite, store, home, measure_speed, on_progress
            )
            stages.append(stage)
            if stage.not_measured:
                on_stage(f"{version.label}: its speed was not measured: {stage.not_measured}")
    return Compressed(source, stages)


def _resolve_scheme(
    compress: CompressSpec, artifact: Artifact, store: Store, on_stage: Callable[[str], None]
) -> CompressSpec:
    """`compress` with the form of the weights that is made on this machine. Raises
    `CompressionError`.
    """
    wanted = compress.quantize.scheme
    machine, engine = detect_machine(), choose_engine("auto", artifact)
    try:
        if wanted == "auto":
            choice = choose_scheme(engine, store, artifact, machine)
            scheme, reason = choice.scheme, choice.reason
        else:
            features = engine.find_features(machine)
            scheme = choose_runnable(engine.traits.schemes, wanted, features)
            reason = find_scheme_fault(engine.traits.schemes, wanted, features) or ""
    except EngineError as error:
        raise CompressionError(str(error)) from None
    if scheme != wanted:
        on_stage(f"quantize: {wanted} is {scheme} here; {reason}")
    quantize = compress.quantize.model_copy(update={"scheme": scheme})
    return compress.model_copy(update={"quantize": quantize})


def check_model(compress: CompressSpec, source: Model) -> None:
    """Refuse what cannot be done to this model. Raises `CompressionError`."""
    version, artifact = source
    what = artifact.description
    stages = _list_stages(compress)
    if what.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is prepared for an engine already; name the checkpoint that it was made "
            "from"
        )
    if what.family is Family.ENCODER:
        _check_encoder(version, compress)
    if "distill" in stages and "prune" not in stages and compress.distill.teacher is None:
        raise CompressionError(
            "distill: without pruning, the model would learn from itself; name a better one "
            "(compress.distill.teacher), or prune it"
        )


def _check_encoder(version: NamedVersion, compress: CompressSpec) -> None:
    if _scheme(compress) not in ("none", "int8"):
        raise CompressionError(
            f"{version.label} is an encoder, and encoders are quantized to int8 (compress.quantize.scheme)"
        )
    unused = compress.text is not None or compress.quantize.tokens is not None
    if unused and _list_stages(compress) == ["quantize"]:
        raise CompressionError(
            f"{version.label} is an encoder, whose weights are rounded without text; leave compress.text and "
            "compress.quantize.tokens out"
        )
    if compress.tasks or compress.held_out_tokens is not None:
        raise CompressionError(
            f"{version.label} is an encoder: it is judged by the embeddings of {HELD_OUT_TEXTS:,} held-out "
            "passages; leave compress.tasks and compress.held_out_tokens out"
        )


def _check_training() -> list[Problem]:
    from thrifty.compress.distill.distill import require_training

    try:
        require_training()
    except CompressionError as error:
        return [Problem("compress.distill", str(error))]
    return []


# What there is to do


def _list_stages(compress: CompressSpec) -> list[str]:
    stages = []
    if compress.prune.parameters is not None:
        stages.append("prune")
    if compress.distill.tokens is not None:
        stages.append("distill")
    if _scheme(compress) != "none":
        stages.append("quantize")
    return stages


def _scheme(compress: CompressSpec) -> str:
    """The form of the weights; until it is resolved, `auto` stands for 8 bits."""
    return "int8" if compress.quantize.scheme == "auto" else compress.quantize.scheme


def _name_stages(compress: CompressSpec, base: str) -> dict[str, str]:
    """The names under which stages are registered."""
    words = {"prune": "pruned", "distill": "distilled", "quantize": _scheme(compress)}
    names, name = {}, base
    for stage in _list_stages(compress):
        name = f"{name}-{words[stage]}"
        names[stage] = name
    if compress.out is not None:
        names[list(names)[-1]] = compress.out
    return names


def _describe_stage(stage: str, compress: CompressSpec, teacher: str) -> str:
    if stage == "prune":
        return f"to {compress.prune.parameters:.0%} of the parameters"
    if stage == "distill":
        return f"on {compress.distill.tokens:,} tokens of what {teacher} says"
    return f"to {_scheme(compress)}"


# The stages


def _prune(
    compress: CompressSpec, model: Model, out: str, text: Named | None, teacher: str, store: Store,
    home: Home, on_progress: OnProgress,
) -> Model:  # fmt: skip
    from thrifty.compress.prune.encoder import prune_encoder
    from thrifty.compress.prune.prune import CALIBRATION_TOKENS, prune_decoder

    assert text is not None
    assert compress.prune.parameters is not None
    depth, width = compress.prune.may_remove
    prune = prune_encoder if model[1].description.family is Family.ENCODER else prune_decoder
    version, artifact, _ = prune(
        store, *model, compress.prune.parameters, out=out, calibration=text.path, depth=depth,
        width=width, tokens=compress.prune.tokens or CALIBRATION_TOKENS, on_progress=on_progress,
    )  # fmt: skip
    return version, artifact


def _distill(
    compress: CompressSpec, model: Model, out: str, text: Named | None, teacher: str, store: Store,
    home: Home, on_progress: OnProgress,
) -> Model:  # fmt: skip
    from thrifty.compress.distill.distill import distill_model
    from thrifty.compress.distill.settings import Training

    assert text is not None
    assert compress.distill.tokens is not None
    settings: dict[str, Any] = compress.distill.model_dump(exclude={"teacher"}, exclude_none=True)
    return distill_model(
        store, model[0].label, teacher, text=text.path, out=out, training=Training(**settings),
        references=home.evaluations, work=home.trainings, on_progress=on_progress,
    )  # fmt: skip


def _quantize(
    compress: CompressSpec, model: Model, out: str, text: Named | None, teacher: str, store: Store,
    home: Home, on_progress: OnProgress,
) -> Model:  # fmt: skip
    # One line for each scheme: GGUF's go here, with a module of their own.
    from thrifty.compress.quantize.openvino import BITS, quantize_openvino

    version, artifact, _ = quantize_openvino(
        store, *model, _scheme(compress), out=out,
        calibration=text.path if text is not None else None,
        bits=compress.quantize.bits or BITS,
        tokens=compress.quantize.tokens, on_progress=on_progress,
    )  # fmt: skip
    return version, artifact


def _measure(
    stage: str,
    version: NamedVersion,
    artifact: Artifact,
    suite: EvaluationSuite,
    store: Store,
    home: Home,
    measure_speed: MeasureSpeed | None,
    on_progress: OnProgress,
) -> Stage:
    measured: list[Measurement] = []
    reason = ""
    told = _prefix(stage, on_progress)
    with _in_stage(f"measuring after {stage}", version.label):
        measured += measure_quality(store, home.evaluations, version, artifact, suite, told)
        if measure_speed is not None:
            try:
                measured.append(measure_speed(version, artifact, told))
            except ThriftyError as error:
                # What it is good for is known; a model that does not start is found out by who serves it.
                reason = str(error)
    return Stage(stage, version, artifact, measured, reason)


# Texts


def _find_texts(
    compress: CompressSpec, source: Model, store: Store, home: Home, on_progress: OnProgress
) -> tuple[Named | None, EvaluationSuite]:
    """What is learned from, and what results are held to; neither holds a part of the other."""
    family = source[1].description.family
    make_private_folder(home.data)
    learned = None
    if family is Family.DECODER or _list_stages(compress) != ["quantize"]:
        learned = find_text(compress.text or TEXT, home.data, store, on_progress)
    judged = find_text(compress.held_out or HELD_OUT, home.data, store, on_progress)
    tasks = tuple(find_text(name, home.data, store, on_progress) for name in compress.tasks)
    stems = [task.path.stem for task in tasks]
    if len(set(stems)) < len(stems):
        raise CompressionError(f"two tasks have one name ({', '.join(stems)}); rename a file")
    if learned is not None:
        _check_apart(learned, judged, home)
    tokens = compress.held_out_tokens or HELD_OUT_TOKENS
    suite = EvaluationSuite(
        source[0], judged, family, tokens=tokens, tasks=tasks, items=compress.items
    )
    return learned, suite


def _check_apart(learned: Named, judged: Named, home: Home) -> None:
    """Looked into once for each two texts."""
    mark = home.evaluations / "apart" / f"{learned.sha256[:20]}-{judged.sha256[:20]}"
    if not mark.exists():
        check_no_overlap(learned.path, judged.path)
        make_private_folder(mark.parent)
        mark.touch()


def _is_text(name: str) -> bool | None:
    """Whether `name` is text, or questions (False); None where only its lines can tell."""
    if is_harness_task(name):
        return False
    if name in SETS:
        return SETS[name].is_text
    return None if Path(name).suffix == ".jsonl" else True


# Telling


def _prefix(stage: str, on_progress: OnProgress) -> OnProgress:
    def tell(step: Progress) -> None:
        on_progress(Progress(f"{stage}: {step.step}", step.done, step.total, step.unit))

    return tell


@contextlib.contextmanager
def _in_stage(stage: str, label: str) -> Iterator[None]:
    """Name the stage in whatever goes wrong."""
    kept = "stages before it are kept, and the same command goes on from there"
    try:
        yield
    except ThriftyError as error:
        raise CompressionError(f"{stage} ({label}): {error}") from error
    except MemoryError:
        raise CompressionError(
            f"{stage} ({label}): out of memory; {kept}, once there is more or less is asked for"
        ) from None
    except RuntimeError as error:
        # OpenVINO and PyTorch tell of everything so, of memory that ran out, too.
        log.exception("%s of %s failed", stage, label)
        first = str(error).partition("\n")[0][:300]
        raise CompressionError(f"{stage} ({label}): {first}; {kept}") from None
