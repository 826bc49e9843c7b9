"""What a teacher contributes to a training, a part for each domain: its answers, its predictions.

A part grows: a longer one begins with the shorter one, so that a training may be extended. Answers
and predictions are kept by the teacher, the text and the settings, for every training that needs
them, and go on where a killed run stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts.disk import lock_file
from thrifty.compress.distill.answers import (
    Prompt,
    Sampling,
    Tally,
    ask_teacher,
    describe,
    read_beginnings,
    read_document_prompts,
    read_prompts,
)
from thrifty.compress.mix import CONVERSATIONS, PROMPTS, TEXT, Mix, Source, read_source
from thrifty.errors import CompressionError
from thrifty.evaluate.asking import Serve
from thrifty.evaluate.open_model import digest_vocabulary
from thrifty.evaluate.reference import ReferenceMeta, ReferenceRecord
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.windows import TokenWindow
from thrifty.files import replace_atomically
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress

TOP_K = 64
DOCUMENTS = "documents"
DOCUMENTS_SHARE = 0.1
"""The share of prompts about the passages of a text, where a mix has both prompts and text."""
TELL_AFTER_S = 20.0
"""The teacher's rate is known after so long: its first answers end together."""
ALLOTMENTS = 4
"""How often what a text that ends leaves is divided among the others."""


@dataclass(frozen=True)
class PartPlan:
    """One domain that is learned."""

    name: str
    source: Source
    share: float
    """Of all tokens."""
    answered: bool
    """Whether the teacher writes it."""


def plan_parts(mix: Mix, *, asks: bool) -> list[PartPlan]:
    """The parts of a mix. With `asks`, the teacher answers prompts; else conversations are learned
    as they are, and prompts cannot be.
    """
    if not asks and any(source.kind == PROMPTS for source in mix.sources):
        raise CompressionError(
            f"{mix.name} holds prompts, which only a teacher that answers them makes text of; "
            "leave out --no-answers"
        )
    talks = [one for one in mix.sources if one.kind in (CONVERSATIONS, PROMPTS)]
    texts = [one for one in mix.sources if one.kind == TEXT]
    rest = 1 - DOCUMENTS_SHARE if asks and talks and texts else 1.0
    parts = [
        PartPlan(one.name, one, rest * mix.share(one), asks and one in talks) for one in mix.sources
    ]
    if rest < 1:
        parts.append(PartPlan(DOCUMENTS, texts[0], DOCUMENTS_SHARE, True))
    return parts


@dataclass
class Effort:
    """What the teacher's work took."""

    tokens: int = 0
    """Of text, over all parts."""
    seconds: float = 0.0
    """In all, with the time to start."""
    working_s: float = 0.0
    """While it wrote or predicted."""

    @property
    def s_per_token(self) -> float:
        """How long another token takes."""
        return self.working_s / max(1, self.tokens)


@dataclass(frozen=True)
class Teacher:
    """A teacher for decoders, in any of its forms."""

    identity: str
    label: str
    tokenizer: TextTokenizer
    sampling: Sampling
    folder: Path
    """Where answers and predictions are kept."""
    open: Callable[[], Scorer] | None = None
    """Opens the teacher to record its predictions; None if only its text is learned from."""
    serve: Serve | None = None
    key_env: str | None = None
    own: bool = True
    """Whether it runs on this machine, for this training alone."""
    context: int = 0


