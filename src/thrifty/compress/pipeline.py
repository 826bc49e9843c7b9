"""From a checkpoint to the model that is served: prune, distill and quantize, each stage optional.

Every stage adds a model to the store, with its lineage and measurements. A stage whose recipe was
already applied to the same model is found there, so a pipeline that was killed resumes where it
stopped, and a finished one costs only a lookup. Each stage has its own module, and `stages` says
which there are; this one decides what they learn from and how their results are evaluated.
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
from thrifty.compress.mix import DEFAULT_TEXT, Mix, choose_text, describe_missing_text, find_mix
from thrifty.compress.overlap import check_apart
from thrifty.compress.stages import (
    DISTILL,
    PRUNE,
    QUANTIZE,
    PlannedStage,
    describe_stage,
    divide_distillation,
    find_share,
    list_kinds,
    plan_stages,
    require_more,
    scheme_of,
    share_after,
)
from thrifty.data import SETS
from thrifty.engines.base import choose_runnable, find_scheme_fault
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import choose_engine
from thrifty.engines.scheme_choice import choose_scheme
from thrifty.errors import CompressionError, EngineError, Problem, ThriftyError
from thrifty.evaluate.answers import (
    AnswersRequest,
    ServeModel,
    find_questions,
    is_chat_model,
    measure_answers,
)
from thrifty.evaluate.answers_text import summarize_answers
from thrifty.evaluate.gate import MAX_DROP, Verdict, judge_measured, record_verdict
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.open_model import is_url
from thrifty.evaluate.run import DOMAIN_TEXTS, DOMAIN_TOKENS
from thrifty.evaluate.suite import (
    EvaluationSuite,
    describe_missing,
    describe_no_domain,
    find_data,
    find_domains,
    measure_quality,
    name_default_domains,
    split_domain,
)
from thrifty.home import Home, make_private_folder
from thrifty.spec.compress import ALL, CompressSpec, parse_source
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress

log = logging.getLogger(__name__)

Model = tuple[NamedVersion, Artifact]
MeasureSpeed = Callable[[NamedVersion, Artifact, OnProgress], Measurement]
"""Measures a model on the engine that will serve it; a higher layer provides it."""

_FOR_TASKS = "file of questions (.jsonl)"


@dataclass(frozen=True)
class Stage:
    """The model that one stage made, and its measurements."""

    planned: PlannedStage
    version: NamedVersion
    artifact: Artifact
    measured: list[Measurement] = field(default_factory=list)
    not_measured: str = ""
    """Why the speed is unknown, if it is."""

    @property
    def name(self) -> str:
        """`prune`, `distill` or `quantize`."""
        return self.planned.kind


@dataclass(frozen=True)
class PipelineResult:
    """The source model and the models that the stages made of it."""

    source: Model
    stages: list[Stage]
    verdict: Verdict | None = None
    """Whether the result is close enough to the source; None if no stage changed it."""
    message: str = ""
    """The verdict in words."""

    @property
    def result(self) -> Model:
        """The last stage's model; the source, where `auto` left it as it is."""
        if not self.stages:
            return self.source
        last = self.stages[-1]
        return last.version, last.artifact


@dataclass(frozen=True)
class _Run:
    """What every stage of one run of a pipeline needs."""

    compress: CompressSpec
    teacher: str
    text: Mix | None
    """The text for calibration and training."""
    suite: EvaluationSuite
    store: Store
    home: Home
    measure_speed: MeasureSpeed | None
    serve: ServeModel | None
    """Serves a chat model that is to be asked."""
    on_stage: Callable[[str], None]


