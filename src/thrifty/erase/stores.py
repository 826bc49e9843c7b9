"""The table of erasers: each place that holds data of persons, and how one person's go.

Whoever adds a table or a folder adds an eraser that covers it, or says below why none is needed; a
test compares both with the database and the home.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from thrifty.erase import batches_eraser, files_eraser, rows_eraser, sets_eraser
from thrifty.erase.person import Work


class Eraser(NamedTuple):
    """How one person's data go from the places that `covers` names."""

    name: str
    covers: tuple[str, ...]
    erase: Callable[[Work], int]
    """Erases, and returns how many entries are gone. Doing it again does no harm."""
    collect: Callable[[Work], list[Any]]
    """The person's data in there, as values of JSON."""


REQUESTS = Eraser(
    "requests", ("table:requests",), rows_eraser.erase_requests, rows_eraser.collect_requests
)
"""Last, and only where nothing is left: all others find what is the person's by them, also after an
interruption."""

ERASERS: tuple[Eraser, ...] = (
    Eraser(
        "cached answers", ("table:cache_purges",),
        rows_eraser.purge_caches, rows_eraser.collect_nothing,
    ),
    # Before all that is made of them.
    Eraser(
        "recorded texts", ("table:request_texts",),
        rows_eraser.erase_texts, rows_eraser.collect_nothing,
    ),
    Eraser(
        "feedback", ("table:feedback", "table:feedback_history", "table:unrolled_thumbs"),
        rows_eraser.erase_feedback, rows_eraser.collect_feedback,
    ),
    Eraser(
        "checks of answers", ("table:answer_checks", "table:answer_scores", "table:answer_vectors"),
        rows_eraser.erase_checks, rows_eraser.collect_checks,
    ),
    Eraser(
        "compared answers",
        ("table:release_pairs", "table:release_ratings", "table:held_conversations"),
        rows_eraser.erase_comparisons, rows_eraser.collect_nothing,
    ),
    Eraser(
        "lines of batches", ("table:files", "table:batches", "folder:files"),
        batches_eraser.erase_lines, batches_eraser.collect_lines,
    ),
    Eraser(
        "rows of data sets", ("folder:datasets",),
        sets_eraser.erase_set_rows, sets_eraser.collect_set_rows,
    ),
    Eraser(
        "unfinished trainings", ("folder:trainings",),
        sets_eraser.erase_unfinished_trainings, rows_eraser.collect_nothing,
    ),
    Eraser(
        "copies of the request log", ("folder:evaluations",),
        files_eraser.erase_recorded, rows_eraser.collect_nothing,
    ),
    Eraser(
        "records of gates", ("folder:gates",),
        files_eraser.erase_examples, rows_eraser.collect_nothing,
    ),
    Eraser(
        "lines of process logs", ("folder:logs",),
        files_eraser.erase_in_logs, rows_eraser.collect_nothing,
    ),
    Eraser(
        "training rows", ("table:exports",),
        files_eraser.erase_exports, files_eraser.collect_exports,
    ),
    REQUESTS,
)  # fmt: skip

NOT_OF_PERSONS = {
    "table:changes": "a counter",
    "table:deployments": "what is served",
    "table:versions": "what is served",
    "table:desired": "what should be served",
    "table:desired_changes": "acts of operators, kept as evidence",
    "table:secrets": "random bytes",
    "table:replicas": "processes",
    "table:gateways": "processes",
    "table:keys": "keys of programs and operators",
    "table:key_spend": "sums by key",
    "table:demand": "sums by version",
    "table:scaling": "numbers of replicas",
    "table:quality_answers": "answers to Thrifty's own questions",
    "table:unchecked_rows": "numbers of responses, for seconds",
    "table:quality_sums": "sums by version",
    "table:quality_state": "a counter",
    "table:drift_looks": "sums by version",
    "table:releases": "sums by version, and acts of operators",
    "table:release_events": "sums by version, and acts of operators",
    "table:improve_runs": "acts of operators",
    "table:improve_steps": "counts, and names of models and data sets",
    "table:cache_stats": "sums",
    "table:rollups": "sums by version",
    "table:tenant_rollups": "sums by tenant",
    "table:rollup_state": "a counter",
    "table:replica_spans": "processes",
    "table:replica_hours": "sums by version",
    "table:unrolled_rows": "numbers of responses, for seconds",
    "table:leases": "processes",
    "table:alerts": "what was wrong with the service",
    "table:alert_silences": "what operators want to hear nothing of",
    "table:text_keys": "names of files and variables",
    "table:sign_ins": "operators who are signed in, for hours",
    "table:audit": "pseudonyms of operators and of those they acted on: evidence",
    "table:audit_head": "a hash",
    "table:erasures": "pseudonyms of those who were erased: the record of it",
    "folder:models": "weights; an erasure names those trained on exported rows",
    "folder:run": "processes",
    "folder:recorder_socket": "a socket",
    "folder:database_note": "the database's URL",
    "folder:deployments": "acts of operators, with what they applied",
    "folder:data": "public data sets",
    "folder:optimizations": "measurements",
    "file:database": "the tables above",
}
"""Places without data of end users, and what they hold."""
