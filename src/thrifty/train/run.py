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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.sources import fetch_model
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import TrainingError
from thrifty.home import Home, make_private_folder
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import Example, encode_row, write_examples
from thrifty.train.figures import summarize
from thrifty.train.process import read_report, require_memory, require_training, run_worker
from thrifty.train.register import register_trained
from thrifty.train.rows import (
    Method,
    Row,
    SetAside,
    choose_held_out,
    digest_rows,
    read_rows,
)
from thrifty.train.settings import RowSettings, balance_weights
from thrifty.types import Family, OnProgress, Progress, ignore_progress

VERSION = 1
"""Increase it when training changes, so that models are trained again."""
WORKER = "thrifty.train.worker"
WINDOW = 1024
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 256
"""This share of the rows is held out, and at most so many of them."""
LEAST_ROWS = 10
EPOCHS = 3.0
LORA_RANK = 16
EVALUATIONS = 10
"""A training in epochs is evaluated so often."""
FEW_TOKENS = 1_000_000
"""With fewer than these, a model that is trained as a whole keeps its token embeddings: most of
them are seen too rarely."""
FEW_ROWS = 50
"""With fewer rows than these, people are warned."""

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
}


@dataclass(frozen=True)
class TrainingRequest:
    """Which model learns from which rows, and how. None takes the method's default."""

    model: str
    """A decoder with a chat template: a stored name, a source, or a path."""
    data: Path | Sequence[Path]
    """JSON lines (`rows`), in one file or several."""
    method: Method
    out: str
    """The new model's name."""
    data_name: str | None = None
    """What the lineage calls the data. Default: the file's name."""
    held_out: Path | Sequence[Path] | None = None
    """Rows to evaluate on during the training. Default: a tenth of `data`, by prompt."""
    epochs: float | None = None
    """Passes over the rows; this or `minutes`. Default: 3 epochs."""
    minutes: float | None = None
    learning_rate: float | None = None
    lora_rank: int = LORA_RANK
    """0 trains all weights."""
    window: int = WINDOW
    """Rows with more tokens are set aside."""
    batch: int | None = None
    """Rows in a step."""
    micro_batch: int | None = None
    """Rows that are computed at once."""
    beta: float = 0.1
    checkpointing: bool = False
    seed: int = 0
    patience: int = 4
    resume: bool = False
    """Refuse to begin: there must be a training that was stopped."""

    @property
    def files(self) -> list[Path]:
        """The files of rows to learn from."""
        return [self.data] if isinstance(self.data, Path) else list(self.data)

    @property
    def held_out_files(self) -> list[Path]:
        """The files of rows to evaluate on; none where some of the others are held out."""
        return [self.held_out] if isinstance(self.held_out, Path) else list(self.held_out or ())

    @property
    def name(self) -> str:
        """What the lineage and messages call the data."""
        return self.data_name or ", ".join(path.name for path in self.files)