def check_compress(compress: CompressSpec) -> list[Problem]:
    """The problems of a pipeline's spec that can be found before a model is fetched."""
    problems: list[Problem] = []
    if not list_kinds(compress):
        problems.append(
            Problem("compress", "the pipeline has no stage: set prune, distill or quantize")
        )
    if compress.prune.count_steps() > 1 and not compress.distill.is_wanted:
        message = "needs distillation between the steps; set compress.distill, or remove 'steps'"
        problems.append(Problem("compress.prune.steps", message))
    if compress.distill.is_wanted:
        problems += _check_training()
    if is_url(compress.distill.teacher or ""):
        message = "must be a model; only 'thrifty distill' takes a teacher that is served elsewhere"
        problems.append(Problem("compress.distill.teacher", message))
    learned = {split_domain(parse_source(one)[0])[1] for one in compress.text or DEFAULT_TEXT}
    for name in compress.text:
        if missing := describe_missing_text(name):
            problems.append(Problem("compress.text", f"{name!r} {missing}"))
    for name in compress.held_out:
        if fault := describe_no_domain(name):
            problems.append(Problem("compress.held_out", f"{name!r} {fault}"))
        elif split_domain(name)[1] in learned:
            message = "must differ from the text that models are calibrated and trained on"
            problems.append(Problem("compress.held_out", message))
    for index, name in enumerate(compress.tasks):
        path = f"compress.tasks.{index}"
        if missing := describe_missing(name):
            problems.append(Problem(path, f"{name!r} {missing}"))
        elif _is_text(name):
            problems.append(Problem(path, f"{name!r} is text, not a {_FOR_TASKS}"))
    return problems


def run_pipeline(
    compress: CompressSpec,
    source: Model,
    *,
    store: Store,
    home: Home,
    measure_speed: MeasureSpeed | None = None,
    serve: ServeModel | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = ignore_progress,
) -> PipelineResult:
    """Run the stages of `compress`; reuse the models and measurements that exist. Blocks.

    Args:
        compress: The pipeline.
        source: The checkpoint to start from.
        store: Where models are stored.
        home: Where texts, references and training checkpoints are stored.
        measure_speed: Measures and records a model's speed; None skips it.
        serve: Serves a chat model, to ask it questions; None skips it.
        on_stage: Called with a description as each stage begins.
        on_progress: Called with the progress of each stage, as `stage: step`.

    Raises `CompressionError` with the name of the stage.
    """
    version, artifact = source
    compress = _resolve_scheme(compress, artifact, store, on_stage)
    check_model(compress, source)
    text, suite = _find_data(compress, source, store, home, on_stage, on_progress)
    teacher = version.label
    if compress.distill.teacher is not None:
        with _in_stage("distill", version.label):
            teacher = fetch_model(store, compress.distill.teacher, on_progress=on_progress)[0].label
    run = _Run(compress, teacher, text, suite, store, home, measure_speed, serve, on_stage)
    stages: list[Stage] = []
    share = 1.0
    # Only one at a time: a second run of the same pipeline waits, then finds the results.
    with store.stage(f"pipeline {artifact.id}"):
        for planned in plan_stages(compress, version.name):
            name, label = planned.title, version.label
            on_stage(f"{name} {label}: {describe_stage(planned, compress, teacher)}")
            report = _prefix(name, on_progress)
            with _in_stage(name, label):
                model = version, artifact
                if planned.kind == PRUNE:
                    version, artifact = _prune(run, model, planned, share, report)
                    share = find_share(version, share)
                    require_more(compress, planned, share)
                else:
                    make = {DISTILL: _distill, QUANTIZE: _quantize}[planned.kind]
                    version, artifact = make(run, model, planned, report)
            stage = _measure(run, planned, (version, artifact), report)
            stages.append(stage)
            if stage.not_measured:
                on_stage(f"{version.label}: its speed was not measured: {stage.not_measured}")
        if not stages:
            return PipelineResult(source, stages)
        last = stages[-1]
        unasked = "" if serve is None else _ask(run, last, serve, on_stage, on_progress)
        verdict = judge_measured(last.measured, compress.max_drop or MAX_DROP, unasked)
        message = record_verdict(store, last.version, last.artifact, source[0], verdict)
        on_stage(message)
    return PipelineResult(source, stages, verdict, message)


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
    """Raise `CompressionError` if the pipeline cannot be applied to this model."""
    version, artifact = source
    description = artifact.description
    stages = list_kinds(compress)
    if description.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is already prepared for an engine; name the checkpoint that it was "
            "made from"
        )
    if description.family is Family.RERANKER:
        raise CompressionError(
            f"{version.label} is a reranker, of which only the weights are made smaller; say "
            "'compress: int8' or 'compress: int4' alone"
        )
    if description.family is Family.ENCODER:
        _check_encoder(version, compress)
    if "distill" in stages and "prune" not in stages and compress.distill.teacher is None:
        raise CompressionError(
            "distill: without pruning, the model would learn from itself; name a better teacher "
            "(compress.distill.teacher) or prune the model"
        )


