"""Train a model on rows: from a stored model and JSON lines to a registered version.

Rows are checked and encoded here, with the tokenizer and the chat template that serve the model.
The training runs in a process of its own (`worker`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.bases import find_base
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.sources import fetch_model
from thrifty.data.augmentation import AS_IT_IS, PLAIN, Augmentation
from thrifty.data.token_lengths import identify
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import DataError, TrainingError
from thrifty.files import write_atomically
from thrifty.home import Home, make_private_folder
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.figures import find_details, refuse_opposite, summarize
from thrifty.train.folders import (
    LOCK,
    can_go_on,
    claim_folder,
    empty_folder,
    find_folder,
    is_begun,
    note_failure,
)
from thrifty.train.prepare import LOSSES, SOURCES, Prepared, RowData, prepare_rows
from thrifty.train.process import read_report, require_memory, require_training, run_worker
from thrifty.train.register import register_adapter, register_trained
from thrifty.train.request import (
    EPOCHS,
    WINDOW,
    TrainingRequest,
    check_model,
    check_request,
)
from thrifty.train.rows import (
    Method,
    digest_rows,
)
from thrifty.train.settings import IMPROVED_NOTHING, RowSettings, balance_weights
from thrifty.train.trials import choose_augmentation
from thrifty.types import Family, Format, OnProgress, ignore_progress

VERSION = 2
"""Increase it when training changes, so that models are trained again."""
WORKER = "thrifty.train.worker"
LEAST_TRIAL_STEPS, TRIAL_SHARE, TRIAL_EVALUATIONS = 20, 0.5, 5
"""A trial of an augmentation takes this share of the training's steps, and at least so many."""
EVALUATIONS = 10
"""A training in epochs is evaluated so often, if that takes no more than `EVALUATION_SHARE` of its
time."""
EVALUATION_SHARE = 0.2
FORWARD_SHARE = 1 / 3
"""An evaluated example costs this share of a learned one, which has a backward pass, too."""
FEW_TOKENS = 1_000_000
"""With fewer than these, a model that is trained as a whole keeps its token embeddings: most of
them are seen too rarely."""

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class _Defaults:
    """Settings that go with a method. Learning rates are for LoRA, and for all weights."""

    rates: tuple[float, float]
    micro_batch: int
    batch: int


_DEFAULTS = {
    Method.SFT: _Defaults((5e-4, 5e-5), 4, 8),
    Method.DPO: _Defaults((1e-4, 5e-6), 4, 8),
    Method.KTO: _Defaults((1e-4, 5e-6), 8, 16),
    Method.CONTRASTIVE: _Defaults((2e-4, 2e-5), 32, 32),
}


def train_model(
    store: Store,
    home: Home,
    request: TrainingRequest,
    on_progress: OnProgress = ignore_progress,
    on_note: OnNote = lambda text: None,
) -> tuple[NamedVersion, Artifact]:
    """Train `request.model` on rows and register the result as `request.out`. Blocks.

    The same request resumes a training that was killed, and finds one that has ended. `on_note` is
    told what people should read, such as rows that were set aside. Raises `TrainingError` and the
    store's errors; after a loss that is not a number, the last good checkpoint stays.
    """
    began_s = time.monotonic()
    require_training()
    absent = not all(path.is_file() for path in request.files)
    if request.refresh is not None and absent:
        request.refresh()
    check_request(request)
    version, artifact = fetch_model(store, request.model, on_progress=on_progress)
    check_model(request, version, artifact)
    # An adapter that becomes another one is trained as its base with its changes, so that no merged
    # model is left in the store.
    again = request.adapter and artifact.description.format is Format.ADAPTER
    source = find_base(store, artifact) if again else (version, artifact)
    plain = make_plain(store, *source, on_progress)
    tokenizer = _load_tokenizer(store, plain, request, on_note)
    made_from = artifact.id if again else plain[1].id
    recipe = _describe(request, tokenizer)
    folder = find_folder(home, made_from, recipe)
    if request.refresh is not None and not absent and not request.resume:
        if request.restart or not can_go_on(folder):
            request.refresh()
            recipe = _describe(request, tokenizer)
            folder = find_folder(home, made_from, recipe)
        else:
            on_note(
                "going on with the training that was stopped, and with the feedback that it began "
                "with; --restart learns from the newest"
            )
    made = store.find_made(artifact.id if request.adapter else plain[1].id, recipe)
    if made is not None and made[0].name == request.out:
        return made
    make_private_folder(folder)
    with lock_file(folder / LOCK):
        if request.restart:
            empty_folder(folder)
        if request.resume and not is_begun(folder):
            raise TrainingError(
                "there is no training to resume with this model, data and settings; leave out "
                "--resume"
            )
        files = [*request.files, *request.held_out_files]
        claim_folder(folder, made_from, recipe, request.out, files)
        changes = str(store.folder_of(artifact.id)) if again else None
        work = Work(store, plain, request, tokenizer, began_s, on_progress, on_note, changes)
        figures = _learn(work, folder)
        weights = SafetensorsFiles([folder / "trained.safetensors"])
        if request.adapter:
            found = register_adapter(
                store, (version, artifact), plain, weights, request.out, recipe, figures
            )
        else:
            found = register_trained(
                store, plain, weights, request.out, recipe, figures, on_progress
            )
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _load_tokenizer(
    store: Store, plain: tuple[NamedVersion, Artifact], request: TrainingRequest, on_note: OnNote
) -> TextTokenizer:
    """The model's tokenizer. Raises `TrainingError` for a chat model without a template; a data set
    that was built with another tokenizer is noted.
    """
    version, artifact = plain
    tokenizer = TextTokenizer.load(store.folder_of(artifact.id))
    if artifact.description.family is Family.DECODER:
        try:
            tokenizer.find_template()
        except WireError as error:
            raise TrainingError(f"{version.label}: {error.message}") from None
    if request.data_set is not None:
        try:
            request.data_set.check_tokenizer(identify(tokenizer))
        except DataError as error:
            on_note(f"{error}. This training counts tokens itself, and sets aside what is too long")
    return tokenizer


