"""One piece of a source on its way from records to rows: read, shaped, cleaned, judged, measured.

What becomes of a piece depends on the piece and the settings alone, so that any number of
processes, and a build that was interrupted, come to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.curate.clean import extract_article, find_language, make_cleaner
from thrifty.curate.history import describe_history, list_entries, read_name, read_time
from thrifty.curate.leaks import LeakIndex, find_leaks, load_index
from thrifty.curate.piece_files import PieceFiles, Tally
from thrifty.curate.quality import Table, judge_text, load_table
from thrifty.curate.read import Broken, Record, read_piece
from thrifty.curate.recipe import Fields, Recipe
from thrifty.curate.shapes import REASONS, Misshapen, make_row
from thrifty.curate.sketch import (
    Banding,
    Words,
    choose_banding,
    digest_words,
    find_words,
    hash_text,
)
from thrifty.curate.sources import Piece, SourceFile
from thrifty.curate.texts import (
    Row,
    change_all_texts,
    change_texts,
    join_all,
    join_answers,
    join_compared,
    join_shown,
)
from thrifty.data.token_lengths import list_conversations
from thrifty.db.subjects import Subjects
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.observe.redact import Redactor, find_pseudonym
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer

BATCH_CHARS = 200_000
BATCH_ROWS = 256
SAMPLE_CHARS = 300
MOST_SET_ASIDE = 1000

STAGES = (
    "broken", "format", "html", "language", "quality", "redact", "length", "leaks", "exact", "near",
    "embeddings", "balance", "mix",
)  # fmt: skip
"""Where rows are removed, in their order."""


@dataclass(frozen=True)
class Settings:
    """What processes need to know beside the recipe; all of it survives JSON."""

    recipe: dict[str, Any]
    folder: str
    """The recipe's folder, for files that it names."""
    work: str
    """Where pieces are written."""
    tokenizer: str | None
    """The folder of the tokenizer."""
    has_leaks: bool
    """Whether there is an index of evaluation items in `work`."""