def _check_encoder(version: NamedVersion, compress: CompressSpec) -> None:
    if scheme_of(compress) not in ("none", "int8"):
        raise CompressionError(
            f"{version.label} is an encoder; encoders can only be quantized to int8 "
            "(compress.quantize.scheme)"
        )
    unused = bool(compress.text) or compress.quantize.tokens is not None
    if unused and list_kinds(compress) == ["quantize"]:
        raise CompressionError(
            f"{version.label} is an encoder, and its weights are quantized without calibration "
            "text; remove compress.text and compress.quantize.tokens"
        )
    if compress.tasks or compress.held_out_tokens is not None:
        raise CompressionError(
            f"{version.label} is an encoder; it is evaluated on the embeddings of "
            f"{DOMAIN_TEXTS:,} texts of each domain; remove compress.tasks and "
            "compress.held_out_tokens"
        )


def _check_training() -> list[Problem]:
    from thrifty.train.process import require_training

    try:
        require_training()
    except CompressionError as error:
        return [Problem("compress.distill", str(error))]
    return []


# The stages


def _prune(
    run: _Run, model: Model, planned: PlannedStage, share: float, on_progress: OnProgress
) -> Model:
    """The model with fewer parameters; it has the share `share` of those of the source. All tokens
    that go do so in the first step, so that what a teacher says serves every step.
    """
    from thrifty.compress.prune.encoder import prune_encoder
    from thrifty.compress.prune.prune import prune_decoder
    from thrifty.compress.prune.request import CALIBRATION_TOKENS, PruningRequest

    settings = run.compress.prune
    assert run.text is not None
    depth, width = settings.may_remove
    wanted = share_after(run.compress, planned.step)
    request = PruningRequest(
        None if wanted is None else wanted / share, planned.out, run.text, depth=depth, width=width,
        tokens=settings.tokens or CALIBRATION_TOKENS,
        vocabulary=settings.vocabulary if planned.step == 1 else ALL,
    )  # fmt: skip
    prune = prune_encoder if model[1].description.family is Family.ENCODER else prune_decoder
    version, artifact, _ = prune(run.store, *model, request, on_progress)
    return version, artifact


def _distill(run: _Run, model: Model, planned: PlannedStage, on_progress: OnProgress) -> Model:
    from thrifty.compress.distill.distill import DistillationRequest, distill_model
    from thrifty.compress.distill.settings import Training

    assert run.text is not None
    exclude = {"teacher", "time", "tokens"}
    settings: dict[str, Any] = run.compress.distill.model_dump(exclude=exclude, exclude_none=True)
    tokens, time_s = divide_distillation(run.compress, planned)
    much = {"tokens": tokens} if time_s is None else {"minutes": time_s / 60}
    request = DistillationRequest(
        model[0].label, run.teacher, run.text, planned.out, Training(**settings, **much), extend=True,
        serve=run.serve,
    )  # fmt: skip
    return distill_model(run.store, run.home, request, on_progress, run.on_stage)


def _quantize(run: _Run, model: Model, planned: PlannedStage, on_progress: OnProgress) -> Model:
    from thrifty.compress.quantize.openvino import BITS, quantize_openvino

    settings = run.compress.quantize
    version, artifact, _ = quantize_openvino(
        run.store, *model, scheme_of(run.compress), out=planned.out,
        calibration=run.text,
        bits=settings.bits or BITS, tokens=settings.tokens, on_progress=on_progress,
    )  # fmt: skip
    return version, artifact


