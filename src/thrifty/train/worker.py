"""A training on rows in its own process: `child` says what it reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.artifacts.checkpoint import load_encoder
from thrifty.train.child import Prepared, load_trained, run_child, run_job
from thrifty.train.contrastive import Contrastive
from thrifty.train.examples import read_examples
from thrifty.train.objectives import Judged, Pairs, Supervised
from thrifty.train.prepare import HELD_OUT, LEARNED
from thrifty.train.rows import Method
from thrifty.train.settings import RowSettings
from thrifty.train.student import Student


def train(folder: Path, job: dict[str, Any]) -> None:
    """Run a job."""
    settings = RowSettings(**job["settings"])

    def prepare() -> Prepared:
        encoder = settings.method == Method.CONTRASTIVE
        source = Path(job["model"])
        model = load_trained(
            source, settings, "AutoModel" if encoder else "AutoModelForCausalLM",
            freeze_embeddings=settings.freezes_embeddings,
        )  # fmt: skip
        learned = list(read_examples(folder / LEARNED))
        held_out = list(read_examples(folder / HELD_OUT))
        if encoder:
            pooling = load_encoder(source).shape.pooling
            return model, model, Contrastive(learned, held_out, settings, pooling)
        student = Student(model)
        if settings.method == Method.SFT:
            return model, student, Supervised(learned, held_out, settings)
        make = Pairs if settings.method == Method.DPO else Judged
        return model, student, make(learned, held_out, settings, student)

    run_job(folder, job, settings, prepare, "train")


if __name__ == "__main__":
    run_child(train)
