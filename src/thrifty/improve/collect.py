"""The first step: from what users said to a built data set, within bounds that are counted.

Feedback is read from the request log, sifted (`guards`), made rows of the method's form, bounded in
what one user is behind and in what the loop's own versions said, and built into a data set
(`curate`), which deduplicates and keeps rows apart from what models are judged by. Texts stay as
they were served and recorded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thrifty.curate.build import build_data, describe_outcome
from thrifty.data.built import TEST, TRAIN, BuiltSet, open_set
from thrifty.db.erasures import note_export
from thrifty.db.feedback import Judged, read_judged
from thrifty.db.improve import GIVEN_UP, NOTHING, read_run, read_runs
from thrifty.db.request_queries import read_texts
from thrifty.db.subjects import open_subjects
from thrifty.errors import DataError, NoRowsError
from thrifty.feedback.export import REASONS, Form, Skipped, export_rows
from thrifty.files import replace_atomically
from thrifty.home import make_private_folder
from thrifty.improve.guards import (
    Sifted,
    bound_users,
    hash_answer,
    keep_judgements,
    sift_feedback,
)
from thrifty.improve.signal import find_signal
from thrifty.improve.taught import forget_answers, make_taught, note_teacher
from thrifty.improve.trusted import build_trusted, find_prompts, list_questions, split_trusted
from thrifty.improve.turn import (
    Turn,
    TurnEnds,
    find_own_versions,
    find_parent,
    find_serving,
    leave_texts,
)
from thrifty.spec.improve import Method
from thrifty.train.prepare import LEAST_ROWS
from thrifty.train.request import WINDOW

HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 0.1, 24, 0.3
"""The share of the rows that is held out; of few rows a larger one, up to 0.3, because the loss on
a handful of rows does not tell when a training has to stop."""
LEAST_OF_A_KIND = 5
"""KTO needs liked and disliked answers."""
GUARDS = {
    "trusted": "to prompts that are held out for trusted users",
    "outlier": "of users whose likes differ from the others' by more than chance",
    "long": "far longer than other corrections",
    "per_user": "beyond `guards.per_user`",
    "per_tenant": "beyond `guards.per_tenant`",
    "agree": "on which fewer than `guards.agree` users agree",
}
"""Why judgements were left out, completing "judgements ..."."""


@dataclass(frozen=True)
class Counts:
    """What the feedback holds, in rows of each kind."""

    pairs: int
    """Two answers to the same prompt, one of them liked."""
    corrections: int
    liked: int
    disliked: int

    @property
    def thumbs(self) -> int:
        """Rows for KTO."""
        return self.liked + self.disliked

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs, {self.corrections} corrections, {self.liked} liked and "
            f"{self.disliked} disliked answers"
        )


@dataclass(frozen=True)
class Found:
    """What there is to learn from, and what of trusted users is held out."""

    sifted: Sifted
    judged: int
    counts: Counts
    method: Method
    held: list[Judged]


def find_feedback(turn: Turn) -> Found:
    """Read and sift the feedback, and choose the method. Raises `TurnEnds` where there is too
    little.
    """
    judged = read_judged(turn.database, deployment=turn.deployment)
    guards = turn.settings.guards
    learned, held, left_out = split_trusted(judged, guards, find_prompts(turn))

    def find_key(one: Judged) -> bytes | None:
        texts = read_texts(turn.database, one.response)
        if texts is None or not texts.readable:
            return None
        return hash_answer(texts.prompt, texts.answer)

    sifted = sift_feedback(learned, guards, find_key)
    sifted.left_out["trusted"] += left_out
    if not judged:
        raise TurnEnds(
            NOTHING, f"nobody has judged an answer of {turn.deployment!r} yet; see docs/api.md for "
            "how clients send feedback"
        )  # fmt: skip
    if sifted.users < guards.users:
        raise TurnEnds(
            NOTHING,
            f"the feedback that counts is of {sifted.users} "
            f"{'user' if sifted.users == 1 else 'users'}, and 'improve.guards.users' asks for "
            f"{guards.users}; have clients name the user of each request, or lower it",
        )
    counts, skipped = count_rows(turn, sifted)
    return Found(sifted, len(judged), counts, choose_method(turn, counts, skipped, sifted), held)


def count_rows(turn: Turn, sifted: Sifted) -> tuple[Counts, Skipped]:
    """How many rows of each kind the feedback gives; and why responses give none, as for KTO."""
    skipped = Skipped()
    kinds = Counter(row["provenance"]["source"] for row in _read(turn, Form.KTO, sifted, skipped))
    pairs = sum(
        row["provenance"][0]["source"] == "same prompt"
        for row in _read(turn, Form.DPO, sifted, Skipped())
    )
    disliked = kinds["disliked"] + kinds["corrected"]
    return Counts(pairs, kinds["correction"], kinds["liked"], disliked), skipped


def count_left(turn: Turn, method: Method, sifted: Sifted, counts: Counts) -> int:
    """About how many rows of a method are left once those that teach answers of the loop's own
    versions are bounded; 0 where KTO would miss a kind.
    """
    rows = list(_export(turn, Form(method), sifted, Skipped()))
    taught = counts.disliked if turn.settings.teacher is not None else 0
    mixed = [open_set(turn.home.datasets, named) for named in turn.settings.data]
    others = sum(one.count(TRAIN) for one in mixed if one.kind == method)
    own = find_own_versions(turn.database, turn.deployment)
    kept, _ = bound_own(rows, own, turn.settings.guards.own, others + taught)
    if method == "kto":
        liked = taught + sum(bool(row["label"]) for row in kept)
        if min(liked, taught + len(kept) - liked) < LEAST_OF_A_KIND:
            return 0
    return len(kept) + taught


def choose_method(turn: Turn, counts: Counts, skipped: Skipped, sifted: Sifted) -> Method:
    """What is learned. Raises `TurnEnds` where there are too few rows for it."""
    settings = turn.settings
    # A teacher answers anew what was disliked, which is as good as a correction.
    corrected = counts.corrections + (counts.disliked if settings.teacher is not None else 0)
    rows = {
        "dpo": counts.pairs + corrected,
        "sft": corrected + counts.liked,
        "kto": counts.thumbs + corrected,
    }
    both = min(counts.liked + counts.corrections, counts.disliked) >= LEAST_OF_A_KIND
    if settings.method != "auto":
        if settings.method == "kto" and not both:
            raise TurnEnds(NOTHING, _tell_one_kind(counts))
        if rows[settings.method] >= settings.rows:
            return settings.method
    else:
        able: list[Method] = ["dpo"] if counts.pairs >= settings.rows else []
        if corrected >= settings.rows:
            able.append("dpo" if corrected > counts.corrections else "sft")
        if rows["kto"] >= settings.rows:
            if both:
                able.append("kto")
            elif not able:
                raise TurnEnds(NOTHING, _tell_one_kind(counts))
        left = (one for one in able if count_left(turn, one, sifted, counts) >= settings.rows)
        if able:
            # Where `guards.own` leaves too little for all of them, `collect` says so of the first.
            return next(left, able[0])
    without = "; ".join(f"{number} {REASONS[why]}" for why, number in skipped.counts.most_common(3))
    asked = "" if settings.method == "auto" else f" for {settings.method}"
    raise TurnEnds(
        NOTHING,
        f"there is too little{asked} to learn from: {counts}, and 'improve.rows' asks for "
        f"{settings.rows}" + (f" (responses without a row: {without})" if without else ""),
    )


def _tell_one_kind(counts: Counts) -> str:
    return (
        f"the feedback is all of one kind ({counts}); KTO learns from liked beside disliked answers. "
        "To repeat what was liked: 'improve: {method: sft}'"
    )


def collect(turn: Turn) -> dict[str, Any]:
    """Build the data set; returns what became of the feedback. Raises `ThriftyError` kinds."""
    note_teacher(turn)
    found = find_feedback(turn)
    there = turn.read()
    parent = find_parent(turn.store, turn.database, there, find_serving(there))
    mixed = [_open_mixed(turn, named, found.method) for named in turn.settings.data]
    path = make_private_folder(turn.home.data / "feedback") / f"{turn.name}.improve.jsonl"
    # Before it is written, so that `thrifty forget` knows of it in any case.
    note_export(turn.database, path, found.method, who=turn.who)
    taught, teacher = make_taught(turn, Form(found.method), found.sifted)
    # A teacher takes long, and people may have been forgotten meanwhile.
    found, taught = drop_erased(turn, found, taught)
    trusted = build_trusted(turn, found.held)
    skipped = Skipped()
    rows = _export(turn, Form(found.method), found.sifted, skipped, taught)
    others = sum(one.count(TRAIN) for one in mixed)
    rows, own = _bound(turn, rows, found.sifted, others, skipped)
    answered = {id(row) for row in taught}.intersection(map(id, rows))
    if len(rows) < turn.settings.rows:
        raise TurnEnds(
            NOTHING,
            f"{len(rows)} rows are left of the feedback, and 'improve.rows' asks for "
            f"{turn.settings.rows}: {skipped.counts['beyond_share']} are "
            f"{REASONS['beyond_share']}, and {own} teach what the loop's own versions said, beyond "
            "'improve.guards.own'; name data sets of others' answers in 'improve.data'",
        )
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        with list_questions(turn, found.held) as apart:
            recipe = make_recipe(turn, found.method, path, mixed, parent.label, len(rows) + others)
            recipe["decontaminate"]["against"] += apart
            built = build_data(
                recipe, f"{turn.name}-{found.method}", home=turn.home, on_progress=turn.on_progress
            )
    except NoRowsError as error:
        raise TurnEnds(NOTHING, str(error)) from None
    finally:
        path.unlink(missing_ok=True)
    _require_rows(built)
    _refuse_known(turn, built)
    signal = None
    if found.method != "sft":
        signal = find_signal(list(_export(turn, Form.KTO, found.sifted, Skipped())))
    if signal is not None:
        turn.on_note(str(signal))
    forget_answers(turn)
    outcome = describe_outcome(built)
    return {
        "data": built.label, "sha256": built.sha256, "method": found.method, "parent": parent.label,
        "learned": built.count(TRAIN), "held_out": built.count(TEST), "judged": found.judged,
        "users": found.sifted.users, "counts": vars(found.counts),
        "left_out": {name: n for name, n in found.sifted.left_out.items() if n},
        "no_row": dict(skipped.counts), "own": own, "removed": outcome["removed"],
        "mixed": [one.label for one in mixed],
        "signal": None if signal is None else {**vars(signal), "found": signal.found},
        "trusted": None if trusted is None else {"data": trusted.label, "rows": trusted.count()},
        "teacher": _read_teacher(turn), "taught": {"by": teacher, "rows": len(answered)},
    }  # fmt: skip


def drop_erased(
    turn: Turn, found: Found, taught: list[dict[str, Any]]
) -> tuple[Found, list[dict[str, Any]]]:
    """What was found and taught without the judgements that are not there any more."""
    judged = read_judged(turn.database, deployment=turn.deployment)
    there = {said.id for one in judged for said in one.judgements}
    named = {f"fb-{number}" for number in there}
    sifted = replace(found.sifted, judged=keep_judgements(found.sifted.judged, there))
    found = replace(found, sifted=sifted, held=keep_judgements(found.held, there))
    return found, [row for row in taught if named.issuperset(_find_feedback(row))]


def _find_feedback(row: dict[str, Any]) -> list[str]:
    given = row["provenance"]
    return [
        name for one in (given if isinstance(given, list) else [given]) for name in one["feedback"]
    ]


def _read_teacher(turn: Turn) -> str | None:
    assert turn.run is not None
    return read_run(turn.database, turn.run.id).steps["collect"].outputs.get("teacher")


def make_recipe(
    turn: Turn, method: str, path: Path, mixed: list[BuiltSet], tokenizer: str, rows: int
) -> dict[str, Any]:
    """How the data set of about so many rows is built; see docs/data.md."""
    judged_by = [
        str(Path(named).expanduser().absolute())
        for named in turn.settings.gate.data
        if Path(named).expanduser().is_file()
    ]
    sources = [{"name": f"feedback:{turn.deployment}", "path": str(path)}]
    for one in mixed:
        sources += [
            {"name": f"{one.label}/{file.path}", "path": str(one.folder / file.path)}
            for file in one.files
            if file.split == TRAIN
        ]
    held_out = min(MOST_HELD_OUT, max(HELD_OUT, LEAST_HELD_OUT / max(1, rows)))
    return {
        "kind": method,
        "sources": sources,
        **leave_texts(turn),
        "length": {"tokenizer": tokenizer, "most": turn.settings.train.window or WINDOW},
        "decontaminate": {"leaks": "drop", "against": judged_by},
        "split": {"test": round(held_out, 3), **({"stratify": "label"} if method == "kto" else {})},
    }


def _bound(
    turn: Turn, rows: list[dict[str, Any]], sifted: Sifted, others: int, skipped: Skipped
) -> tuple[list[dict[str, Any]], int]:
    """The rows within both bounds: that of what the loop's own versions said, of which is told how
    many went, and that of what one user is behind. What the one takes leaves less for the other.
    """
    versions = find_own_versions(turn.database, turn.deployment)
    own = 0
    while True:
        rows, gone = bound_own(rows, versions, turn.settings.guards.own, others)
        own += gone
        kept = _bound_users(turn, rows, sifted, skipped)
        if len(kept) == len(rows):
            return rows, own
        rows = kept


def _bound_users(
    turn: Turn, rows: list[dict[str, Any]], sifted: Sifted, skipped: Skipped
) -> list[dict[str, Any]]:
    kept, gone = bound_users(rows, sifted.judged, turn.settings.guards.users)
    skipped.counts.update({"beyond_share": gone} if gone else {})
    return kept


def bound_own(
    rows: list[dict[str, Any]], own_versions: set[str], share: float, others: int
) -> tuple[list[dict[str, Any]], int]:
    """The rows of which at most `share` teaches what the loop's own versions said, and how many
    went. `others` are rows of other data that are learned, too.
    """
    own = [row for row in rows if _teaches_own(row, own_versions)]
    foreign = len(rows) - len(own) + others
    room = len(own) if share >= 1 else int(foreign * share / (1 - share))
    if len(own) <= room:
        return rows, 0
    gone = {id(row) for row in own[room:]}
    return [row for row in rows if id(row) not in gone], len(gone)


def _teaches_own(row: dict[str, Any], own_versions: set[str]) -> bool:
    """Whether a row teaches an answer that a version of the loop gave."""
    given = row["provenance"]
    first = given[0] if isinstance(given, list) else given
    taught = row.get("label", True) and first["source"] in ("liked", "same prompt")
    return bool(taught) and first["version"] in own_versions


def _export(
    turn: Turn, form: Form, sifted: Sifted, skipped: Skipped,
    taught: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of a form that the feedback gives, and the teacher's, within each user's share."""
    rows = [*_read(turn, form, sifted, skipped), *taught]
    return _bound_users(turn, rows, sifted, skipped)