@dataclass(frozen=True)
class Work:
    """A training that was asked for, and what it works with."""

    store: Store
    plain: tuple[NamedVersion, Artifact]
    request: TrainingRequest
    tokenizer: TextTokenizer
    began_s: float
    on_progress: OnProgress
    on_note: OnNote
    changes: str | None = None
    """The folder of the adapter that the model begins with."""

    @property
    def source(self) -> Path:
        """The folder of the model that is trained."""
        return self.store.folder_of(self.plain[1].id)


def _learn(work: Work, folder: Path) -> dict[str, Any]:
    """Train, with `augment: auto` on those forms of the rows that gain; returns the figures."""
    request, choice = work.request, None
    if request.augment.auto:
        choice = choose_augmentation(
            request.files, request.method, request.augment,
            lambda augmentation, repeat: _try(work, folder / "trials", augmentation, repeat),
            work.on_note,
        )  # fmt: skip
        work = replace(work, request=replace(request, augment=choice.augmentation or PLAIN))
    try:
        report, figures = _train(work, folder)
    except TrainingError as error:
        if str(error).startswith(IMPROVED_NOTHING):
            note_failure(folder)
        raise
    found = {**summarize(report), **figures}
    return found if choice is None else {**found, "augment": choice.as_dict()}


def _train(work: Work, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of the process, and the figures of the rows."""
    request = work.request
    prepared, window = _prepare(work, folder, work.on_note)
    settings = choose_settings(request, prepared, (folder / SOURCES).exists())
    at_once = _require_memory(work, settings, prepared)
    report = read_report(folder)
    if report is None:
        limits = _make_limits(folder, request, work.began_s)
        report = _run(work, folder, settings, window, limits, at_once=at_once)
    details = find_details(report)
    refuse_opposite(details)
    chosen = {
        "method": request.method.value, "rows": prepared.figures, "details": details,
        "data_paths": [str(path.absolute()) for path in request.files],
        "batch": settings.batch_examples, "lora_rank": settings.lora_rank,
        "weights": [settings.liked_weight, settings.disliked_weight],
    }  # fmt: skip
    if settings.augment is not None:
        chosen["forms"] = settings.augment
    return report, chosen


def _prepare(work: Work, folder: Path, on_note: OnNote) -> tuple[Prepared, int]:
    request = work.request
    encoder = request.method is Method.CONTRASTIVE
    window = request.window or (
        load_encoder(work.source).shape.context_length if encoder else WINDOW
    )
    data = RowData(request.name, request.files, request.held_out_files)
    prepared = prepare_rows(
        data, request.method, work.tokenizer, window, folder, work.on_progress, on_note,
        request.augment,
    )  # fmt: skip
    return prepared, window


def _run(
    work: Work, folder: Path, settings: RowSettings, window: int, limits: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    job = {
        "model": str(work.source), "pid": os.getpid(), "settings": asdict(settings),
        "window": window, "limits": limits, "adapter": work.request.adapter,
        "changes": work.changes, **more,
    }  # fmt: skip
    processes = work.request.processes
    return run_worker(
        WORKER, job, folder, processes, work.on_progress, work.on_note, work.request.ray
    )


def _require_memory(work: Work, settings: RowSettings, prepared: Prepared) -> int:
    """How many micro-batches may be computed at once."""
    if work.request.ray is not None:
        return 1  # another machine's memory
    source, method = work.source, work.request.method
    encoder = method is Method.CONTRASTIVE
    shape = load_encoder(source).shape if encoder else load_decoder(source).shape
    texts = settings.micro_batch * max(prepared.texts, 2 if method is Method.KTO else 1)
    return require_memory(
        shape, work.plain[1].description.parameters, replace(settings, micro_batch=texts),
        prepared.longest,
        frozen_copies=method in (Method.DPO, Method.KTO) and not settings.lora_rank,
        processes=work.request.processes,
    )  # fmt: skip


def _try(
    work: Work, folder: Path, augmentation: Augmentation | None, repeat: int
) -> dict[str, list[float]]:
    """A short training with an augmentation: its losses of held-out examples by their prompt.

    All trials take as many steps, of as many rows: a share of those of the training without any
    augmentation. One that was killed goes on, one that has ended is found.
    """
    wanted = augmentation or PLAIN
    request = replace(work.request, augment=wanted, seed=work.request.seed + repeat)
    work = replace(work, request=request)
    steps = folder / "steps.json"
    name = hashlib.sha256(json.dumps([wanted.as_dict(), repeat]).encode()).hexdigest()[:16]
    own = make_private_folder(folder / name)
    prepared, window = _prepare(work, own, lambda _: None)
    settings = choose_settings(request, prepared, (own / SOURCES).exists())
    if augmentation is None and not steps.exists():
        whole = settings.steps or 1
        few = min(LEAST_TRIAL_STEPS, whole)
        write_atomically(steps, json.dumps(max(few, round(TRIAL_SHARE * whole))))
    count = json.loads(steps.read_text())
    held_out = sum(prepared.sizes)
    every = space_evaluations(count, settings.batch_examples or 1, held_out, TRIAL_EVALUATIONS)
    settings = replace(settings, steps=count, every_steps=every)
    at_once = _require_memory(work, settings, prepared)
    if not (own / LOSSES).exists():
        _run(work, own, settings, window, {}, trial=True, at_once=at_once)
        for path in own.glob("*.safetensors"):
            path.unlink()
    losses = iter(json.loads((own / LOSSES).read_text()))
    found: dict[str, list[float]] = {}
    for key, size in zip(prepared.keys, prepared.sizes, strict=True):
        found.setdefault(key, []).extend(next(losses) for _ in range(size))
    return found


def choose_settings(
    request: TrainingRequest, prepared: Prepared, differ: bool = False
) -> RowSettings:
    """The settings of the loop: what was asked for, and defaults that go with the data. `differ`:
    epochs show other forms of rows.
    """
    defaults = _DEFAULTS[request.method]
    wanted = defaults.batch if request.batch is None else request.batch
    micro = (
        min(defaults.micro_batch, wanted) if request.micro_batch is None else request.micro_batch
    )
    # Every process computes whole micro-batches.
    whole = micro * request.processes
    batch = math.ceil(wanted / whole) * whole
    steps = None
    if request.minutes is None:
        steps = max(1, math.ceil((request.epochs or EPOCHS) * prepared.examples / batch))
    rate = request.learning_rate
    if rate is None:
        rate = defaults.rates[request.lora_rank == 0]
    weights = (
        balance_weights(prepared.liked, prepared.disliked)
        if request.method is Method.KTO
        else (1.0, 1.0)
    )
    return RowSettings(
        steps=steps, minutes=request.minutes, method=request.method.value, beta=request.beta,
        sft_weight=request.sft_weight,
        learning_rate=rate,
        batch_examples=batch, micro_batch=micro, lora_rank=request.lora_rank,
        every_steps=(
            space_evaluations(steps, batch, sum(prepared.sizes), EVALUATIONS) if steps else 0
        ),
        patience=request.patience,
        checkpointing=request.checkpointing, seed=request.seed, warm_up=0.1,
        liked_weight=weights[0], disliked_weight=weights[1],
        freeze_embeddings=request.lora_rank == 0 and prepared.tokens < FEW_TOKENS,
        augment=request.augment.as_dict() if differ else None,
    )  # fmt: skip


def space_evaluations(steps: int, batch: int, held_out: int, wanted: int) -> int:
    """Steps between two evaluations on so many held-out examples, of about `wanted` in all."""
    least = math.ceil(held_out * FORWARD_SHARE / (batch * EVALUATION_SHARE))
    return max(1, steps // wanted, least)


def _make_limits(folder: Path, request: TrainingRequest, began_s: float) -> dict[str, Any]:
    if request.minutes is None:
        return {}
    path = folder / "state.json"
    spent_s = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
    preparing_s = time.monotonic() - began_s
    return {
        "started_s": time.monotonic(), "budget_s": 60 * request.minutes, "spent_s": preparing_s,
        "deadline_s": began_s + 60 * request.minutes - spent_s,
    }  # fmt: skip


def _describe(request: TrainingRequest, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The recipe: all that the result depends on, besides the model."""
    held_out = digest_rows(request.held_out_files) if request.held_out_files else None
    asked = ("epochs", "minutes", "learning_rate", "lora_rank", "window", "batch", "micro_batch",
             "beta", "sft_weight", "seed", "patience")  # fmt: skip
    return {
        "step": "train", "version": VERSION, "method": request.method.value,
        "data": request.name, "data_sha256": digest_rows(request.files),
        "held_out_sha256": held_out, "templates_sha256": tokenizer.templates_sha256,
        **{name: getattr(request, name) for name in asked},
        **({} if request.augment == AS_IT_IS else {"augment": request.augment.as_dict()}),
        **({"adapter": True} if request.adapter else {}),
        **({} if request.processes == 1 else {"processes": request.processes}),
    }  # fmt: skip