@dataclass(frozen=True)
class _Prepared:
    """Rows as examples, and what is known of them."""

    learned: list[Example]
    held_out: list[Example]
    figures: dict[str, Any]
    liked: int
    disliked: int


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
    _check(request)
    version, artifact = fetch_model(store, request.model, on_progress=on_progress)
    if artifact.description.family is not Family.DECODER:
        raise TrainingError(f"{version.label} is an encoder; rows are learned by decoders")
    plain = make_plain(store, version, artifact, on_progress)
    tokenizer = TextTokenizer.load(store.folder_of(plain[1].id))
    try:
        tokenizer.find_template()
    except WireError as error:
        raise TrainingError(f"{version.label}: {error.message}") from None
    recipe = _describe(request, tokenizer)
    made = store.find_made(plain[1].id, recipe)
    if made is not None and made[0].name == request.out:
        return made
    key = hashlib.sha256(json.dumps([plain[1].id, recipe], sort_keys=True).encode()).hexdigest()
    folder = make_private_folder(home.trainings / key[:24])
    with lock_file(folder / "lock"):
        if request.resume and not (folder / "state.json").exists():
            raise TrainingError(
                "there is no training to resume with this model, data and settings; leave out "
                "--resume"
            )
        report, figures = _train(
            store, plain, folder, request, tokenizer, began_s, on_progress, on_note
        )
        weights = SafetensorsFiles([folder / "trained.safetensors"])
        found = register_trained(
            store,
            plain,
            weights,
            request.out,
            recipe,
            {**summarize(report), **figures},
            on_progress,
        )
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _train(
    store: Store,
    plain: tuple[NamedVersion, Artifact],
    folder: Path,
    request: TrainingRequest,
    tokenizer: TextTokenizer,
    began_s: float,
    on_progress: OnProgress,
    on_note: OnNote,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of the process, and the figures of the rows."""
    prepared = prepare_rows(request, tokenizer, on_progress, on_note)
    settings = choose_settings(request, prepared.learned, prepared.liked, prepared.disliked)
    source = store.folder_of(plain[1].id)
    longest = max(len(text.tokens) for one in prepared.learned for text in one.texts)
    texts = settings.micro_batch * (1 if request.method is Method.SFT else 2)
    require_memory(
        load_decoder(source).shape, plain[1].description.parameters,
        replace(settings, micro_batch=texts), longest,
        frozen_copies=request.method is not Method.SFT and not settings.lora_rank,
    )  # fmt: skip
    report = read_report(folder)
    if report is None:
        write_examples(folder / "learned.jsonl", prepared.learned)
        write_examples(folder / "held-out.jsonl", prepared.held_out)
        job = {
            "model": str(source), "pid": os.getpid(), "settings": asdict(settings),
            "limits": _make_limits(folder, request, began_s),
        }  # fmt: skip
        report = run_worker(WORKER, job, folder, 1, on_progress, on_note)
    details = {}
    if report["details"]:
        best = max(
            (one for one in report["details"] if one[0] <= report["best_step"]), default=None
        )
        first, last = report["details"][0][1], (best or report["details"][-1])[1]
        details = {name: {"before": first.get(name), "after": last[name]} for name in last}
    chosen = {
        "method": request.method.value, "rows": prepared.figures, "details": details,
        "data_paths": [str(path.absolute()) for path in request.files],
        "batch": settings.batch_examples, "lora_rank": settings.lora_rank,
        "weights": [settings.liked_weight, settings.disliked_weight],
    }  # fmt: skip
    return report, chosen


def prepare_rows(
    request: TrainingRequest,
    tokenizer: TextTokenizer,
    on_progress: OnProgress = ignore_progress,
    on_note: OnNote = lambda text: None,
) -> _Prepared:
    """The examples to learn from and to evaluate on. Tells what was set aside. Raises
    `TrainingError` for rows that nothing can be learned from.
    """
    aside = SetAside()
    known = _encode(request.files, request, tokenizer, aside, on_progress)
    rows = [row for row, _ in known]
    if not request.held_out_files:
        apart = choose_held_out(rows, HELD_OUT_SHARE, MOST_HELD_OUT)
        judged = [known[number] for number in sorted(apart)]
        learned = [one for number, one in enumerate(known) if number not in apart]
    else:
        judged = _encode(request.held_out_files, request, tokenizer, SetAside(), on_progress)
        keys = {row.key for row, _ in judged}
        learned = []
        for one in known:
            if one[0].key in keys:
                aside.note("held_out", one[0].line)
            else:
                learned.append(one)
    for sentence in aside.describe():
        on_note(sentence)
    liked = sum(row.label for row, _ in learned)
    _check_rows(request, len(learned), len(judged), liked, aside)
    if len(learned) < FEW_ROWS:
        on_note(
            f"{len(learned)} rows are few: what is learned from them says little about other "
            "questions; judge the result before it serves (thrifty gate)"
        )
    examples = [example for _, found in learned for example in found]
    held_out = [example for _, found in judged for example in found]
    figures = {
        "read": len(known) + sum(aside.counts.values()) - aside.counts["held_out"],
        "learned": len(learned), "held_out": len(judged), "examples": len(examples),
        "tokens": sum(example.tokens for example in examples), "set_aside": aside.as_dict(),
    }  # fmt: skip
    if request.method is Method.KTO:
        figures |= {"liked": liked, "disliked": len(learned) - liked}
    return _Prepared(examples, held_out, figures, liked, len(learned) - liked)


def _encode(
    paths: Sequence[Path],
    request: TrainingRequest,
    tokenizer: TextTokenizer,
    aside: SetAside,
    on_progress: OnProgress,
) -> list[tuple[Row, list[Example]]]:
    found = []
    for row in read_rows(paths, request.method, aside):
        examples = encode_row(row, request.method, tokenizer, request.window)
        if isinstance(examples, str):
            aside.note(examples, row.line)
        else:
            found.append((row, examples))
        on_progress(Progress("read", row.line, 0, "rows"))
    return found


def _check_rows(
    request: TrainingRequest, learned: int, held_out: int, liked: int, aside: SetAside
) -> None:
    if learned + held_out < LEAST_ROWS or not learned or not held_out:
        said = "; ".join(aside.describe())
        raise TrainingError(
            f"{request.name} has {learned} usable {request.method.value} rows to learn from and "
            f"{held_out} with other prompts to evaluate on; at least {LEAST_ROWS} are needed, with "
            f"two different prompts{'. ' + said if said else ''}"
        )
    if request.method is Method.KTO and liked in (0, learned):
        kind = "liked" if liked else "disliked"
        raise TrainingError(
            f"all {learned} answers of {request.name} are {kind}; KTO needs both kinds. Collect "
            "more feedback, or learn from liked answers with --method sft"
        )


def choose_settings(
    request: TrainingRequest, examples: Sequence[Example], liked: int, disliked: int
) -> RowSettings:
    """The settings of the loop: what was asked for, and defaults that go with the data."""
    defaults = _DEFAULTS[request.method]
    micro = request.micro_batch or min(defaults.micro_batch, request.batch or defaults.batch)
    batch = math.ceil((request.batch or defaults.batch) / micro) * micro
    tokens = sum(example.tokens for example in examples)
    steps = None
    if request.minutes is None:
        steps = max(1, math.ceil((request.epochs or EPOCHS) * len(examples) / batch))
    weights = balance_weights(liked, disliked) if request.method is Method.KTO else (1.0, 1.0)
    return RowSettings(
        steps=steps, minutes=request.minutes, method=request.method.value, beta=request.beta,
        learning_rate=request.learning_rate or defaults.rates[request.lora_rank == 0],
        batch_examples=batch, micro_batch=micro, lora_rank=request.lora_rank,
        every_steps=max(1, steps // EVALUATIONS) if steps else 0, patience=request.patience,
        checkpointing=request.checkpointing, seed=request.seed, warm_up=0.1,
        liked_weight=weights[0], disliked_weight=weights[1],
        freeze_embeddings=request.lora_rank == 0 and tokens < FEW_TOKENS,
    )  # fmt: skip


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


def _check(request: TrainingRequest) -> None:
    if request.epochs is not None and request.minutes is not None:
        raise TrainingError("set how long it lasts: either --epochs or --minutes")
    if request.epochs is not None and not 0 < request.epochs < float("inf"):
        raise TrainingError(f"--epochs must be above 0, not {request.epochs:g}")
    if request.window < 32:
        raise TrainingError(f"--window must be at least 32 tokens, not {request.window}")
    for path in (*request.files, *request.held_out_files):
        if not path.is_file():
            raise TrainingError(f"{path} is no file; rows are read from a file of JSON lines")


def _describe(request: TrainingRequest, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The recipe: all that the result depends on, besides the model."""
    held_out = digest_rows(request.held_out_files) if request.held_out_files else None
    asked = ("epochs", "minutes", "learning_rate", "lora_rank", "window", "batch", "micro_batch",
             "beta", "seed", "patience")  # fmt: skip
    return {
        "step": "train", "version": VERSION, "method": request.method.value,
        "data": request.name, "data_sha256": digest_rows(request.files),
        "held_out_sha256": held_out, "templates_sha256": tokenizer.templates_sha256,
        **{name: getattr(request, name) for name in asked},
    }  # fmt: skip
