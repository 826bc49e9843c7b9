"""A training on rows in its own process: `child` says what it reads and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.files import write_atomically
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.child import Prepared, load_trained, run_child, run_job
from thrifty.train.contrastive import Contrastive
from thrifty.train.examples import Example, read_examples
from thrifty.train.forms import open_forms
from thrifty.train.objectives import Judged, Pairs, Supervised
from thrifty.train.prepare import HELD_OUT, LEARNED, LOSSES
from thrifty.train.rows import Method
from thrifty.train.settings import RowSettings
from thrifty.train.student import Student


def train(folder: Path, job: dict[str, Any]) -> None:
    """Run a job. A trial (`job["trial"]`) leaves a loss for each held-out example, and no model."""
    settings = RowSettings(**job["settings"])
    made: list[Any] = []

    def prepare() -> Prepared:
        encoder = settings.method == Method.CONTRASTIVE
        source = Path(job["model"])
        model = load_trained(
            source, settings, "AutoModel" if encoder else "AutoModelForCausalLM",
            freeze_embeddings=settings.freezes_embeddings, changes=job.get("changes"),
        )  # fmt: skip
        learned = _read_learned(folder, job, settings)
        held_out = [example for row in read_examples(folder / HELD_OUT) for example in row]
        student = model if encoder else Student(model)
        if encoder:
            # Embeddings are pooled without it, so that it has no gradient.
            if getattr(model, "pooler", None) is not None:
                model.pooler.requires_grad_(False)
            pooling = load_encoder(source).shape.pooling
            made.append(Contrastive(learned, held_out, settings, pooling))
        elif settings.method == Method.SFT:
            made.append(Supervised(learned, held_out, settings))
        else:
            make = Pairs if settings.method == Method.DPO else Judged
            made.append(make(learned, held_out, settings, student))
        return model, student, made[0]

    def score(model: Any, device: Any) -> None:
        losses = made[0].measure_each(model, device)
        write_atomically(folder / LOSSES, json.dumps(losses))

    run_job(folder, job, settings, prepare, "train", score if job.get("trial") else None)


def _read_learned(folder: Path, job: dict[str, Any], settings: RowSettings) -> Sequence[Example]:
    rows = list(read_examples(folder / LEARNED))
    if settings.augment is None:
        return [example for row in rows for example in row]
    tokenizer = TextTokenizer.load(Path(job["model"]))
    return open_forms(
        folder, rows, settings.augment, Method(settings.method), tokenizer, job["window"],
        settings.seed,
    )  # fmt: skip


if __name__ == "__main__":
    run_child(train)