class PieceMaker:
    """Makes pieces by one recipe. Loads what the recipe needs once. Raises `ThriftyError`."""

    def __init__(self, settings: Settings, secrets: tuple[bytes, bytes]) -> None:
        """`secrets` are those of pseudonyms in texts, and of persons."""
        self._recipe = recipe = Recipe.model_validate(settings.recipe)
        self._work = Path(settings.work)
        self._cleaner = make_cleaner(recipe.clean)
        self._tables: list[Table] = [
            load_table(name, Path(settings.folder)) for name in recipe.clean.quality
        ]
        self._redactor = Redactor(secrets[0]) if recipe.redact is not None else None
        self._subjects = Subjects(secrets[1])
        folder = settings.tokenizer
        self._tokenizer = TextTokenizer.load(Path(folder)) if folder is not None else None
        kinds = (recipe.split.stratify, recipe.balance and recipe.balance.by)
        self._tells_language = bool(recipe.clean.languages) or "language" in kinds
        self._leaks: LeakIndex | None = None
        if settings.has_leaks:
            self._leaks = load_index(self._work / "leaks.npz")
        near = recipe.deduplicate.near
        self._banding: Banding | None = choose_banding(near.similarity) if near else None

    def make(self, file: SourceFile, piece: Piece) -> None:
        """Read one piece and write what is kept of it. Raises `DataError` and `OSError`."""
        tally = Tally()
        with PieceFiles(self._work, piece.number, self._banding) as out:
            for batch in self._read_batches(file, piece, tally):
                self._finish_batch(batch, out, tally)
            out.finish(tally)

    def _read_batches(
        self, file: SourceFile, piece: Piece, tally: Tally
    ) -> Iterator[list[tuple[Row, dict[str, Any]]]]:
        """Rows with what is known of them, some at a time."""
        batch: list[tuple[Row, dict[str, Any]]] = []
        chars = 0
        for number, record in read_piece(file, piece):
            tally.records += 1
            found = self._make_row(file, number, record, tally)
            if found is None:
                continue
            batch.append(found)
            chars += len(join_compared(found[0]))
            if chars >= BATCH_CHARS or len(batch) >= BATCH_ROWS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def _make_row(
        self, file: SourceFile, number: int, record: Record | Broken, tally: Tally
    ) -> tuple[Row, dict[str, Any]] | None:
        """The row of a record, through all that can be told of it alone; None if it is removed."""
        source = self._recipe.sources[file.source]
        path = file.path if source.log is None else file.name
        provenance: dict[str, Any] = {"source": file.name, "path": path, "line": number}
        if isinstance(record, Broken):
            tally.remove("broken", record.reason, "", provenance)
            if len(tally.set_aside) < MOST_SET_ASIDE:
                tally.set_aside.append({"path": path, "line": number, "reason": record.reason})
            return None
        provenance["sha256"] = hashlib.sha256(encode_record(record)).hexdigest()
        known = self._describe(record, source.fields, provenance, tally)
        known["source"] = file.source
        try:
            row = make_row(record, self._recipe.kind, source.shape, source.fields)
        except Misshapen as fault:
            shown = {key: value for key, value in record.items() if key != source.fields.user}
            excerpt = encode_record(shown)[: 4 * SAMPLE_CHARS].decode("utf-8", "ignore")
            tally.remove("format", REASONS[str(fault)], self._excerpt(excerpt), provenance)
            return None
        if not self._clean(row, provenance, tally):
            return None
        row["provenance"] = provenance
        return row, known

    def _describe(
        self, record: Record, fields: Fields, provenance: dict[str, Any], tally: Tally
    ) -> dict[str, Any]:
        """The groups and the time of a record; what it says of its history goes to `provenance`."""
        given = record.get("provenance")
        provenance |= describe_history(given)
        user, conversation = (
            read_name(record.get(fields.user)),
            read_name(record.get(fields.conversation)),
        )
        times = [record.get(fields.time), *(one.get("at") for one in list_entries(given))]
        seconds = [read_time(time) for time in times]
        for key, is_read in (
            (fields.user, user is not None), (fields.conversation, conversation is not None),
            (fields.time, not math.isnan(seconds[0])),
        ):  # fmt: skip
            if not is_read and record.get(key) not in (None, ""):
                tally.unread[key] += 1
        if user is not None:
            # The name itself stands nowhere: whoever forgets a person looks for the pseudonym.
            name = self._subjects.name("", user)
            provenance["subjects"] = sorted({name, *provenance.get("subjects", ())}, key=str)
        known: dict[str, Any] = {
            "persons": [hash_text(str(name)) for name in provenance.get("subjects", ())],
            "conversation": 0,
        }
        if conversation is not None:
            known["conversation"] = hash_text(f"{provenance['source']}\n{conversation}")
        known["time"] = next((time for time in seconds if not math.isnan(time)), math.nan)
        return known

    def _excerpt(self, text: str) -> str:
        """The beginning of a removed text, without personal data."""
        if self._redactor is not None:
            text = self._redactor.redact(text)
        return text[:SAMPLE_CHARS]

    # Texts

    def _clean(self, row: Row, provenance: dict[str, Any], tally: Tally) -> bool:
        """Clean a row's texts in place; returns whether it stays."""
        clean = self._recipe.clean
        changed: dict[str, Any] = {}
        if self._cleaner is not None:
            count = change_texts(row, self._cleaner)
            if count:
                changed["unicode"] = count
        if clean.html and "text" in row:
            article = extract_article(row["text"])
            if article is None:
                tally.remove("html", "no article", self._excerpt(row["text"]), provenance)
                return False
            if article != row["text"]:
                row["text"] = article
                changed["html"] = 1
        if self._redactor is not None and not self._redact(row, changed, provenance, tally):
            return False
        if not self._judge(row, changed, provenance, tally):
            return False
        for step in changed:
            tally.changed[step] += 1
        if changed:
            provenance["changed"] = changed
        return True

    def _redact(self, row: Row, changed: dict[str, Any], provenance: Record, tally: Tally) -> bool:
        redactor = self._redactor
        assert redactor is not None
        kinds: Counter[str] = Counter()

        def change(text: str) -> str:
            after = redactor.redact(text)
            if after != text:
                kinds.update(_count_pseudonyms(after) - _count_pseudonyms(text))
            return after

        change_all_texts(row, change)
        if kinds:
            changed["redact"] = dict(sorted(kinds.items()))
            tally.redacted.update(kinds)
        drop = self._recipe.redact is not None and self._recipe.redact.targets == "drop"
        if drop and "text" not in row and "query" not in row and find_pseudonym(join_answers(row)):
            tally.remove(
                "redact", "pseudonym in an answer", join_answers(row)[:SAMPLE_CHARS], provenance
            )
            return False
        return True

    def _judge(
        self, row: Row, changed: dict[str, Any], provenance: dict[str, Any], tally: Tally
    ) -> bool:
        clean = self._recipe.clean
        if self._tells_language:
            language, probability = find_language(join_compared(row))
            tally.languages[language] += 1
            provenance["language"] = language
            sure = probability >= clean.confidence
            if clean.languages and not (sure and language in clean.languages):
                reason = language if sure else f"{language}, unsure"
                tally.remove("language", reason, join_compared(row)[:SAMPLE_CHARS], provenance)
                return False
        for table in self._tables:
            judged = join_answers(row)
            text, broken = judge_text(judged, table)
            if broken is None and "text" in row and text != judged:
                row["text"] = text
                changed["lines"] = 1
            if broken is not None or not text.strip():
                reason = f"{table.title}: {broken or 'no line is left'}"
                tally.remove("quality", reason, judged[:SAMPLE_CHARS], provenance)
                return False
        return True

    # Measures

    def _finish_batch(
        self, batch: list[tuple[Row, dict[str, Any]]], out: PieceFiles, tally: Tally
    ) -> None:
        said = [join_compared(row) for row, _ in batch]
        words = find_words(said)
        counts = np.diff(words.starts)
        leaking = {}
        if self._leaks is not None:
            shown = [join_shown(row) for row, _ in batch]
            read = words if shown == said else find_words(shown)
            wanted = self._recipe.decontaminate
            accepted = wanted.accept if wanted is not None else ()
            leaking = {leak.row: leak for leak in find_leaks(self._leaks, read, accepted)}
        kept = []
        for number, (row, known) in enumerate(batch):
            tokens = count_tokens(row, self._tokenizer, int(counts[number]))
            leak = leaking.get(number) if tokens is not None else None
            if leak is not None and not self._note_leak(leak, row, tally):
                continue
            reason = self._find_length_fault(tokens)
            if reason is not None:
                tally.remove("length", reason, join_compared(row)[:SAMPLE_CHARS], row["provenance"])
                continue
            known["tokens"] = tokens
            kept.append(number)
        if not kept:
            return
        chosen = [batch[number] for number in kept]
        compared = words if len(kept) == len(batch) else _take(words, kept)
        digests = digest_words(find_words([join_all(row) for row, _ in chosen], symbols=True))
        out.add(chosen, digests, compared, self._recipe, tally)

    def _find_length_fault(self, tokens: int | None) -> str | None:
        length = self._recipe.length
        most = length.most if length.most is not None else self._recipe.pack
        if tokens is None:
            return "the chat template refuses it"
        if tokens < length.least:
            return f"fewer than {length.least}"
        return f"more than {most}" if most is not None and tokens > most else None

    def _note_leak(self, leak: Any, row: Row, tally: Tally) -> bool:
        """Note a leak; returns whether the row stays."""
        index, wanted = self._leaks, self._recipe.decontaminate
        assert index is not None
        assert wanted is not None
        provenance = row["provenance"]
        set_, where = index.sets[leak.item], index.where[leak.item]
        accepted = set_ in wanted.accept
        tally.leaks.append({
            "set": set_, "where": where, "rule": leak.rule, "accepted": accepted,
            "path": provenance["path"], "line": provenance["line"],
        })  # fmt: skip
        if accepted:
            provenance["leak"] = f"{set_}, {where} ({leak.rule})"
            return True
        tally.remove("leaks", f"{set_}: {leak.rule}", join_compared(row)[:SAMPLE_CHARS], provenance)
        return False


