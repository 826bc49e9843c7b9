"""One evaluation: a model against a reference, on a text and on tasks, resumable at every step."""

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
from thrifty.evaluate.divergence import Divergence, measure_divergence
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.embeddings import (
    EmbeddingAgreement,
    TextVectors,
    compare_pairs,
    compare_vectors,
    read_pairs,
    read_passages,
)
from thrifty.evaluate.harness import Harness, MetricValues, compare_measured, is_harness_task
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.open_model import (
    digest_vocabulary,
    is_encoder,
    is_url,
    open_encoder,
    open_model,
)
from thrifty.evaluate.reference import ReferenceMeta, ReferenceRecord, record_type
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.served_embedder import ServedEmbedder
from thrifty.evaluate.served_scorer import ServedScorer
from thrifty.evaluate.task_result import TaskResult, compare_answers
from thrifty.evaluate.tasks import Item, answer_items, read_task
from thrifty.evaluate.windows import digest_file, read_windows
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

WINDOW = 512
TOP_K = 64
MARGIN = 0.02
"""How much worse a share may be for the candidate to pass as not inferior."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured of one model."""

    model: str
    reference: str
    text: str | None = None
    divergence: Divergence | None = None
    embeddings: EmbeddingAgreement | None = None
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As `thrifty evaluate --json` tells it."""
        found: dict[str, Any] = {"model": self.model, "reference": self.reference}
        if self.divergence is not None:
            found |= {"text": self.text, **asdict(self.divergence)}
        if self.embeddings is not None:
            return found | {"text": self.text, **asdict(self.embeddings)}
        found["tasks"] = {name: task.as_dict() for name, task in self.tasks.items()}
        return found


def evaluate(
    model: str,
    reference: str,
    *,
    store: Store,
    folder: Path,
    text: Path | None = None,
    tasks: Sequence[Path | str] = (),
    pairs: Path | None = None,
    include: Sequence[Path] = (),
    shots: int | None = None,
    window: int = WINDOW,
    top_k: int = TOP_K,
    max_tokens: int | None = None,
    max_items: int | None = None,
    margin: float = MARGIN,
    backend: str = DEFAULT_BACKEND,
    kv_precision: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare `model` with `reference`. Each may be anything that `open_model` takes, the model also
    a URL. With `kv_precision` (`u8`, `f16`) the model's keys and values go through a cache as they do when
    it serves. What was measured is kept in `folder`, so that a run that is broken off goes on, and
    the reference runs once. Tasks are files, or `lm_eval:NAME` (`include` and `shots` are theirs).
    Encoders are compared by their embeddings of the text, and of `pairs`. Blocks. Raises `ThriftyError` and its kinds.
    """
    if text is None and not tasks and pairs is None:
        raise EvaluationError("name a text (--text) or a task (--tasks) to evaluate on")
    if window < 2 or top_k < 1:
        raise EvaluationError("a window needs two tokens or more, and top_k one or more")
    if kv_precision is not None:
        _check_kv_precision(kv_precision, model, backend)
    named = [str(task) for task in tasks if is_harness_task(str(task))]
    files = [Path(task) for task in tasks if not is_harness_task(str(task))]
    items = {path.stem: read_task(path, max_items) for path in files}
    if is_encoder(reference, store, on_progress):
        if tasks or max_tokens is not None:
            raise EvaluationError(
                f"{reference} is an encoder: it answers no tasks, and its text is limited by --items"
            )
        return _evaluate_encoder(
            model, reference, store=store, folder=folder, text=text, pairs=pairs, window=window,
            limit=max_items, backend=backend, on_progress=on_progress,
        )  # fmt: skip
    if pairs is not None:
        raise EvaluationError(f"{reference} is a decoder: --pairs are for encoders")
    harness = Harness(named, include, shots, max_items) if named else None
    teacher = open_model(reference, store, exact=True, backend=backend, on_progress=on_progress)
    try:
        record = None
        if text is not None:
            record = record_reference(
                teacher, text, folder, window=window, top_k=top_k, max_tokens=max_tokens,
                on_progress=on_progress,
            )  # fmt: skip
        known = {
            name: _answers(teacher, found, folder, on_progress) for name, found in items.items()
        }
        known_there = _answer_harness(harness, teacher, folder, on_progress)
        student = _open_candidate(model, teacher, store, backend, kv_precision, on_progress)
        if record is not None:
            _require_same_tokens(student, teacher)
    finally:
        teacher.close()
    try:
        divergence = None
        if record is not None:
            results = record.folder / "candidates" / f"{_key(student.identity)}.bin"
            with lock_file(results.with_suffix(".lock")):
                divergence = measure_divergence(student, record, results, on_progress)
        given = {
            name: _answers(student, found, folder, on_progress) for name, found in items.items()
        }
        given_there = _answer_harness(harness, student, folder, on_progress)
    finally:
        student.close()
    compared = {name: compare_answers(given[name], known[name], margin) for name in items}
    return Evaluation(
        student.label,
        teacher.label,
        None if text is None else str(text),
        divergence,
        tasks=compared | compare_measured(given_there, known_there, margin),
    )


