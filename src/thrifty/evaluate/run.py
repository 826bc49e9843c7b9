"""One evaluation: a model against a reference, on domains, a text and tasks; every step is
resumable.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.errors import EvaluationError
from thrifty.evaluate.backends import DEFAULT_BACKEND, find_backend
from thrifty.evaluate.conversations import holds_conversations
from thrifty.evaluate.divergence import Divergence, measure_divergence
from thrifty.evaluate.domains import Domain, find_worst_of, read_domain
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.embeddings import EmbeddingAgreement
from thrifty.evaluate.encoder_domains import EncoderPair
from thrifty.evaluate.harness import Harness, MetricValues, compare_measured, is_harness_task
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.narrowed import (
    FoldedReference,
    NarrowedVocabulary,
    compare_narrowed,
    find_narrowed,
)
from thrifty.evaluate.open_model import (
    digest_vocabulary,
    is_encoder,
    is_url,
    open_encoder,
    open_model,
)
from thrifty.evaluate.reference import ReferenceMeta, ReferenceRecord, record_type
from thrifty.evaluate.scorer import Ranker, Scorer
from thrifty.evaluate.served_embedder import ServedEmbedder
from thrifty.evaluate.served_scorer import ServedScorer
from thrifty.evaluate.task_result import TaskResult, compare_answers
from thrifty.evaluate.tasks import Item, answer_items, read_task
from thrifty.evaluate.windows import digest_file
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

WINDOW = 512
TOP_K = 64
DOMAIN_TOKENS = 4096
DOMAIN_TEXTS = 1024
"""Of each domain of an encoder, this many texts."""
_TEXT = ""
"""The name of the text among domains."""
MARGIN = 0.02
"""How much worse a share may be for the candidate to count as not inferior."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What a model and its reference are compared on, and how the model runs."""

    text: Path | None = None
    """The held-out text."""
    domains: Sequence[Domain] = ()
    """The uses that models are compared on, one by one."""
    tasks: Sequence[Path | str] = ()
    """Files of questions, or tasks of lm-evaluation-harness as `lm_eval:NAME`."""
    pairs: Path | None = None
    """Pairs of texts, for encoders."""
    include: Sequence[Path] = ()
    """Folders with tasks for lm-evaluation-harness."""
    shots: int | None = None
    """Solved examples before each question of lm-evaluation-harness. Default: the task's own."""
    window: int = WINDOW
    """Tokens in a window of text, at least 2."""
    top_k: int = TOP_K
    """How many of the reference's likeliest tokens are recorded, at least 1."""
    max_tokens: int | None = None
    """The most tokens of the text, for decoders."""
    domain_tokens: int | None = DOMAIN_TOKENS
    """The most tokens of each domain, for decoders."""
    max_items: int | None = None
    """The most items of each task; for encoders, the most texts. Default: all, and of an encoder's
    domains `DOMAIN_TEXTS`."""
    margin: float = MARGIN
    """The non-inferiority margin of tasks."""
    backend: str = DEFAULT_BACKEND
    """`openvino` or `torch`."""
    kv_precision: str | None = None
    """`u8` or `f16`: compute the model's attention over a KV cache of this precision, as served."""

    @property
    def judges_text(self) -> bool:
        """Whether predictions are compared, on domains or on a text."""
        return bool(self.domains) or self.text is not None

    def check(self, model: str) -> None:
        """Raise `EvaluationError` for options that no evaluation of `model` can have."""
        if self.text is None and not self.domains and not self.tasks and self.pairs is None:
            raise EvaluationError("name a domain, a text or a task to evaluate on")
        names = [domain.name for domain in self.domains]
        if len(set(names)) < len(names):
            raise EvaluationError(f"two domains have the same name ({', '.join(names)})")
        if self.window < 2 or self.top_k < 1:
            raise EvaluationError(
                "a window needs at least two tokens, and top_k must be at least 1"
            )
        if self.kv_precision is None:
            return
        known = () if is_url(model) else find_backend(self.backend).kv_precisions
        if not known:
            raise EvaluationError(
                "the precision of the KV cache can be chosen only for models that OpenVINO runs "
                "here; servers and PyTorch have their own"
            )
        if self.kv_precision not in known:
            raise EvaluationError(
                f"the precision of the KV cache is {' or '.join(known)}, not {self.kv_precision!r}"
            )