class Teaching:
    """Extends the parts of a training."""

    def __init__(
        self,
        teacher: Teacher,
        parts: list[PartPlan],
        folder: Path,
        on_progress: OnProgress,
        on_note: Callable[[str], None],
    ) -> None:
        """`folder` is the training's own, for what only it needs."""
        self._teacher = teacher
        self._parts = parts
        self._folder = folder
        self._on_progress = on_progress
        self._on_note = on_note
        self._until_s = math.inf
        self.effort = Effort()
        self.tallies: dict[str, Tally] = {}

    def extend(self, tokens: int, within_s: float | None = None) -> dict[str, int]:
        """Have at least so many tokens over all parts, or all there are; returns the number of
        texts of each part. After `within_s`, no more prompts are asked. Blocks. Raises
        `CompressionError` and `EvaluationError`.
        """
        began_s = time.monotonic()
        self._until_s = math.inf if within_s is None else began_s + within_s
        wanted = {part.name: part.share * tokens for part in self._parts}
        self._ask(wanted)
        counts: dict[str, int] = {}
        try:
            for _ in range(ALLOTMENTS):
                got = self._fill(wanted, counts)
                short = tokens - sum(got.values())
                open_parts = [p for p in self._parts if got[p.name] >= wanted[p.name]]
                share = sum(part.share for part in open_parts)
                if short <= self._teacher.sampling.window * len(self._parts) or not share:
                    break
                for part in open_parts:
                    wanted[part.name] = got[part.name] + short * part.share / share
                if time.monotonic() < self._until_s:
                    self._ask(wanted)
        finally:
            self.effort.seconds += time.monotonic() - began_s
        return counts

    def locate(self, part: PartPlan) -> dict[str, str]:
        """Where the worker finds a part: a record, or lines."""
        if self._teacher.open is not None:
            return {"record": str(self._record_folder(part))}
        return {"lines": str(self._lines(part))}

    def _ask(self, wanted: dict[str, float]) -> None:
        """The teacher's answers of all parts that need more of them, from one start of it."""
        teacher = self._teacher
        parts = [part for part in self._parts if part.answered]
        if not parts:
            return
        serve = teacher.serve
        assert serve is not None, "parts are answered only by a teacher that can be asked"

        def missing(part: PartPlan) -> bool:
            return self._ask_part(part, wanted[part.name], _refuse) is None

        left = [part for part in parts if missing(part)]
        if not left:
            return
        tokens = round(sum(wanted[part.name] for part in left))
        self._on_note(
            f"{teacher.label} answers prompts of {', '.join(part.name for part in left)} until "
            f"there are {tokens:,} tokens of conversations"
        )

        def use(url: str, name: str) -> None:
            shares = sum(part.share for part in left)
            for part in left:
                # Each has its share of the time, and what those before it left.
                now_s = time.monotonic()
                until_s = now_s + (self._until_s - now_s) * part.share / shares
                shares -= part.share
                self._ask_part(part, wanted[part.name], lambda ask: ask(url, name), until_s)

        serve(use)
        for part in left:
            tally = self.tallies[part.name]
            if tally.empty + tally.loops:
                self._on_note(
                    f"{part.name}: of {tally.asked} answers {tally.empty} are empty and "
                    f"{tally.loops} repeat themselves; they are left out"
                )

    def _ask_part(
        self, part: PartPlan, tokens: float, serve: Serve, until_s: float = math.inf
    ) -> Tally | None:
        """The tally of a part's answers; None if `serve` refused to be called."""
        teacher = self._teacher
        before = self.tallies.get(part.name, Tally()).tokens
        path = self._lines(part)
        watch = _Watch(self._on_progress, self._on_note, part.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(path.with_suffix(".lock")):
                tally, took_s = ask_teacher(
                    serve, teacher.key_env, teacher.label, lambda: self._prompts(part),
                    teacher.tokenizer, path, tokens=round(tokens), sampling=teacher.sampling,
                    until_s=until_s, on_progress=watch.show,
                )  # fmt: skip
        except _RefusedError:
            return None
        self.tallies[part.name] = tally
        self.effort.working_s += took_s
        if teacher.open is None:
            self.effort.tokens += max(0, tally.tokens - before) if took_s else 0
        if not tally.tokens and part.name != DOCUMENTS:
            raise CompressionError(
                f"{part.source.path} contains no prompts that the teacher answers"
            )
        return tally

    def _prompts(self, part: PartPlan) -> Iterator[Prompt]:
        if part.source.kind != TEXT:
            return read_prompts(part.source)
        if part.name == DOCUMENTS:
            return read_document_prompts(part.source)
        return read_beginnings(part.source, self._teacher.tokenizer, self._teacher.sampling.window)

    def _fill(self, wanted: dict[str, float], counts: dict[str, int]) -> dict[str, int]:
        """Extend what is learned from; sets the texts of each part, and returns their tokens."""
        got: dict[str, int] = {}
        scorer: Scorer | None = None
        try:
            for part in self._parts:
                tokens = round(wanted[part.name])
                if self._teacher.open is None:
                    lengths = self._fill_lines(part, tokens)
                else:
                    record = self._open_record(part)
                    if not record.complete or int(record.lengths.sum()) < tokens:
                        scorer = scorer or self._teacher.open()
                        self._extend_record(part, record, scorer, tokens)
                    lengths = [int(length) for length in record.lengths]
                ends = np.cumsum(lengths)
                count = min(len(lengths), int(np.searchsorted(ends, tokens)) + 1)
                counts[part.name] = max(count, counts.get(part.name, 0))
                got[part.name] = int(ends[count - 1]) if count else 0
        finally:
            if scorer is not None:
                scorer.close()
        return got

    def _extend_record(
        self, part: PartPlan, record: ReferenceRecord, scorer: Scorer, tokens: int
    ) -> None:
        before = int(record.lengths.sum())
        began_s = time.monotonic()
        with lock_file(record.folder / "lock"):
            # Answers may have come since the end of the text was reached.
            if part.answered:
                (record.folder / "complete").unlink(missing_ok=True)
            record.extend(scorer, self._windows(part), self._on_progress, tokens, enough=tokens)
        self.effort.working_s += time.monotonic() - began_s
        self.effort.tokens += int(record.lengths.sum()) - before

    def _windows(self, part: PartPlan) -> Iterator[TokenWindow]:
        if not part.answered:
            window = self._teacher.sampling.window
            yield from read_source(part.source, self._teacher.tokenizer, window)
            return
        for line in read_lines(self._lines(part)):
            tokens = np.array(line["tokens"], np.int64)
            yield TokenWindow(tokens, np.arange(len(tokens) - 1) >= line["first"])

    def _fill_lines(self, part: PartPlan, tokens: int) -> list[int]:
        """The lengths of the texts of a part that the worker reads as lines."""
        path = self._lines(part)
        if not part.answered and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(path) as temporary, temporary.open("w") as file:
                for window in read_source(
                    part.source, self._teacher.tokenizer, self._teacher.sampling.window
                ):
                    first = int(np.argmax(window.counted))
                    line = {"tokens": window.tokens.tolist(), "first": first}
                    file.write(json.dumps(line) + "\n")
                    tokens -= len(window.tokens)
                    if tokens <= 0:
                        break
        return [len(line["tokens"]) for line in read_lines(path)]

    def _open_record(self, part: PartPlan) -> ReferenceRecord:
        teacher = self._teacher
        meta_path = self._record_folder(part) / "meta.json"
        if meta_path.exists():
            meta = ReferenceMeta(**json.loads(meta_path.read_text()))
        else:
            assert teacher.open is not None
            scorer = teacher.open()
            try:
                if teacher.sampling.window > scorer.context_length:
                    raise CompressionError(
                        f"{teacher.label} accepts {scorer.context_length} tokens; a window of "
                        f"{teacher.sampling.window} is too long"
                    )
                meta = ReferenceMeta(
                    identity=teacher.identity, label=teacher.label, text=str(part.source.path),
                    text_sha256=self._key(part), window=teacher.sampling.window,
                    k=min(TOP_K, scorer.vocab_size), vocab_size=scorer.vocab_size, limit=None,
                    vocabulary_sha256=digest_vocabulary(teacher.tokenizer),
                    templates_sha256=teacher.tokenizer.templates_sha256,
                )  # fmt: skip
            finally:
                scorer.close()
        return ReferenceRecord(self._record_folder(part), meta)

    def _record_folder(self, part: PartPlan) -> Path:
        return self._teacher.folder / "taught" / f"{self._key(part)}.record"

    def _lines(self, part: PartPlan) -> Path:
        if part.answered:
            return self._teacher.folder / "taught" / f"{self._key(part)}.jsonl"
        return self._folder / f"{self._key(part)}.jsonl"

    def _key(self, part: PartPlan) -> str:
        teacher = self._teacher
        facts = {
            "teacher": teacher.identity, "text": part.source.sha256,
            "kind": DOCUMENTS if part.name == DOCUMENTS else part.source.kind,
            "answered": part.answered, "templates": teacher.tokenizer.templates_sha256,
            "vocabulary": digest_vocabulary(teacher.tokenizer),
            **(describe(teacher.sampling) if part.answered else {"window": teacher.sampling.window}),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class _RefusedError(Exception):
    """The teacher was not to be started."""


def _refuse(_: Any) -> None:
    raise _RefusedError


class _Watch:
    """Tells what the teacher's work will cost, once its rate is known."""

    def __init__(self, on_progress: OnProgress, on_note: Callable[[str], None], name: str) -> None:
        self._on_progress = on_progress
        self._on_note = on_note
        self._name = name
        self._first: tuple[float, float] | None = None
        self._told = False

    def show(self, progress: Any) -> None:
        """Forward the progress."""
        self._on_progress(progress)
        now_s = time.monotonic()
        if self._first is None:
            self._first = (now_s, progress.done)
            return
        took_s, done = now_s - self._first[0], progress.done - self._first[1]
        if not self._told and took_s > TELL_AFTER_S and done > 0:
            left_s = (progress.total - progress.done) * took_s / done
            self._told = True
            self._on_note(
                f"{self._name}: {done / took_s:.0f} tokens/s, so about {left_s / 60:.1f} minutes "
                "more for the answers"
            )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The usable lines of a file of answers."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [one for one in map(json.loads, lines) if len(one["tokens"]) > one["first"] + 1]


def describe_tallies(tallies: dict[str, Tally]) -> dict[str, Any]:
    """For the lineage."""
    return {name: asdict(tally) for name, tally in tallies.items()}
