"""The inputs of a training: the teacher's predictions and the text, as the worker reads them."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import (
    DecoderShape,
    EncoderShape,
    load_decoder,
    load_encoder,
)
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.distill.answers import RemoteTeacher, write_answers
from thrifty.compress.distill.settings import Training
from thrifty.errors import CompressionError
from thrifty.evaluate.open_model import digest_vocabulary, is_url, open_model
from thrifty.evaluate.plain_checkpoint import make_plain
from thrifty.evaluate.run import record_reference
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.windows import digest_file, read_texts, read_windows
from thrifty.files import replace_atomically, write_atomically
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress

WINDOW = 512
ENCODER_WINDOW = 256
TOP_K = 64
HELD_OUT_TOKENS = 8192
"""Held-out tokens at the end of the text, for evaluation during training; at most a tenth of it."""
ENCODER_BATCH = 16
"""Texts in a batch; the loss compares their similarities with one another."""
VERSION = 3
"""Increase it when training changes, so that students are trained again."""


class TrainingInputs:
    """Plans a training's job and writes the files that its worker reads."""

    def __init__(
        self,
        store: Store,
        student: tuple[NamedVersion, Artifact],
        text: Path,
        training: Training,
        window: int,
        references: Path,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._student, artifact = student
        self._family = artifact.description.family
        self._source = store.folder_of(artifact.id)
        self._text = text
        self._training = training
        self._window = window
        self._references = references
        self._on_progress = on_progress
        self._tokens = training.tokens + HELD_OUT_TOKENS
        self._tokenizer = TextTokenizer.load(self._source)
        self._teacher: Scorer | None = None
        """A teacher whose predictions are still to be recorded."""
        self._remote: RemoteTeacher | None = None
        load = load_encoder if self._family is Family.ENCODER else load_decoder
        self.shape: DecoderShape | EncoderShape = load(self._source).shape

    def plan(
        self, teacher: str | RemoteTeacher, live: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The worker's job and the lineage's recipe; does not run the teacher.

        `live` is the backend of a teacher that is queried during training; None if it is not.
        """
        training = self._training
        recipe: dict[str, Any] = {
            "step": "distill", "version": VERSION, "window": self._window,
            "text_sha256": digest_file(self._text), **asdict(training),
        }  # fmt: skip
        job: dict[str, Any] = {
            "family": self._family.value, "student": str(self._source), "pid": os.getpid(),
            "held_out_tokens": HELD_OUT_TOKENS, "training": asdict(training),
        }  # fmt: skip
        remote = isinstance(teacher, RemoteTeacher) or is_url(teacher)
        if remote and self._family is Family.ENCODER:
            raise CompressionError("an encoder can only learn from an encoder on this machine")
        if remote:
            self._remote = teacher if isinstance(teacher, RemoteTeacher) else RemoteTeacher(teacher)
            recipe |= {
                "teacher": self._remote.url, "teacher_model": self._remote.model, "packed": True
            }  # fmt: skip
            return job | {"texts": "answers.jsonl", "window": self._window}, recipe
        assert isinstance(teacher, str)
        if self._family is Family.ENCODER:
            job |= self._from_encoder(teacher)
            job["training"]["micro_batch"] = max(training.micro_batch, ENCODER_BATCH)
        elif live is not None:
            job |= self._from_live(teacher, live)
            recipe["live"] = live
        else:
            job |= self._from_kept(teacher)
        return job, recipe | {"teacher": job["teacher_id"]}

    def close(self) -> None:
        """Free the teacher."""
        if self._teacher is not None:
            self._teacher.close()
            self._teacher = None

    def _from_kept(self, teacher: str) -> dict[str, Any]:
        """A teacher whose predictions are recorded beforehand, computed as when it serves: much
        faster than float32, and no worse to learn from.
        """
        self._teacher = open_model(teacher, self._store, on_progress=self._on_progress)
        self._check_tokens(self._teacher.label, self._teacher.tokenizer)
        return {"teacher_id": self._teacher.identity}

    def _from_live(self, teacher: str, backend: str) -> dict[str, Any]:
        """A teacher that is queried during training."""
        version, artifact = fetch_model(self._store, teacher, on_progress=self._on_progress)
        scorer = open_model(
            version.label, self._store, exact=True, backend=backend, on_progress=self._on_progress
        )
        with contextlib.closing(scorer):
            self._check_tokens(scorer.label, scorer.tokenizer)
            job: dict[str, Any] = {
                "teacher_id": scorer.identity,
                "live": {"teacher": version.label, "store": str(self._store.root), "k": TOP_K,
                         "backend": backend},
            }  # fmt: skip
        if self._training.hidden:
            plain = make_plain(self._store, version, artifact, self._on_progress)[1]
            job["layers"] = self._pair_layers(self._store.folder_of(plain.id))
        return job

    def _from_encoder(self, teacher: str) -> dict[str, Any]:
        """A teacher for an encoder: another encoder on this machine."""
        version, artifact = fetch_model(self._store, teacher, on_progress=self._on_progress)
        if artifact.description.family is not Family.ENCODER:
            raise CompressionError(
                f"{version.label} is a decoder; an encoder learns from an encoder"
            )
        if artifact.description.format is not Format.SAFETENSORS:
            raise CompressionError(
                f"{version.label} is {artifact.description.format.value}; an encoder learns from a "
                "safetensors checkpoint"
            )
        folder = self._store.folder_of(artifact.id)
        self._check_tokens(version.label, TextTokenizer.load(folder))
        return {"teacher": str(folder), "teacher_id": artifact.id, "texts": "texts.jsonl"}

    def write(self, job: dict[str, Any], folder: Path) -> None:
        """Write the job and its inputs: the teacher's predictions, or the tokenized text."""
        if self._teacher is not None:
            record = record_reference(
                self._teacher, self._text, self._references, window=self._window, top_k=TOP_K,
                max_tokens=self._tokens, on_progress=self._on_progress,
            )  # fmt: skip
            job["kept"] = str(record.folder)
            self.close()
        if self._remote is not None:
            write_answers(
                self._remote, self._tokenizer, self._text, folder / "answers.jsonl",
                tokens=self._tokens, window=self._window, on_progress=self._on_progress,
            )  # fmt: skip
        if "live" in job and not (folder / "windows.npy").exists():
            stream = read_windows(self._text, self._tokenizer, self._window, self._tokens)
            whole = [tokens for tokens in stream if len(tokens) == self._window]
            if len(whole) < 2:
                raise CompressionError(
                    f"{self._text} is too short: {len(whole)} windows of {self._window} tokens"
                )
            with replace_atomically(folder / "windows.npy") as path, path.open("wb") as file:
                np.save(file, np.array(whole, np.uint32), allow_pickle=False)
        if job.get("texts") == "texts.jsonl" and not (folder / "texts.jsonl").exists():
            with replace_atomically(folder / "texts.jsonl") as path:
                with path.open("w") as file:
                    count = sum(file.write(line) > 0 for line in self._read_short_texts())
                if count < 2 * ENCODER_BATCH:
                    raise CompressionError(f"{self._text} is too short: it has {count} texts")
        write_atomically(folder / "job.json", json.dumps(job))

    def _read_short_texts(self) -> Any:
        """Lines of the text, or whole records, truncated to a window."""
        limit = min(self._window, load_encoder(self._source).shape.context_length)
        taken = 0
        for piece in read_texts(self._text):
            texts = [piece.strip()] if self._text.suffix == ".jsonl" else piece.splitlines()
            for text in texts:
                tokens = self._tokenizer.encode(text)
                if len(tokens) < 8:
                    continue
                # Truncation keeps the last special token.
                tokens = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
                yield json.dumps({"tokens": tokens, "first": 0}) + "\n"
                taken += len(tokens)
                if taken >= self._tokens:
                    return

    def _check_tokens(self, label: str, tokenizer: TextTokenizer) -> None:
        if digest_vocabulary(self._tokenizer) != digest_vocabulary(tokenizer):
            raise CompressionError(
                f"the student and {label} have different tokenizers, so the student cannot learn "
                "the teacher's next tokens; a served teacher works, because it contributes text"
            )

    def _pair_layers(self, teacher: Path) -> list[int] | None:
        """The teacher's hidden state for each of the student's, if the removed layers are known."""
        theirs, ours = load_decoder(teacher).shape, load_decoder(self._source).shape
        if theirs.hidden_size != ours.hidden_size:
            raise CompressionError(
                f"hidden states of {ours.hidden_size} and {theirs.hidden_size} channels cannot be "
                "compared; prune with --depth-only, or leave out --hidden"
            )
        gone = {entry["layer"] for entry in self._student.lineage.figures.get("layers_removed", ())}
        kept = [layer for layer in range(theirs.layers) if layer not in gone]
        if len(kept) != ours.layers:
            return None
        return [0, *(layer + 1 for layer in kept[:-1]), theirs.layers]