def _measure(run: _Run, planned: PlannedStage, model: Model, on_progress: OnProgress) -> Stage:
    version, artifact = model
    reason = ""
    with _in_stage(f"measuring after {planned.title}", version.label):
        measured = measure_quality(
            run.store, run.home.evaluations, version, artifact, run.suite, on_progress
        )
        if run.measure_speed is not None:
            try:
                measured.append(run.measure_speed(version, artifact, on_progress))
            except ThriftyError as error:
                # The quality is known; whether the model can start matters to whoever serves it.
                reason = str(error)
    return Stage(planned, version, artifact, measured, reason)


def _ask(
    run: _Run,
    stage: Stage,
    serve: ServeModel,
    on_stage: Callable[[str], None],
    on_progress: OnProgress,
) -> str:
    """Ask the last stage's model what its source is asked, record the answers, and show some.
    Returns why a chat model could not be asked, which its verdict says.
    """
    version, artifact = stage.version, stage.artifact
    reference = run.suite.reference
    store, home = run.store, run.home
    if not is_chat_model(store, store.load(reference.artifact)):
        return ""
    try:
        questions = find_questions(None, home.data, store, on_progress=on_progress)
        request = AnswersRequest(reference, questions, serve)
        asked = measure_answers(store, home.evaluations, version, artifact, request, on_progress)
    except ThriftyError as error:
        # What was made is kept with its measurements; only its verdict has to wait for answers.
        return f"the questions were not asked: {error}"
    stage.measured.append(asked)
    for line in summarize_answers(version.label, asked.values):
        on_stage(line)
    return ""


# Data


def _find_data(
    compress: CompressSpec,
    source: Model,
    store: Store,
    home: Home,
    on_stage: Callable[[str], None],
    on_progress: OnProgress,
) -> tuple[Mix | None, EvaluationSuite]:
    """The calibration text and the evaluation suite, after checking that they do not overlap."""
    family = source[1].description.family
    make_private_folder(home.data)
    text = None
    if family is Family.DECODER or list_kinds(compress) != ["quantize"]:
        learned = compress.text or choose_text(store, source[1])
        text = find_mix(learned, home.data, store, on_progress)
    named = compress.held_out or name_default_domains(store, source[1])
    domains = find_domains(named, home.data, store, on_progress)
    tasks = tuple(find_data(name, home.data, store, on_progress) for name in compress.tasks)
    stems = [task.path.stem for task in tasks]
    if len(set(stems)) < len(stems):
        raise CompressionError(f"two tasks have the same name ({', '.join(stems)}); rename a file")
    if text is not None:
        paths = [domain.path for domain in domains]
        text = check_apart(text, paths, home, store, on_stage, on_progress)
    tokens = compress.held_out_tokens or DOMAIN_TOKENS
    suite = EvaluationSuite(
        source[0], domains, family, tokens=tokens, tasks=tasks, items=compress.items
    )
    return text, suite


def _is_text(name: str) -> bool | None:
    """Whether `name` is text (True) or questions (False); None if only its content can tell."""
    if is_harness_task(name):
        return False
    if name in SETS:
        return SETS[name].kind != "questions"
    return None if Path(name).suffix == ".jsonl" else True


# Reporting


def _prefix(stage: str, on_progress: OnProgress) -> OnProgress:
    def report(step: Progress) -> None:
        on_progress(Progress(f"{stage}: {step.step}", step.done, step.total, step.unit))

    return report


@contextlib.contextmanager
def _in_stage(stage: str, label: str) -> Iterator[None]:
    """Add the stage's name to every error."""
    kept = "earlier stages are kept, and the same command resumes from there"
    try:
        yield
    except ThriftyError as error:
        raise CompressionError(f"{stage} ({label}): {error}") from error
    except MemoryError:
        raise CompressionError(
            f"{stage} ({label}): out of memory; {kept}; free memory or reduce the settings"
        ) from None
    except RuntimeError as error:
        # OpenVINO and PyTorch report every failure this way, including lack of memory.
        log.exception("%s of %s failed", stage, label)
        first = str(error).partition("\n")[0][:300]
        raise CompressionError(f"{stage} ({label}): {first}; {kept}") from None