@dataclass(frozen=True)
class Evaluation:
    """All measurements of one model."""

    model: str
    reference: str
    text: str | None = None
    divergence: Divergence | None = None
    """On the text."""
    domains: dict[str, Divergence] = field(default_factory=dict)
    """For decoders."""
    agreements: dict[str, EmbeddingAgreement] = field(default_factory=dict)
    """For encoders: how they compare on each domain."""
    embeddings: EmbeddingAgreement | None = None
    """For encoders: on the text, and on the file of pairs."""
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    @property
    def worst(self) -> str | None:
        """The domain on which the model is furthest from its reference."""
        return find_worst_of(self.describe_domains())

    def describe_domains(self) -> dict[str, dict[str, Any]]:
        """What was measured on each domain, as plain data."""
        found = {name: asdict(one) for name, one in self.domains.items()}
        return found | {name: asdict(one) for name, one in self.agreements.items()}

    def as_dict(self) -> dict[str, Any]:
        """The output of `thrifty evaluate --json`."""
        found: dict[str, Any] = {"model": self.model, "reference": self.reference}
        if self.divergence is not None:
            found |= {"text": self.text, **asdict(self.divergence)}
        if self.domains or self.agreements:
            found |= {"domains": self.describe_domains(), "worst": self.worst}
        if self.agreements and self.embeddings is None:
            return found
        if self.embeddings is not None:
            return found | {"text": self.text, **asdict(self.embeddings)}
        found["tasks"] = {name: task.as_dict() for name, task in self.tasks.items()}
        return found


@dataclass(frozen=True)
class _Run:
    """What the steps of one evaluation share."""

    options: EvaluationOptions
    store: Store
    folder: Path
    on_progress: OnProgress


