"""Distil a student from a teacher: from two models and a text to a registered checkpoint.

The teacher's words are kept beforehand or asked for while the student learns; the training itself runs in a
process of its own (`worker`), or in one for each GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import (
    DecoderCheckpoint,
    DecoderShape,
    EncoderCheckpoint,
    EncoderShape,
    load_decoder,
    load_encoder,
)
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.calibration import check_no_overlap
from thrifty.compress.distill.answers import RemoteTeacher, write_answers
from thrifty.compress.distill.settings import Training
from thrifty.engines.machine import available_memory_bytes
from thrifty.engines.openvino.prepare import write_tokenizer
from thrifty.engines.server.text import TextTokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.open_model import digest_vocabulary, is_url, open_model
from thrifty.evaluate.plain_checkpoint import make_plain
from thrifty.evaluate.run import record_reference
from thrifty.evaluate.windows import digest_file, read_texts, read_windows
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

WINDOW = 512
ENCODER_WINDOW = 256
TOP_K = 64
HELD_OUT_TOKENS = 8192
"""At the end of the text, to look at while training; at most a tenth of it."""
ENCODER_BATCH = 16
"""Texts that are compared with one another."""
VERSION = 3
"""Raised when training changes, so that students are trained anew."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""For glibc: memory that was freed is kept for what comes next. Handing large arrays back to the system and
taking them anew at every operation takes longer than the arithmetic.
"""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors")


def require_training() -> None:
    """Raise `CompressionError` where what training needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CompressionError(
            f"training needs {', '.join(missing)}, which is not installed: "
            "pip install 'thrifty[compress]'"
        )


