"""A distillation in its own process, or in several: `thrifty.train.child` says what it reads and
writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.compress.distill.next_tokens import NextTokens
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.teaching import read_windows
from thrifty.compress.distill.training_examples import (
    LinePieces,
    LiveTeacher,
    Part,
    Pieces,
    RecordedPieces,
    TrainingExamples,
)
from thrifty.evaluate.narrowed import find_narrowed
from thrifty.evaluate.narrowed_teacher import narrow_teacher
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.reference import open_record
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.child import Prepared, load_trained, run_child, run_job
from thrifty.train.student import Student
from thrifty.types import Family


def train(folder: Path, job: dict[str, Any]) -> None:
    """Run a job."""
    training = Training(**job["training"])

    def prepare() -> Prepared:
        if job["family"] == Family.ENCODER.value:
            from thrifty.compress.distill.embeddings import make_objective

            model, embeddings = make_objective(job, training)
            return model, model, embeddings
        model = load_trained(
            Path(job["student"]), training, freeze_embeddings=training.freezes_embeddings
        )
        examples = _open_examples(job, training)
        held_out = examples.choose_held_out(job["held_out_tokens"], job["held_out_share"])
        ends = TextTokenizer.load(Path(job["student"])).find_turn_ends()
        objective = NextTokens(examples, held_out, training, job.get("layers"), ends)
        return model, Student(model), objective

    run_job(folder, job, training, prepare, "distill")


def _open_examples(job: dict[str, Any], training: Training) -> TrainingExamples:
    live = _open_live(job, training) if "live" in job else None
    parts = []
    for one in job["parts"]:
        if "record" in one:
            pieces: Pieces = RecordedPieces(open_record(Path(one["record"])))
        else:
            pieces = LinePieces(read_windows(Path(one["lines"])), live)
        parts.append(Part(one["domain"], pieces, one["ends"]))
    has_teacher = live is not None or any("record" in one for one in job["parts"])
    return TrainingExamples(parts, job["window"], has_teacher=has_teacher, live=live)


def _open_live(job: dict[str, Any], training: Training) -> LiveTeacher:
    live = job["live"]
    teacher = open_model(
        live["teacher"], Store(Path(live["store"])), exact=True, backend=live["backend"]
    )
    narrowed = None
    if live["narrowed"]:
        narrowed = find_narrowed(teacher.tokenizer, TextTokenizer.load(Path(job["student"])))
    seen = narrow_teacher(teacher, narrowed)
    return LiveTeacher(seen, live["k"], hidden=training.hidden > 0)


if __name__ == "__main__":
    run_child(train)