def evaluate(
    model: str,
    reference: str,
    options: EvaluationOptions,
    *,
    store: Store,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare `model` with `reference`, each anything that `open_model` accepts, or a model's URL.

    Results are kept in `folder`, so that an interrupted run resumes, and the reference runs once.
    Decoders are compared by their predictions on domains and on the text and by their answers to
    tasks, encoders by their embeddings of texts and of pairs. Blocks. Raises `ThriftyError` and
    its subclasses.
    """
    options.check(model)
    run = _Run(options, store, folder, on_progress)
    if not is_encoder(reference, store, on_progress):
        if options.pairs is not None:
            raise EvaluationError(f"{reference} is a decoder: --pairs are for encoders")
        return _evaluate_decoder(model, reference, run)
    if options.tasks or options.max_tokens is not None:
        raise EvaluationError(
            f"{reference} is an encoder: it answers no tasks, and --items limits its texts"
        )
    return _evaluate_encoder(model, reference, run)


def _evaluate_decoder(model: str, reference: str, run: _Run) -> Evaluation:
    options = run.options
    named = [str(task) for task in options.tasks if is_harness_task(str(task))]
    files = [Path(task) for task in options.tasks if not is_harness_task(str(task))]
    items = {path.stem: read_task(path, options.max_items) for path in files}
    harness = Harness(named, options.include, options.shots, options.max_items) if named else None
    teacher = open_model(
        reference, run.store, exact=True, backend=options.backend, on_progress=run.on_progress
    )
    try:
        student = _open_candidate(model, teacher, run)
        narrowed = _relate_tokens(student, teacher) if options.judges_text else None
        ranker = teacher if narrowed is None else FoldedReference(teacher, narrowed)
        records = {
            domain.name: _record(ranker, domain, options.domain_tokens, run)
            for domain in options.domains
        }
        if options.text is not None:
            text = Domain(_TEXT, options.text)
            records[_TEXT] = _record(ranker, text, options.max_tokens, run)
        known = {name: _answer(teacher, task, run) for name, task in items.items()}
        known_metrics = _answer_harness(harness, teacher, run)
    finally:
        teacher.close()
    try:
        found = {
            name: _measure(student, name, record, narrowed, run) for name, record in records.items()
        }
        given = {name: _answer(student, task, run) for name, task in items.items()}
        given_metrics = _answer_harness(harness, student, run)
    finally:
        student.close()
    compared = {name: compare_answers(given[name], known[name], options.margin) for name in items}
    return Evaluation(
        student.label,
        teacher.label,
        None if options.text is None else str(options.text),
        found.pop(_TEXT, None),
        found,
        tasks=compared | compare_measured(given_metrics, known_metrics, options.margin),
    )


def _record(teacher: Ranker, domain: Domain, most: int | None, run: _Run) -> ReferenceRecord:
    return record_reference(
        teacher, domain.path, run.folder, window=run.options.window, top_k=run.options.top_k,
        max_tokens=most, on_progress=_name_steps(domain.name, run.on_progress),
    )  # fmt: skip


def _measure(
    student: Scorer,
    name: str,
    record: ReferenceRecord,
    narrowed: NarrowedVocabulary | None,
    run: _Run,
) -> Divergence:
    results = record.folder / "candidates" / f"{_key(student.identity)}.bin"
    on_progress = _name_steps(name, run.on_progress)
    with lock_file(results.with_suffix(".lock")):
        if narrowed is None:
            return measure_divergence(student, record, results, on_progress)
        compare = partial(compare_narrowed, narrowed=narrowed)
        found = measure_divergence(student, record, results, on_progress, compare)
    own = sum(len(narrowed.align(one.tokens, one.counted).tokens) for one in record.read())
    return replace(found, token_ratio=own / int(record.lengths.sum()))


def _name_steps(domain: str, on_progress: OnProgress) -> OnProgress:
    if domain == _TEXT:
        return on_progress
    return lambda step: on_progress(replace(step, step=f"{domain}: {step.step}"))


def _evaluate_encoder(model: str, reference: str, run: _Run) -> Evaluation:
    options, on_progress = run.options, run.on_progress
    teacher = open_encoder(
        reference, run.store, exact=True, backend=options.backend, on_progress=on_progress
    )
    if is_url(model):
        student: Embedder = ServedEmbedder(model, teacher.tokenizer, teacher.context_length)
    else:
        student = open_encoder(model, run.store, backend=options.backend, on_progress=on_progress)
    most = min(options.window, teacher.context_length, student.context_length)
    found, between, labelled = EmbeddingAgreement(0, None, None, None), None, None
    try:
        sides = EncoderPair(student, teacher, run.folder, most, on_progress)
        agreements = {
            one.name: replace(sides, on_progress=_name_steps(one.name, on_progress)).compare_on(
                one.path, options.max_items or DOMAIN_TEXTS
            )
            for one in options.domains
        }
        if options.text is not None:
            found = sides.compare_passages(options.text, options.max_items)
        if options.pairs is not None:
            _, (between, labelled) = sides.compare_pairs(options.pairs)
    finally:
        teacher.close()
        student.close()
    named = options.text is not None or options.pairs is not None
    return Evaluation(
        student.label, teacher.label, None if options.text is None else str(options.text),
        agreements=agreements,
        embeddings=replace(found, pairs=between, labelled=labelled) if named else None,
    )  # fmt: skip


def record_reference(
    teacher: Ranker,
    text: Path,
    folder: Path,
    *,
    window: int = WINDOW,
    top_k: int = TOP_K,
    max_tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReferenceRecord:
    """The reference's log-probabilities on `text`; computes those that are not recorded yet.

    Raises `EvaluationError`, also if the disk has too little space.
    """
    if window > teacher.context_length:
        raise EvaluationError(
            f"{teacher.label} accepts {teacher.context_length} tokens; a window of {window} is too "
            "long"
        )
    meta = ReferenceMeta(
        identity=teacher.identity,
        label=teacher.label,
        text=str(text),
        text_sha256=digest_file(text),
        window=window,
        k=min(top_k, teacher.vocab_size),
        vocab_size=teacher.vocab_size,
        limit=max_tokens,
        vocabulary_sha256=digest_vocabulary(teacher.tokenizer),
        templates_sha256=teacher.tokenizer.templates_sha256 if holds_conversations(text) else "",
    )
    facts = {k: v for k, v in asdict(meta).items() if k not in ("label", "text")}
    place = folder / "references" / _key(json.dumps(facts, sort_keys=True))
    place.mkdir(parents=True, exist_ok=True)
    with lock_file(place / "lock"):
        record = ReferenceRecord(place, _find_meta(place, meta))
        if not record.complete:
            total = max_tokens or round(text.stat().st_size / 3)
            _require_space(place, meta, total)
            windows = read_domain(text, teacher.tokenizer, window, max_tokens)
            record.extend(teacher, windows, on_progress, max_tokens or 0)
    return record


def _find_meta(place: Path, meta: ReferenceMeta) -> ReferenceMeta:
    """The recorded meta: the same text or model under another name is the same reference."""
    path = place / "meta.json"
    if not path.exists():
        return meta
    return ReferenceMeta(**json.loads(path.read_text()))


def _require_space(place: Path, meta: ReferenceMeta, tokens: int) -> None:
    needed = tokens * (record_type(meta.vocab_size, meta.k).itemsize + 4) + 512 * meta.vocab_size
    free = shutil.disk_usage(place).free
    if needed > free:
        raise EvaluationError(
            f"the reference's log-probabilities of about {tokens} tokens need "
            f"{format_bytes(needed)}, and {format_bytes(free)} are free at {place}; free some "
            "space, or use fewer --tokens"
        )


def _open_candidate(model: str, teacher: Scorer, run: _Run) -> Scorer:
    if is_url(model):
        return ServedScorer(model, teacher.tokenizer, teacher.vocab_size)
    return open_model(
        model, run.store, backend=run.options.backend, kv_precision=run.options.kv_precision,
        on_progress=run.on_progress,
    )  # fmt: skip


def _relate_tokens(student: Scorer, teacher: Scorer) -> NarrowedVocabulary | None:
    """How the student's tokens relate to the teacher's; None if they are the same."""
    same = digest_vocabulary(student.tokenizer) == digest_vocabulary(teacher.tokenizer)
    if same and student.vocab_size == teacher.vocab_size:
        return None
    narrowed = find_narrowed(teacher.tokenizer, student.tokenizer)
    if narrowed is None or student.vocab_size != narrowed.size:
        raise EvaluationError(
            f"{student.label} and {teacher.label} have different tokenizers "
            f"({student.vocab_size} and {teacher.vocab_size} tokens), and the first was not made "
            "of the second by removing tokens, so their log-probabilities cannot be compared; "
            "compare them on tasks"
        )
    return narrowed


def _answer_harness(
    harness: Harness | None, scorer: Scorer, run: _Run
) -> dict[str, list[MetricValues]]:
    if harness is None:
        return {}
    path = run.folder / "answers" / f"harness-{_key(scorer.identity)}.jsonl"
    with KeptAnswers(path) as kept:
        return harness.answer(scorer, kept, run.on_progress)


def _answer(scorer: Scorer, items: Sequence[Item], run: _Run) -> list[dict[str, Any]]:
    """A model's results on the items; each is recorded as it is computed."""
    key = _key(scorer.identity + json.dumps([asdict(item) for item in items]))
    path = run.folder / "answers" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_suffix(".lock")):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found = [json.loads(line) for line in lines][: len(items)]
        with path.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in lines[: len(found)]))
            for result in answer_items(scorer, items[len(found) :]):
                found.append(asdict(result))
                file.write(json.dumps(found[-1]).encode() + b"\n")
                file.flush()
                run.on_progress(Progress("answer", len(found), len(items), "items"))
            os.fsync(file.fileno())
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