def distill_model(
    store: Store,
    student: str,
    teacher: str | RemoteTeacher,
    *,
    text: Path,
    out: str,
    training: Training,
    references: Path,
    work: Path,
    held_out: Path | None = None,
    window: int | None = None,
    live: bool = False,
    backend: str = "openvino",
    processes: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """The student, trained to say what the teacher says, registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        student: What to train: a checkpoint, decoder or encoder.
        teacher: What it learns from: anything that `open_model` takes, with the same tokens; or where one is
            served, which then teaches by what it writes.
        text: Text to learn on; for a teacher that is served also `.jsonl` with prompts.
        out: The new model's name.
        training: How.
        references: Where the teacher's log-probabilities are kept.
        work: Where checkpoints of trainings are kept, each in a folder of its own.
        held_out: Text that the result will be judged by, which the other must not hold.
        window: Tokens that are read together; 512 for decoders, at most 256 for encoders.
        live: Ask the teacher while training instead of keeping its words beforehand.
        backend: What a live teacher runs on, `openvino` or `torch`.
        processes: How many train together: one for each GPU.
        on_progress: Told of every step.

    Raises `CompressionError`, `EvaluationError`, and what the store raises. What was killed goes on from
    its last checkpoint when it is asked for again.
    """
    require_training()
    if held_out is not None:
        check_no_overlap(text, held_out)
    version, artifact = fetch_model(store, student, on_progress=on_progress)
    plain_version, plain = make_plain(store, version, artifact, on_progress)
    source = store.folder_of(plain.id)
    encoder = artifact.description.family is Family.ENCODER
    window = window or (ENCODER_WINDOW if encoder else WINDOW)
    recipe: dict[str, Any] = {
        "step": "distill", "version": VERSION, "window": window, "text_sha256": digest_file(text),
        **asdict(training),
    }  # fmt: skip
    job: dict[str, Any] = {
        "family": artifact.description.family.value, "student": str(source), "pid": os.getpid(),
        "held_out_tokens": HELD_OUT_TOKENS, "training": asdict(training),
    }  # fmt: skip
    learn = _Learning(store, source, text, training, window, references, on_progress)
    if encoder:
        job |= learn.from_encoder(teacher)
        recipe["teacher"] = job["teacher_id"]
        job["training"]["micro_batch"] = max(training.micro_batch, ENCODER_BATCH)
    elif isinstance(teacher, RemoteTeacher) or is_url(teacher):
        remote = teacher if isinstance(teacher, RemoteTeacher) else RemoteTeacher(teacher)
        recipe |= {"teacher": remote.url, "teacher_model": remote.model, "packed": True}
        job |= {"texts": "answers.jsonl", "window": window}
    elif live or training.needs_live_teacher:
        if training.hidden:
            backend = "torch"
        job |= learn.from_live(teacher, backend, plain_version)
        recipe |= {"teacher": job["teacher_id"], "live": backend}
    else:
        job |= learn.from_kept(teacher)
        recipe["teacher"] = job["teacher_id"]
    made = store.find_made(plain.id, recipe)
    if made is not None and made[0].name == out:
        return made
    shape = (load_encoder(source) if encoder else load_decoder(source)).shape
    _require_memory(artifact.description.parameters, shape, Training(**job["training"]), window)
    key = hashlib.sha256(json.dumps([plain.id, recipe], sort_keys=True).encode()).hexdigest()[:24]
    folder = work / key
    job["folder"] = str(folder)
    with lock_file(folder / "lock"):
        if job.get("texts") == "answers.jsonl":
            write_answers(
                remote, TextTokenizer.load(source), text, folder / "answers.jsonl",
                tokens=training.tokens + HELD_OUT_TOKENS, window=window, on_progress=on_progress,
            )  # fmt: skip
        learn.write_inputs(job, folder)
        report = _run(job, folder, processes, on_progress)
        store.require_space(2 * artifact.description.parameters + 50_000_000, f"training {out}")
        with store.stage(f"distill {key}") as stage:
            target = stage / "model"
            shutil.rmtree(target, ignore_errors=True)
            weights = SafetensorsFiles([folder / "trained.safetensors"])
            if encoder:
                write_encoder(
                    EncoderCheckpoint(load_encoder(source).shape, weights), source, target
                )
            else:
                write_decoder(DecoderCheckpoint(load_decoder(source).shape, weights), target)
                write_tokenizer(source, target, plain)
            parent = Parent(plain.id, plain_version.label)
            lineage = Lineage(parents=(parent,), recipe=recipe, figures=report)
            found = store.add(target, out, lineage, on_progress=on_progress)
    shutil.rmtree(folder, ignore_errors=True)
    return found


class _Learning:
    """What a job says of its teacher and its text."""

    def __init__(
        self,
        store: Store,
        source: Path,
        text: Path,
        training: Training,
        window: int,
        references: Path,
        on_progress: OnProgress,
    ) -> None:
        self._store = store
        self._text = text
        self._training = training
        self._window = window
        self._references = references
        self._on_progress = on_progress
        self._tokens = training.tokens + HELD_OUT_TOKENS
        self._tokenizer = TextTokenizer.load(source)
        self._source = source

    def from_kept(self, teacher: str) -> dict[str, Any]:
        """A teacher whose words are kept: as it says them when it serves, which is many times faster
        than in float32, and no worse to learn from.
        """
        scorer = open_model(teacher, self._store, on_progress=self._on_progress)
        try:
            self._check_tokens(scorer.label, scorer.tokenizer)
            record = record_reference(
                scorer, self._text, self._references, window=self._window, top_k=TOP_K,
                max_tokens=self._tokens, on_progress=self._on_progress,
            )  # fmt: skip
            return {"kept": str(record.folder), "teacher_id": scorer.identity}
        finally:
            scorer.close()

    def from_live(self, teacher: str, backend: str, student: NamedVersion) -> dict[str, Any]:
        """A teacher that is asked while the student learns."""
        version, artifact = fetch_model(self._store, teacher, on_progress=self._on_progress)
        scorer = open_model(
            version.label, self._store, exact=True, backend=backend, on_progress=self._on_progress
        )
        try:
            self._check_tokens(scorer.label, scorer.tokenizer)
            job: dict[str, Any] = {
                "teacher_id": scorer.identity,
                "live": {"teacher": version.label, "store": str(self._store.root), "k": TOP_K,
                         "backend": backend},
            }  # fmt: skip
        finally:
            scorer.close()
        if self._training.hidden:
            plain = make_plain(self._store, version, artifact, self._on_progress)[1]
            job["layers"] = self._pair_layers(self._store.folder_of(plain.id), student)
        return job

    def from_encoder(self, teacher: str | RemoteTeacher) -> dict[str, Any]:
        """An encoder's teacher: another on this machine."""
        if isinstance(teacher, RemoteTeacher) or is_url(teacher):
            raise CompressionError("an encoder learns from an encoder on this machine")
        version, artifact = fetch_model(self._store, teacher, on_progress=self._on_progress)
        if artifact.description.family is not Family.ENCODER:
            raise CompressionError(
                f"{version.label} is a decoder; an encoder learns from an encoder"
            )
        if artifact.description.format is not Format.SAFETENSORS:
            raise CompressionError(
                f"{version.label} is {artifact.description.format.value}; an encoder learns from a "
                "checkpoint of safetensors"
            )
        folder = self._store.folder_of(artifact.id)
        self._check_tokens(version.label, TextTokenizer.load(folder))
        return {"teacher": str(folder), "teacher_id": artifact.id, "texts": "texts.jsonl"}

    def write_inputs(self, job: dict[str, Any], folder: Path) -> None:
        """The text as the worker reads it, where it is not kept otherwise; and the job."""
        if "live" in job and not (folder / "windows.npy").exists():
            stream = read_windows(self._text, self._tokenizer, self._window, self._tokens)
            whole = [tokens for tokens in stream if len(tokens) == self._window]
            if len(whole) < 2:
                raise CompressionError(
                    f"{self._text} is too short: {len(whole)} windows of {self._window} tokens"
                )
            beside = folder / "windows.part"
            with beside.open("wb") as file:
                np.save(file, np.array(whole, np.uint32), allow_pickle=False)
            beside.replace(folder / "windows.npy")
        if job.get("texts") == "texts.jsonl" and not (folder / "texts.jsonl").exists():
            beside = folder / "texts.part"
            with beside.open("w") as file:
                count = sum(file.write(line) > 0 for line in self._read_short_texts())
            if count < 2 * ENCODER_BATCH:
                raise CompressionError(f"{self._text} is too short: it has {count} texts")
            beside.replace(folder / "texts.jsonl")
        beside = folder / "job.part"
        beside.write_text(json.dumps(job))
        beside.replace(folder / "job.json")

    def _read_short_texts(self) -> Any:
        """Lines of the text, or whole records, cut to a window."""
        limit = min(self._window, load_encoder(self._source).shape.context_length)
        taken = 0
        for piece in read_texts(self._text):
            texts = [piece.strip()] if self._text.suffix == ".jsonl" else piece.splitlines()
            for text in texts:
                tokens = self._tokenizer.encode(text)
                if len(tokens) < 8:
                    continue
                # The last special token stays where a text is cut.
                tokens = tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]
                yield json.dumps({"tokens": tokens, "first": 0}) + "\n"
                taken += len(tokens)
                if taken >= self._tokens:
                    return

    def _check_tokens(self, label: str, tokenizer: TextTokenizer) -> None:
        if digest_vocabulary(self._tokenizer) != digest_vocabulary(tokenizer):
            raise CompressionError(
                f"the student and {label} have different tokenizers, so the one cannot learn the "
                "other's next tokens; a teacher that is served teaches by what it writes"
            )

    def _pair_layers(self, teacher: Path, student: NamedVersion) -> list[int] | None:
        """For each hidden state of the student, the teacher's: by what was pruned, where that is known."""
        theirs, ours = load_decoder(teacher).shape, load_decoder(self._source).shape
        if theirs.hidden_size != ours.hidden_size:
            raise CompressionError(
                f"hidden states of {ours.hidden_size} and of {theirs.hidden_size} channels cannot be "
                "compared; prune with --depth-only, or leave --hidden out"
            )
        gone = {entry["layer"] for entry in student.lineage.figures.get("layers_removed", ())}
        kept = [layer for layer in range(theirs.layers) if layer not in gone]
        if len(kept) != ours.layers:
            return None
        return [0, *(layer + 1 for layer in kept[:-1]), theirs.layers]