def count_tokens(row: Row, tokenizer: TextTokenizer | None, words: int) -> int | None:
    """The length of a row in tokens, or without a tokenizer in words; None where the chat template
    refuses it. Of texts for encoders, the longest counts.
    """
    if tokenizer is None:
        return words
    if "text" in row:
        return len(tokenizer.encode(row["text"]))
    if "query" in row:
        texts = (row["query"], row["positive"], *row.get("negatives", ()))
        return max(len(tokenizer.encode(one)) for one in texts)
    try:
        plan = parse_tools({"tools": row.get("tools")})
        settings = {
            "add_generation_prompt": False,
            "chat_template_kwargs": row.get("chat_template_kwargs"),
        }
        return max(
            len(build_prompt({"messages": messages, **settings}, tokenizer, plan).ids)
            for messages in list_conversations(row)
        )
    except WireError:
        return None


def encode_record(record: Record) -> bytes:
    """A record as JSON, the same for equal records."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True, default=str).encode(
        "utf-8", "surrogatepass"
    )


def _count_pseudonyms(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    while (name := find_pseudonym(text)) is not None:
        found[name[1:].partition("_")[0]] += 1
        text = text[text.index(name) + len(name) :]
    return found


def _take(words: Words, kept: list[int]) -> Words:
    parts = [slice(words.starts[n], words.starts[n + 1]) for n in kept]
    counts = [part.stop - part.start for part in parts]
    return Words(
        np.concatenate([words.hashes[part] for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([words.lengths[part] for part in parts]),
    )