def _evaluate_encoder(
    model: str,
    reference: str,
    *,
    store: Store,
    folder: Path,
    text: Path | None,
    pairs: Path | None,
    window: int,
    limit: int | None,
    backend: str,
    on_progress: OnProgress,
) -> Evaluation:
    paired, scores = read_pairs(pairs) if pairs is not None else ([], [])
    teacher = open_encoder(reference, store, exact=True, backend=backend, on_progress=on_progress)
    if is_url(model):
        student: Embedder = ServedEmbedder(model, teacher.tokenizer, teacher.context_length)
    else:
        student = open_encoder(model, store, backend=backend, on_progress=on_progress)
    found, between, labelled = EmbeddingAgreement(0, None, None, None), None, None
    try:
        sides = ((student, "evaluate"), (teacher, "reference"))
        most = min(window, teacher.context_length, student.context_length)
        if text is not None:
            texts = TextVectors(folder, text, most, limit)
            read = partial(read_passages, text)
            new, old = (texts.embed(side, read, step, on_progress) for side, step in sides)
            found = compare_vectors(new, old)
        if pairs is not None:
            texts = TextVectors(folder, pairs, most, None)
            new, old = (
                texts.embed(side, lambda: iter(paired), step, on_progress) for side, step in sides
            )
            between, labelled = compare_pairs(new, old, scores)
    finally:
        teacher.close()
        student.close()
    return Evaluation(
        student.label, teacher.label, None if text is None else str(text),
        embeddings=replace(found, pairs=between, labelled=labelled),
    )  # fmt: skip


def record_reference(
    teacher: Scorer,
    text: Path,
    folder: Path,
    *,
    window: int = WINDOW,
    top_k: int = TOP_K,
    max_tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReferenceRecord:
    """The reference's log-probabilities on `text`, computed as far as they are not kept yet.

    Raises `EvaluationError`, also where the disk has no room for them.
    """
    if window > teacher.context_length:
        raise EvaluationError(
            f"{teacher.label} takes {teacher.context_length} tokens; a window of {window} is longer"
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
    )
    facts = {k: v for k, v in asdict(meta).items() if k not in ("label", "text")}
    place = folder / "references" / _key(json.dumps(facts, sort_keys=True))
    place.mkdir(parents=True, exist_ok=True)
    with lock_file(place / "lock"):
        record = ReferenceRecord(place, _as_kept(place, meta))
        if not record.complete:
            total = max_tokens or round(text.stat().st_size / 3)
            _require_room(place, meta, total)
            windows = read_windows(text, teacher.tokenizer, window, max_tokens)
            record.extend(teacher, windows, on_progress, max_tokens or 0)
    return record


def _as_kept(place: Path, meta: ReferenceMeta) -> ReferenceMeta:
    """The same text under another name, or a model under another label, is the same reference."""
    path = place / "meta.json"
    if not path.exists():
        return meta
    return ReferenceMeta(**json.loads(path.read_text()))


def _require_room(place: Path, meta: ReferenceMeta, tokens: int) -> None:
    needed = tokens * (record_type(meta.vocab_size, meta.k).itemsize + 4) + 512 * meta.vocab_size
    free = shutil.disk_usage(place).free
    if needed > free:
        raise EvaluationError(
            f"the reference's log-probabilities of about {tokens} tokens need {format_bytes(needed)}, "
            f"and {format_bytes(free)} are free at {place}; make room, or ask for fewer --tokens"
        )


def _check_kv_precision(kv_precision: str, model: str, backend: str) -> None:
    known = () if is_url(model) else find_backend(backend).kv_precisions
    if not known:
        raise EvaluationError(
            "the KV cache's precision can be chosen for models that OpenVINO runs here; servers "
            "and PyTorch have their own"
        )
    if kv_precision not in known:
        raise EvaluationError(
            f"the KV cache is stored in {' or '.join(known)}, not in {kv_precision!r}"
        )


def _open_candidate(
    model: str,
    teacher: Scorer,
    store: Store,
    backend: str,
    kv_precision: str | None,
    on_progress: OnProgress,
) -> Scorer:
    if is_url(model):
        return ServedScorer(model, teacher.tokenizer, teacher.vocab_size)
    return open_model(
        model, store, backend=backend, kv_precision=kv_precision, on_progress=on_progress
    )


def _require_same_tokens(student: Scorer, teacher: Scorer) -> None:
    if student.vocab_size != teacher.vocab_size or digest_vocabulary(
        student.tokenizer
    ) != digest_vocabulary(teacher.tokenizer):
        raise EvaluationError(
            f"{student.label} and {teacher.label} have different tokenizers "
            f"({student.vocab_size} and {teacher.vocab_size} tokens), so their log-probabilities "
            "cannot be compared; compare them on tasks"
        )


def _answer_harness(
    harness: Harness | None, scorer: Scorer, folder: Path, on_progress: OnProgress
) -> dict[str, list[MetricValues]]:
    if harness is None:
        return {}
    with KeptAnswers(folder / "answers" / f"harness-{_key(scorer.identity)}.jsonl") as kept:
        return harness.answer(scorer, kept, on_progress)


def _answers(
    scorer: Scorer, items: Sequence[Item], folder: Path, on_progress: OnProgress
) -> list[dict[str, Any]]:
    """How a model does on the items; each answer is kept as it comes."""
    key = _key(scorer.identity + json.dumps([asdict(item) for item in items]))
    path = folder / "answers" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_suffix(".lock")):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found = [json.loads(line) for line in lines][: len(items)]
        with path.open("ab") as file:
            file.truncate(sum(len(line) + 1 for line in lines[: len(found)]))
            for answered in answer_items(scorer, items[len(found) :]):
                found.append(asdict(answered))
                file.write(json.dumps(found[-1]).encode() + b"\n")
                file.flush()
                on_progress(Progress("answer", len(found), len(items), "items"))
            os.fsync(file.fileno())
    return found


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