def _read(turn: Turn, form: Form, sifted: Sifted, skipped: Skipped) -> Iterator[dict[str, Any]]:
    return export_rows(
        turn.database, form, open_subjects(turn.database), skipped, judged=sifted.judged
    )


def _open_mixed(turn: Turn, named: str, method: str) -> BuiltSet:
    built = open_set(turn.home.datasets, named)
    if built.kind != method:
        raise DataError(
            f"'improve.data' names {built.label}, which has {built.kind} rows, and this run learns by "
            f"{method}; name a set of {method} rows, or set 'improve.method: {built.kind}'"
        )
    return built


def _require_rows(built: BuiltSet) -> None:
    """Raise `TurnEnds` where a training would refuse what is left of the feedback: it would refuse
    it again an hour later.
    """
    if built.count() < LEAST_ROWS:
        raise TurnEnds(
            NOTHING,
            f"the feedback comes to {built.count()} different rows ({built.label} tells what was "
            f"removed), and a training takes {LEAST_ROWS}; wait for more feedback",
        )
    if built.kind == "kto" and len({bool(row["label"]) for row in built.read(TRAIN)}) < 2:
        raise TurnEnds(
            NOTHING,
            f"all answers that are left to learn from ({built.label}) are of one kind; KTO learns "
            "from liked beside disliked answers",
        )


def _refuse_known(turn: Turn, built: BuiltSet) -> None:
    """Raise `TurnEnds` where an earlier run has learned these rows by these settings already."""
    assert turn.run is not None
    for run in read_runs(turn.database, turn.deployment, limit=20):
        outputs = run.find_outputs("collect")
        if run.id == turn.run.id or outputs is None or run.state == GIVEN_UP:
            continue
        if outputs["sha256"] == built.sha256 and run.settings == turn.run.settings:
            raise TurnEnds(
                NOTHING,
                f"there is nothing new: run {run.id} learned the same rows ({built.label}) by the same "
                f"settings, and ended as {run.state.replace('_', ' ')}",
            )
