"""The inputs of a training: which teacher, which parts, and the job that the worker reads."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderShape, load_decoder
from thrifty.artifacts.encoder_checkpoint import EncoderShape, load_encoder
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.distill.answers import RemoteTeacher, Sampling, serve_remote
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.teaching import (
    TOP_K,
    Teacher,
    Teaching,
    describe_tallies,
    plan_parts,
)
from thrifty.compress.mix import Mix
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import CompressionError
from thrifty.evaluate.answers import ServeModel
from thrifty.evaluate.backends import DEFAULT_BACKEND
from thrifty.evaluate.narrowed import NarrowedVocabulary, find_narrowed
from thrifty.evaluate.narrowed_teacher import narrow_teacher
from thrifty.evaluate.open_model import digest_vocabulary, is_url, open_model
from thrifty.evaluate.windows import read_texts
from thrifty.files import replace_atomically, write_atomically
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress

WINDOW = 512
ENCODER_WINDOW = 256
HELD_OUT_TOKENS = 8192
"""Held-out tokens at the beginning of each text, over all texts; at most a tenth of them."""
ENCODER_BATCH = 16
"""Texts in a batch; the loss compares their similarities with one another."""
VERSION = 6
"""Increase it when training changes, so that students are trained again."""


OnNote = Callable[[str], None]


class TrainingInputs:
    """Plans a training's job and writes the files that its worker reads."""

    def __init__(
        self,
        store: Store,
        student: tuple[NamedVersion, Artifact],
        text: Mix,
        training: Training,
        window: int,
        kept: Path,
        on_progress: OnProgress,
        on_note: OnNote,
    ) -> None:
        """`kept` is the folder of answers and predictions."""
        self._store = store
        self._student, artifact = student
        self._family = artifact.description.family
        self._source = store.folder_of(artifact.id)
        self._text = text
        self._training = training
        self._window = window
        self._kept = kept
        self._on_progress = on_progress
        self._on_note = on_note
        self._tokenizer = TextTokenizer.load(self._source)
        self._teacher: Teacher | None = None
        self._teaching: Teaching | None = None
        load = load_encoder if self._family is Family.ENCODER else load_decoder
        self.shape: DecoderShape | EncoderShape = load(self._source).shape

    @property
    def s_per_token(self) -> float:
        """How long the teacher works for another token, as measured; 0 if it is unknown."""
        teaching = self._open_teaching()
        return teaching.effort.s_per_token(teaching.answered)

    @property
    def asks(self) -> bool:
        """Whether a teacher answers prompts."""
        return self._open_teaching().answered > 0

    def plan(
        self, teacher: str | RemoteTeacher, live: str | None, serve: ServeModel | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The worker's job and the lineage's recipe; does not run the teacher.

        `live` is the backend of a teacher that is queried during training; None if it is not.
        `serve` serves a teacher on this machine, to be asked; None: it is not asked.
        """
        training = self._training
        recipe: dict[str, Any] = {
            "step": "distill", "version": VERSION, "window": self._window,
            "text_sha256": self._text.sha256, **asdict(training),
        }  # fmt: skip
        # No distillation has them; recipes are those of before.
        del recipe["steps"], recipe["batch_examples"]
        job: dict[str, Any] = {
            "family": self._family.value, "student": str(self._source), "pid": os.getpid(),
            "held_out_tokens": HELD_OUT_TOKENS, "training": asdict(training),
            "window": self._window,
        }  # fmt: skip
        remote = isinstance(teacher, RemoteTeacher) or is_url(teacher)
        if remote and self._family is Family.ENCODER:
            raise CompressionError("an encoder can only learn from an encoder on this machine")
        if remote:
            served = teacher if isinstance(teacher, RemoteTeacher) else RemoteTeacher(teacher)
            self._plan_remote(served)
            return job, recipe | {
                "teacher": served.url, "teacher_model": served.model, "packed": True
            }  # fmt: skip
        assert isinstance(teacher, str)
        if self._family is Family.ENCODER:
            job |= self._from_encoder(teacher)
            job["training"]["micro_batch"] = max(training.micro_batch, ENCODER_BATCH)
        else:
            job |= self._from_local(teacher, live, serve)
            if live is not None:
                recipe["live"] = live
        return job, recipe | {"teacher": job["teacher_id"]}

    def _sampling(self) -> Sampling:
        training = self._training
        return Sampling(training.temperature, training.seed, self._window)

    def _plan_remote(self, served: RemoteTeacher) -> None:
        self._teacher = Teacher(
            f"{served.url} {served.model or ''}", served.url, self._tokenizer, self._sampling(),
            self._kept, serve=serve_remote(served), key_env=served.key_env, own=False,
        )  # fmt: skip

    def _from_local(
        self, teacher: str, live: str | None, serve: ServeModel | None
    ) -> dict[str, Any]:
        """A teacher on this machine. Its predictions are recorded beforehand, computed as when it
        serves, which is much faster than float32 and no worse to learn from; or it is queried
        during training (`live`).
        """
        store = self._store
        version, artifact = fetch_model(store, teacher, on_progress=self._on_progress)
        exact = live is not None
        scorer = open_model(
            version.label, store, exact=exact, backend=live or DEFAULT_BACKEND,
            on_progress=self._on_progress,
        )  # fmt: skip
        with contextlib.closing(scorer):
            narrowed = self._relate_tokens(scorer.label, scorer.tokenizer)
            label, identity = scorer.label, narrow_teacher(scorer, narrowed).identity
        asks = serve is not None and self._training.answers
        self._teacher = Teacher(
            identity, label, self._tokenizer, self._sampling(), self._kept,
            open=None if exact else lambda: narrow_teacher(open_model(version.label, store), narrowed),
            serve=serve(version, artifact, self._on_progress) if serve is not None and asks else None,
        )  # fmt: skip
        job: dict[str, Any] = {"teacher_id": identity}
        if live is not None:
            job["live"] = {
                "teacher": version.label, "store": str(store.root), "k": TOP_K, "backend": live,
                "narrowed": narrowed is not None,
            }  # fmt: skip
        if self._training.hidden:
            plain = make_plain(store, version, artifact, self._on_progress)[1]
            job["layers"] = self._pair_layers(store.folder_of(plain.id), {artifact.id, plain.id})
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
        if self._relate_tokens(version.label, TextTokenizer.load(folder)) is not None:
            raise CompressionError(
                f"the student has fewer tokens than {version.label}; an encoder learns from one "
                "with the same tokens"
            )
        return {"teacher": str(folder), "teacher_id": artifact.id, "texts": "texts.jsonl"}

    def extend(
        self, job: dict[str, Any], folder: Path, tokens: int, within_s: float | None = None
    ) -> int:
        """Have so many tokens to learn from, held-out ones included, and write the job; returns how
        many there are.

        What was there before keeps its place. Blocks while the teacher works, which ends after
        `within_s`; there are fewer tokens then.
        """
        if self._teacher is not None:
            tokens = self._extend_parts(job, folder, tokens, within_s)
        if job.get("texts") == "texts.jsonl" and not (folder / "texts.jsonl").exists():
            with replace_atomically(folder / "texts.jsonl") as path:
                with path.open("w") as file:
                    texts = self._read_short_texts(tokens)
                    count = sum(file.write(line) > 0 for line in texts)
                if count < 2 * ENCODER_BATCH:
                    raise CompressionError(f"{self._text.name} is too short: it has {count} texts")
        write_atomically(folder / "job.json", json.dumps(job))
        return tokens

    def _open_teaching(self) -> Teaching:
        assert self._teacher is not None
        if self._teaching is None:
            parts = plan_parts(self._text, asks=self._teacher.serve is not None)
            if not self._teacher.own:
                parts = [replace(part, answered=True) for part in parts]
            self._teaching = Teaching(self._teacher, parts, self._on_progress, self._on_note)
        return self._teaching

    def _extend_parts(
        self, job: dict[str, Any], folder: Path, tokens: int, within_s: float | None
    ) -> int:
        teaching = self._open_teaching()
        teaching.folder = folder
        # The note keeps what a training has learned from, for the next run to extend.
        path = folder / "parts.json"
        note = json.loads(path.read_text()) if path.exists() else {"totals": [], "ends": {}}
        if not note["totals"] or tokens > note["totals"][-1]:
            counts = teaching.extend(tokens, within_s)
            short = teaching.tokens < 2 * self._window
            if short and within_s is not None and not note["totals"]:
                return teaching.tokens  # Nothing can be held out of that.
            # What the time was too short for may be asked for again.
            note["totals"].append(tokens if within_s is None else teaching.tokens)
            note["prepared"] = teaching.tokens
            for part in teaching.parts:
                ends = note["ends"].setdefault(part.name, [])
                ends.append(max([counts.get(part.name, 0), *ends]))
            note["answers"] = describe_tallies(teaching.tallies) or note.get("answers", {})
            write_atomically(path, json.dumps(note))
        job["parts"] = [
            {"domain": part.name, "ends": note["ends"][part.name], **teaching.locate(part)}
            for part in teaching.parts
        ]
        job["answers"] = note.get("answers", {})
        return int(note.get("prepared", note["totals"][-1]))

    def _read_short_texts(self, most: int) -> Iterator[str]:
        """Lines of the text, or whole records, truncated to a window."""
        limit = min(self._window, load_encoder(self._source).shape.context_length)
        taken = 0
        pieces = (
            (source.path, piece)
            for source in self._text.sources
            for piece in read_texts(source.path)
        )
        for path, piece in pieces:
            texts = [piece.strip()] if path.suffix == ".jsonl" else piece.splitlines()
            for text in texts:
                tokens = self._tokenizer.encode(text)
                if len(tokens) < 8:
                    continue
                # Truncation keeps the last special token.
                tokens = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
                yield json.dumps({"tokens": tokens, "first": 0}) + "\n"
                taken += len(tokens)
                if taken >= most:
                    return

    def _relate_tokens(self, label: str, tokenizer: TextTokenizer) -> NarrowedVocabulary | None:
        """How the student's tokens relate to a teacher's; None if they are the same."""
        if digest_vocabulary(self._tokenizer) == digest_vocabulary(tokenizer):
            return None
        narrowed = find_narrowed(tokenizer, self._tokenizer)
        if narrowed is None:
            raise CompressionError(
                f"the student and {label} have different tokenizers, and the student's was not made "
                "of the teacher's by removing tokens, so the student cannot learn the teacher's "
                "next tokens; a served teacher works, because it contributes text"
            )
        return narrowed

    def _pair_layers(self, teacher: Path, teacher_ids: set[str]) -> list[int] | None:
        """The teacher's hidden state for each of the student's, if the removed layers are known."""
        theirs, ours = load_decoder(teacher).shape, load_decoder(self._source).shape
        if theirs.hidden_size != ours.hidden_size:
            raise CompressionError(
                f"hidden states of {ours.hidden_size} and {theirs.hidden_size} channels cannot be "
                "compared; prune with --depth-only, or leave out --hidden"
            )
        made = itertools.takewhile(
            lambda one: one.artifact not in teacher_ids, walk_lineage(self._store, self._student)
        )
        kept = list(range(theirs.layers))
        # A model that was pruned in steps numbers its layers anew after each.
        for version in reversed(list(made)):
            gone = {entry["layer"] for entry in version.lineage.figures.get("layers_removed", ())}
            kept = [layer for number, layer in enumerate(kept) if number not in gone]
        if len(kept) != ours.layers:
            return None
        return [0, *(layer + 1 for layer in kept[:-1]), theirs.layers]
