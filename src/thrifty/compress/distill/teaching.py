"""What a teacher contributes to a training, a part for each domain: its answers, its predictions.

A part grows: a longer one begins with the shorter one, so that a training may be extended. Answers
and predictions are kept by the teacher, the text and the settings, for every training that needs
them, and go on where a killed run stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts.disk import lock_file
from thrifty.compress.distill.answers import (
    STREAMS,
    Prompt,
    Sampling,
    Tally,
    ask_teacher,
    count_answers,
    describe,
    read_beginnings,
    read_document_prompts,
    read_kept,
    read_prompts,
)
from thrifty.compress.distill.effort import AskingWatch, Effort
from thrifty.compress.mix import CONVERSATIONS, PROMPTS, TEXT, Mix, Source, read_source
from thrifty.errors import CompressionError
from thrifty.evaluate.asking import Serve
from thrifty.evaluate.open_model import digest_vocabulary
from thrifty.evaluate.reference import ReferenceMeta, ReferenceRecord
from thrifty.evaluate.scorer import Ranker
from thrifty.evaluate.windows import TokenWindow
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress

TOP_K = 64
DOCUMENTS = "documents"
DOCUMENTS_SHARE = 0.1
"""The share of prompts about the passages of a text, where a mix has both prompts and text."""
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


@dataclass(frozen=True)
class Teacher:
    """A teacher for decoders, in any of its forms."""

    identity: str
    label: str
    tokenizer: TextTokenizer
    sampling: Sampling
    folder: Path
    """Where answers and predictions are kept."""
    open: Callable[[], Ranker] | None = None
    """Opens the teacher to record its predictions; None if only its text is learned from."""
    serve: Serve | None = None
    key_env: str | None = None
    own: bool = True
    """Whether it runs on this machine, for this training alone."""


class Teaching:
    """Extends the parts of a training."""

    def __init__(
        self,
        teacher: Teacher,
        parts: list[PartPlan],
        on_progress: OnProgress,
        on_note: Callable[[str], None],
    ) -> None:
        self._teacher = teacher
        self.parts = parts
        self.folder = teacher.folder
        """The training's own, for what only it needs."""
        self._on_progress = on_progress
        self._on_note = on_note
        self._rates = teacher.folder / "taught" / f"{_digest(teacher.identity)}.rates.json"
        self.tokens = 0
        """All that is prepared."""
        self.effort = Effort.load(self._rates)
        self.tallies: dict[str, Tally] = {}

    @property
    def answered(self) -> float:
        """The share of the tokens that the teacher writes."""
        return sum(part.share for part in self.parts if part.answered)

    def extend(self, tokens: int, within_s: float | None = None) -> dict[str, int]:
        """Have at least so many tokens over all parts, or all there are; returns the number of
        texts of each part. Blocks. Raises `CompressionError` and `EvaluationError`.

        After `within_s` seconds there is what there is: what is not answered then is not waited
        for, predictions are not recorded, and plain text is as scarce as answers, so that the mix
        stays the same.
        """
        began_s = time.monotonic()
        ask_until_s = until_s = math.inf
        if within_s is not None:
            until_s = began_s + within_s
            ask_until_s = began_s + within_s * self._asking_share()
        wanted = {part.name: part.share * tokens for part in self.parts}
        self._ask(wanted, ask_until_s)
        if self.answered and time.monotonic() >= ask_until_s:
            self._keep_shares(wanted)
            tokens = round(sum(wanted.values()))
        counts: dict[str, int] = {}
        for _ in range(ALLOTMENTS):
            got = self._fill(wanted, counts, until_s)
            self.tokens = sum(got.values())
            short = tokens - self.tokens
            open_parts = [p for p in self.parts if got[p.name] >= wanted[p.name]]
            share = sum(part.share for part in open_parts)
            if short <= self._teacher.sampling.window * len(self.parts) or not share:
                break
            if time.monotonic() >= ask_until_s:
                break
            for part in open_parts:
                wanted[part.name] = got[part.name] + short * part.share / share
            self._ask(wanted, ask_until_s)
        self.effort.save(self._rates)
        return counts

    def _asking_share(self) -> float:
        """The share of the teacher's time in which it answers; the rest is for its predictions."""
        if self._teacher.open is None or not self.answered:
            return 1.0 if self.answered else 0.0
        return self.effort.asking_share(self.answered)

    def _keep_shares(self, wanted: dict[str, float]) -> None:
        """Want as little of each part as there is of those that the teacher did not finish."""
        answered = [part for part in self.parts if part.answered]
        got = sum(min(wanted[one.name], self._tally(one).tokens) for one in answered)
        reached = got / max(1.0, sum(wanted[one.name] for one in answered))
        for part in self.parts:
            wanted[part.name] *= reached

    def locate(self, part: PartPlan) -> dict[str, str]:
        """Where the worker finds a part: a record, or lines."""
        if self._teacher.open is not None:
            return {"record": str(self._record_folder(part))}
        return {"lines": str(self._lines(part))}

    def _ask(self, wanted: dict[str, float], until_s: float) -> None:
        """The teacher's answers of all parts that need more of them, from one start of it. All
        parts are asked at the same time, with requests by their shares.
        """
        teacher = self._teacher
        parts = [part for part in self.parts if part.answered]
        if not parts:
            return
        serve = teacher.serve
        assert serve is not None, "parts are answered only by a teacher that can be asked"

        left = []
        for part in parts:
            try:
                self._ask_part(part, wanted[part.name], _refuse)
            except _RefusedError:
                left.append(part)
        if not left or time.monotonic() >= until_s:
            return
        had = {part.name: self._tally(part) for part in left}
        missing = sum(wanted[name] - tally.tokens for name, tally in had.items())
        self._on_note(
            f"{teacher.label} answers prompts of {', '.join(had)}: {missing:,.0f} tokens of "
            "conversations are missing"
        )
        watch = AskingWatch(had, missing, until_s, self._on_progress, self._on_note)
        failed = threading.Event()

        def ask(part: PartPlan, url: str, name: str) -> None:
            streams = max(1, round(STREAMS * part.share / sum(one.share for one in left)))
            try:
                self._ask_part(
                    part, wanted[part.name], lambda use: use(url, name), streams=streams,
                    until_s=until_s, stopped=failed.is_set,
                    on_answer=lambda tally: watch.take(part.name, tally),
                )  # fmt: skip
            except BaseException:
                failed.set()
                raise

        def use(url: str, name: str) -> None:
            watch.begin()
            with ThreadPoolExecutor(len(left)) as pool:
                asked = [pool.submit(ask, part, url, name) for part in left]
            self.effort.add_asked(*watch.measure())
            for one in asked:
                one.result()

        serve(use)
        for part in left:
            tally = self._tally(part)
            if tally.empty + tally.loops:
                self._on_note(
                    f"{part.name}: of {tally.asked} answers {tally.empty} are empty and "
                    f"{tally.loops} repeat themselves; they are left out"
                )

    def _tally(self, part: PartPlan) -> Tally:
        return self.tallies.get(part.name, Tally())

    def _ask_part(
        self, part: PartPlan, tokens: float, serve: Serve, until_s: float = math.inf, **more: Any
    ) -> None:
        """Have the answers of a part, and their tally."""
        teacher = self._teacher
        path = self._lines(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path.with_suffix(".lock")):
            if path.exists():
                self.tallies[part.name] = count_answers(path)
            tally = ask_teacher(
                serve, teacher.key_env, teacher.label, lambda: self._prompts(part),
                teacher.tokenizer, path, tokens=round(tokens), sampling=teacher.sampling,
                until_s=until_s, **more,
            )  # fmt: skip
        self.tallies[part.name] = tally
        if not tally.tokens and part.name != DOCUMENTS and path.with_suffix(".ended").exists():
            raise CompressionError(
                f"{part.source.path} contains no prompts that the teacher answers"
            )

    def _prompts(self, part: PartPlan) -> Iterator[Prompt]:
        if part.source.kind != TEXT:
            return read_prompts(part.source)
        if part.name == DOCUMENTS:
            return read_document_prompts(part.source)
        return read_beginnings(part.source, self._teacher.tokenizer, self._teacher.sampling.window)

    def _fill(
        self, wanted: dict[str, float], counts: dict[str, int], until_s: float
    ) -> dict[str, int]:
        """Extend what is learned from; sets the texts of each part, and returns their tokens."""
        got: dict[str, int] = {}
        scorer: Ranker | None = None
        left = sum(wanted.values())
        if not all(self._is_recorded(part, wanted[part.name]) for part in self.parts):
            assert self._teacher.open is not None
            scorer = self._teacher.open()
        try:
            for part in self.parts:
                # Each has its share of the time, and what those before it left.
                now_s = time.monotonic()
                part_until_s = now_s + (until_s - now_s) * wanted[part.name] / max(1.0, left)
                left -= wanted[part.name]
                tokens = round(wanted[part.name])
                if self._teacher.open is None:
                    lengths = self._fill_lines(part, tokens)
                else:
                    if scorer is not None and not self._is_recorded(part, tokens):
                        self._extend_record(part, scorer, tokens, part_until_s)
                    record = self._open_record(part, scorer)
                    lengths = [int(length) for length in record.lengths]
                ends = np.cumsum(lengths)
                count = min(len(lengths), int(np.searchsorted(ends, tokens)) + 1)
                counts[part.name] = max(count, counts.get(part.name, 0))
                got[part.name] = int(ends[count - 1]) if count else 0
        finally:
            if scorer is not None:
                scorer.close()
        return got

    def _is_recorded(self, part: PartPlan, tokens: float) -> bool:
        """Whether no predictions are missing of a part."""
        if self._teacher.open is None:
            return True
        if not (self._record_folder(part) / "meta.json").exists():
            return False
        record = self._open_record(part, None)
        # More answers may have come since the end of them was reached.
        ended = record.complete and not part.answered
        return ended or int(record.lengths.sum()) >= round(tokens)

    def _extend_record(self, part: PartPlan, scorer: Ranker, tokens: int, until_s: float) -> None:
        with lock_file(self._record_folder(part) / "lock"):
            # Opened under the lock: another training may have extended it while this one waited.
            record = self._open_record(part, scorer)
            before = int(record.lengths.sum())
            began_s = time.monotonic()
            if part.answered:
                (record.folder / "complete").unlink(missing_ok=True)
            record.extend(
                scorer, self._windows(part), self._on_progress, tokens, enough=tokens,
                until_s=until_s,
            )  # fmt: skip
            recorded = int(record.lengths.sum()) - before
            self.effort.add_recorded(recorded, time.monotonic() - began_s)

    def _windows(self, part: PartPlan) -> Iterator[TokenWindow]:
        if part.answered:
            yield from read_windows(self._lines(part))
            return
        window = self._teacher.sampling.window
        yield from read_source(part.source, self._teacher.tokenizer, window)

    def _fill_lines(self, part: PartPlan, tokens: int) -> list[int]:
        """The lengths of the texts of a part that the worker reads as lines. Those that are missing
        are appended, as long as the source has more.
        """
        path = self._lines(part)
        kept = read_windows(path)
        lengths = [len(window.tokens) for window in kept]
        if part.answered or sum(lengths) >= tokens:
            return lengths
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(sum(len(line) + 1 for line in read_kept(path)))
            file.truncate()
            usable = (window for window in self._windows(part) if window.counted.any())
            for window in itertools.islice(usable, len(kept), None):
                if sum(lengths) >= tokens:
                    break
                file.write(write_window(window))
                lengths.append(len(window.tokens))
        return lengths

    def _open_record(self, part: PartPlan, scorer: Ranker | None) -> ReferenceRecord:
        """The record of a part; `scorer` is needed for one that is not there yet."""
        teacher = self._teacher
        meta_path = self._record_folder(part) / "meta.json"
        if meta_path.exists():
            meta = ReferenceMeta(**json.loads(meta_path.read_text()))
            return ReferenceRecord(self._record_folder(part), meta)
        assert scorer is not None
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
        return ReferenceRecord(self._record_folder(part), meta)

    def _record_folder(self, part: PartPlan) -> Path:
        return self._teacher.folder / "taught" / f"{self._key(part)}.record"

    def _lines(self, part: PartPlan) -> Path:
        if part.answered:
            return self._teacher.folder / "taught" / f"{self._key(part)}.jsonl"
        return self.folder / f"{self._key(part)}.jsonl"

    def _key(self, part: PartPlan) -> str:
        teacher = self._teacher
        facts = {
            "teacher": teacher.identity, "text": part.source.sha256,
            "kind": DOCUMENTS if part.name == DOCUMENTS else part.source.kind,
            "answered": part.answered, "templates": teacher.tokenizer.templates_sha256,
            "vocabulary": digest_vocabulary(teacher.tokenizer),
            **(describe(teacher.sampling) if part.answered else {"window": teacher.sampling.window}),
        }  # fmt: skip
        return _digest(json.dumps(facts, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class _RefusedError(Exception):
    """The teacher was not to be started."""


def _refuse(_: Any) -> None:
    raise _RefusedError


def write_window(window: TokenWindow) -> bytes:
    """A line of a file of texts: the tokens, and where predictions begin or cease to count."""
    turns = np.flatnonzero(np.diff(window.counted, prepend=False)).tolist()
    return json.dumps({"tokens": window.tokens.tolist(), "turns": turns}).encode() + b"\n"


def read_windows(path: Path) -> list[TokenWindow]:
    """The whole and usable lines of a file of texts, or of answers; none if it is not there."""
    windows = []
    for line in map(json.loads, read_kept(path)):
        tokens = np.array(line["tokens"], np.int64)
        # All of an answer counts, from its first prediction on.
        turns = line["turns"] if "turns" in line else [line["first"]]
        counted = np.searchsorted(turns, np.arange(len(tokens) - 1), side="right") % 2 == 1
        if counted.any():
            windows.append(TokenWindow(tokens, counted))
    return windows


def describe_tallies(tallies: dict[str, Tally]) -> dict[str, Any]:
    """For the lineage."""
    return {name: asdict(tally) for name, tally in tallies.items()}
