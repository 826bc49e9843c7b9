"""What a turn of the loop would do, with its sizes, minutes and cost; nothing is written.

Minutes are those of the deployment's last turns where there were any. Otherwise the training counts
about six operations for each weight and token (Kaplan et al. 2020, 2001.08361) at the speed at
which this machine multiplies matrices, and the gate two for each weight and token that is read.
Both are good to a factor of two or three.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Artifact
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.data import SETS
from thrifty.data.token_lengths import list_conversations
from thrifty.db.desired import read_desired
from thrifty.db.improve import DONE, find_active_run, read_runs
from thrifty.db.subjects import open_subjects
from thrifty.feedback.export import REASONS, Form, Skipped, export_rows
from thrifty.improve.collect import Found, find_feedback
from thrifty.improve.gate.material import holds_questions
from thrifty.improve.guards import bound_users
from thrifty.improve.steps import check_ready
from thrifty.improve.taught import MOST, list_disliked
from thrifty.improve.turn import Turn, TurnEnds, find_parent, find_serving
from thrifty.openai.errors import WireError
from thrifty.release.plan import parse_plan
from thrifty.spec.improve import ImproveGateSpec
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.request import EPOCHS

SAMPLE = 200
"""Rows of which the tokens are counted."""
BACKWARD = {"sft": 6.0, "dpo": 16.0, "kto": 10.0}
"""Operations for each weight and token of a row: forwards, backwards, and of the frozen model."""
LORA = 2 / 3
"""Low-rank changes need no gradients of the matrices themselves."""
GENERATED = 60
"""Tokens of a question and its answer, as the gate asks them."""
DOMAINS = 5
SIZE = 768
"""Of the matrices by which the speed is measured."""


def describe_turn(turn: Turn) -> dict[str, Any]:
    """What `run_turn` would do now. Raises `ThriftyError` kinds where that cannot be told."""
    check_ready(turn)
    there = turn.read()
    serving = find_serving(there)
    parent = find_parent(turn.store, turn.database, there, serving)
    active = find_active_run(turn.database, turn.deployment)
    plan = parse_plan(turn.settings.release)
    described: dict[str, Any] = {
        "deployment": turn.deployment, "serving": serving.label, "parent": parent.label,
        "makes": f"{turn.name}@v{_next_version(turn)}",
        "goes_on_with": None if active is None else active.id,
        "done": [] if active is None else [k for k, one in active.steps.items() if one.state == DONE],
        "approve": turn.settings.approve, "release": plan.stages, "problem": None,
    }  # fmt: skip
    try:
        found = find_feedback(turn)
    except TurnEnds as error:
        return {**described, "problem": str(error)}
    artifact = turn.store.load(parent.artifact)
    rows, tokens, shared = _measure_rows(turn, found, artifact)
    asked = 0
    if turn.settings.teacher is not None:
        asked = min(MOST, len(list_disliked(turn, found.sifted)))
    if rows + asked < turn.settings.rows:
        problem = (
            f"{rows} rows are left of the feedback, {shared} are {REASONS['beyond_share']}, and "
            f"'improve.rows' asks for {turn.settings.rows}"
        )
        return {**described, "problem": problem}
    minutes = _estimate_minutes(turn, found, artifact, rows, tokens)
    service = read_desired(turn.database).service
    price = service.capacity.price_per_hour if service is not None else 0.0
    total = sum(minutes.values())
    return {
        **described, "method": found.method, "judged": found.judged, "users": found.sifted.users,
        "counts": vars(found.counts),
        "left_out": {name: n for name, n in found.sifted.left_out.items() if n},
        "rows": rows, "tokens": tokens, "share": shared,
        "teacher_requests": asked,
        "minutes": {name: round(value, 2) for name, value in minutes.items()},
        "total_minutes": round(total, 2), "price_per_hour": price,
        "cost": round(total / 60 * price, 4),
    }  # fmt: skip


def _next_version(turn: Turn) -> int:
    found = [one.version for one in turn.store.versions() if one.name == turn.name]
    return max(found, default=0) + 1


def _measure_rows(turn: Turn, found: Found, artifact: Artifact) -> tuple[int, int, int]:
    """The rows that the feedback gives, their tokens together, and how many more there are beyond
    one user's share.
    """
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(turn.store.folder_of(artifact.id), Path(name), artifact)
        tokenizer = TextTokenizer.load(Path(name))
    judged = found.sifted.judged
    given = export_rows(
        turn.database, Form(found.method), open_subjects(turn.database), Skipped(), judged=judged
    )
    rows, shared = bound_users(list(given), judged, turn.settings.guards.users)
    tokens = 0
    for row in rows[:SAMPLE]:
        for messages in list_conversations(row):
            try:
                text = tokenizer.render_chat(messages, add_generation_prompt=False)
            except WireError:
                continue
            tokens += len(tokenizer.encode(text, add_special_tokens=False))
    return len(rows), round(tokens * len(rows) / max(1, min(len(rows), SAMPLE))), shared


def _estimate_minutes(
    turn: Turn, found: Found, artifact: Artifact, rows: int, tokens: int
) -> dict[str, float]:
    settings = turn.settings
    past = _read_past(turn)
    minutes: dict[str, float] = {
        name: past[name] for name in ("collect", "compress", "gate") if name in past
    }
    weights, speed = artifact.description.parameters, 0.0
    if settings.train.minutes is not None:
        minutes["train"] = settings.train.minutes
    elif "train" in past:
        minutes["train"] = past["train"] * rows / max(1.0, past["rows"])
    else:
        speed = measure_speed()
        share = 1.0 if settings.train.lora_rank == 0 else LORA
        passes = settings.train.epochs or EPOCHS
        work = BACKWARD[found.method] * share * passes * tokens * weights
        minutes["train"] = work / speed / 60
    if "gate" not in minutes:
        speed = speed or measure_speed()
        questions, domains = count_gate_data(settings.gate)
        read = questions * GENERATED + domains * settings.gate.tokens
        minutes["gate"] = 2 * 2.0 * weights * read / speed / 60
    minutes.setdefault("collect", 0.1 + rows / 60_000)
    minutes.setdefault("compress", 0.1 + artifact.size_bytes / 6e9)
    order = ("collect", "train", "compress", "gate")
    return {name: minutes[name] for name in order}


def count_gate_data(wanted: ImproveGateSpec) -> tuple[int, int]:
    """The questions that a gate asks at most, and the domains that it reads. Nothing is fetched."""
    if not wanted.data:
        return wanted.items, DOMAINS
    questions = domains = 0
    for named in wanted.data:
        path = Path(named).expanduser()
        if named in SETS and SETS[named].kind == "questions":
            questions += wanted.items
        elif named not in SETS and path.is_file() and holds_questions(path):
            with path.open("rb") as file:
                questions += min(wanted.items, sum(1 for line in file if line.strip()))
        else:
            domains += 1
    return questions, domains


def _read_past(turn: Turn) -> dict[str, float]:
    """The minutes of each step in the newest run that has done it, and the rows it was for."""
    found: dict[str, float] = {}
    for run in read_runs(turn.database, turn.deployment, limit=10):
        for name, one in run.steps.items():
            if (
                one.state == DONE
                and one.ended_s is not None
                and name not in found
                and one.tries == 1
                and not one.inputs.get("again")
            ):
                found[name] = max(0.0, one.ended_s - one.began_s) / 60
                if name == "train":
                    collected = run.find_outputs("collect") or {}
                    found["rows"] = float(
                        collected.get("learned", 1) + collected.get("held_out", 0)
                    )
    return found


def measure_speed() -> float:
    """How many floating-point operations a second this machine does when it multiplies matrices."""
    one = np.ones((SIZE, SIZE), np.float32)
    best = float("inf")
    for _ in range(3):
        began_s = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - began_s)
    return 2.0 * SIZE**3 / best