def _run(
    job: dict[str, Any], folder: Path, processes: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Train in processes of their own, unless that is done. Raises `CompressionError`."""
    report = folder / "report.json"
    if not report.exists():
        command = [sys.executable, "-m", "thrifty.compress.distill.worker", str(folder)]
        if processes > 1:
            command[1:1] = [
                "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes",
                str(processes), "--multi_gpu" if _has_gpus(processes) else "--cpu",
            ]  # fmt: skip
        environment = {
            **KEEP_MEMORY,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with (
            (folder / "worker.log").open("ab") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment
            ) as process,
        ):
            try:
                error = _follow(process, on_progress)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise CompressionError(error or _explain(process.returncode, folder))
    found = json.loads(report.read_text())
    held_out = found["held_out"]
    return {
        "steps": found["step"], "tokens": found["tokens"], "before": held_out[0][1],
        "after": found["best"], "best_step": found["best_step"], "unit": found["unit"],
        "batch_tokens": found["batch_tokens"], "learning_rate": found["learning_rate"],
        "precision": found["precision"], "device": found["device"],
        "losses": [round(loss, 5) for loss in found["losses"]],
        "held_out": [[step, round(value, 6)] for step, value in held_out],
    }  # fmt: skip


def _follow(process: subprocess.Popen[bytes], on_progress: OnProgress) -> str | None:
    """Pass the worker's progress on; the error that it tells, if any."""
    error = None
    assert process.stdout is not None
    for line in process.stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue  # a library's own words
        if not isinstance(told, dict):
            continue
        if "progress" in told:
            on_progress(Progress(*told["progress"]))
        error = told.get("error", error)
    process.wait()
    return error


def _explain(code: int, folder: Path) -> str:
    last = (folder / "worker.log").read_text(errors="replace").strip().splitlines()[-3:]
    if code in (-9, 137):
        why = "it was killed, as a system does that runs out of memory"
    else:
        why = f"it ended with {code}: " + " ".join(last)
    return f"the training broke off: {why}. Asked for again, it goes on from the last checkpoint in {folder}"


def _has_gpus(count: int) -> bool:
    import torch

    return bool(torch.cuda.device_count() >= count)


def _require_memory(
    parameters: int, shape: DecoderShape | EncoderShape, training: Training, window: int
) -> None:
    """Raise where too little is free. Counted are weights, gradients and two moments in float32, and what layers
    keep of each token for the way back: some seventy bytes a channel, ten for each pair of tokens and head.
    """
    kept = window * 70 * shape.hidden_size + 10 * shape.heads * window**2
    if training.checkpointing:
        kept += (shape.layers - 1) * window * 4 * shape.hidden_size
    else:
        kept *= shape.layers
    weights = parameters * (16 if not training.lora_rank else 4.5)
    needed = round(weights + training.micro_batch * kept)
    free = available_memory_bytes()
    if needed > free:
        raise CompressionError(
            f"training {parameters:,} parameters needs about {format_bytes(needed)} of memory, and "
            f"{format_bytes(free)} are free; train a change of low rank (--lora-rank 16), with "
            "--checkpointing, or a smaller model"
        )
