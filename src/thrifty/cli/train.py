"""`thrifty train`: a model learns from rows, from feedback, or from a teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.cli.distill import run_distill
from thrifty.cli.show import err, print_json, print_line, show_progress, tell
from thrifty.cli.texts import make_log_finder
from thrifty.compress.distill.answers import RemoteTeacher
from thrifty.compress.distill.settings import Training
from thrifty.control.service_api import Actor
from thrifty.data.augmentation import parse_augmentation
from thrifty.db.erasures import note_export
from thrifty.db.subjects import open_subjects
from thrifty.errors import TrainingError
from thrifty.evaluate.open_model import is_url
from thrifty.evaluate.suite import LOG
from thrifty.feedback.export import REASONS, Chosen, Form, Skipped, export_rows
from thrifty.files import replace_atomically
from thrifty.fleet.controller_note import open_home
from thrifty.home import Home, find_home, make_private_folder
from thrifty.train.named_data import NamedRows, find_rows
from thrifty.train.plot import plot_losses
from thrifty.train.request import BETA, LORA_RANK, TrainingRequest
from thrifty.train.rows import Method
from thrifty.train.run import train_model

DISTILL = "distill"
DISTILL_MINUTES = 30.0


@dataclass(frozen=True)
class Asked:
    """What the command was given; None: left out."""

    model: str
    data: str
    method: str
    out: str
    lora_rank: int | None
    epochs: float | None
    minutes: float | None
    learning_rate: float | None
    beta: float | None
    sft_weight: float | None
    batch: int | None
    micro_batch: int | None
    window: int | None
    held_out: Path | None
    teacher: str | None
    teacher_model: str | None
    teacher_key_env: str | None
    checkpointing: bool
    processes: int
    ray: str | None
    seed: int
    resume: bool
    restart: bool = False
    augment: str | None = None
    adapter: bool = False


def run_train(asked: Asked, *, plot: Path | None, as_json: bool) -> None:
    """Train a model."""
    if asked.method == DISTILL:
        _distill(asked, plot, as_json=as_json)
        return
    try:
        method = Method(asked.method)
    except ValueError:
        raise TrainingError(
            f"{asked.method!r} is no method; take {', '.join(Method)} or {DISTILL}"
        ) from None
    _refuse(asked, f"--method {method}", "teacher", "teacher_model", "teacher_key_env")
    if method is not Method.DPO:
        _refuse(asked, f"--method {method}", "sft_weight")
    if method in (Method.SFT, Method.CONTRASTIVE):
        _refuse(asked, f"--method {method}", "beta")
    if asked.resume and asked.restart:
        raise TrainingError("--resume goes on, and --restart begins anew; leave one of them out")
    home = find_home()
    rows = _find_rows(asked.data, method, home)
    request = TrainingRequest(
        asked.model, rows.learned, method, asked.out, data_name=rows.name,
        held_out=asked.held_out or rows.held_out,
        epochs=asked.epochs, minutes=asked.minutes, learning_rate=asked.learning_rate,
        lora_rank=LORA_RANK if asked.lora_rank is None else asked.lora_rank,
        window=asked.window, batch=asked.batch, micro_batch=asked.micro_batch,
        beta=BETA if asked.beta is None else asked.beta, sft_weight=asked.sft_weight or 0.0,
        checkpointing=asked.checkpointing, processes=asked.processes, ray=asked.ray, seed=asked.seed,
        resume=asked.resume, restart=asked.restart, adapter=asked.adapter, data_set=rows.built,
        refresh=rows.refresh,
        augment=rows.augment if asked.augment is None else parse_augmentation(asked.augment),
    )  # fmt: skip
    with show_progress() as on_progress:
        version, artifact = train_model(Store(home.models), home, request, on_progress, tell)
    figures = version.lineage.figures
    if plot is not None:
        plot_losses(figures, plot)
        err.print(f"the losses are drawn in {plot}")
    _show(version, artifact, figures, as_json=as_json)


def _show(
    version: NamedVersion, artifact: Artifact, figures: dict[str, Any], *, as_json: bool
) -> None:
    if as_json:
        print_json({"name": version.label, "bytes": artifact.size_bytes, "figures": figures})
        return
    rows = figures["rows"]
    tell(
        f"{rows['learned']} rows learned, {rows['held_out']} held out; {figures['unit']} on these: "
        f"{figures['before']:.4f} before, {figures['after']:.4f} after {figures['best_step']} of "
        f"{figures['steps']} steps"
    )
    for name, one in figures["details"].items():
        before = "" if one["before"] is None else f"{one['before']:.3f} before, "
        tell(f"{_DETAILS[name]}: {before}{one['after']:.3f} after")
    print_line(version.label)


_DETAILS = {
    "preferred": "share of held-out pairs in which the chosen answer gained on the other",
    "margin": "how much it gained, in nats",
    "liked": "how much likelier held-out liked answers are than before, in nats",
    "disliked": "how much likelier disliked ones are, in nats",
    "first": "share of held-out queries whose own text is the nearest",
}


def _refuse(asked: Asked, what: str, *names: str) -> None:
    """Raise `TrainingError` for an option that says nothing here."""
    for name in names:
        if getattr(asked, name) not in (None, False):
            raise TrainingError(
                f"--{name.replace('_', '-')} has no meaning with {what}; leave it out"
            )


def _find_rows(named: str, method: Method, home: Home) -> NamedRows:
    """The rows that `named` is; feedback is written to a file in this home once a training begins."""
    if not named.startswith(LOG):
        return find_rows(home, named, method)
    if method is Method.CONTRASTIVE:
        raise TrainingError(
            f"--data {named}: feedback is about answers, and --method {method} learns which texts "
            "belong together; name a file or a data set of such texts"
        )
    deployment = named.removeprefix(LOG)
    folder = make_private_folder(home.data / "feedback")
    path = folder / f"{quote(deployment, safe='')}.{method}.jsonl"
    return NamedRows(
        named, [path], [], refresh=lambda: _export_feedback(deployment, method, home, path)
    )


def _export_feedback(deployment: str, method: Method, home: Home, path: Path) -> None:
    skipped = Skipped()
    with open_home(home) as database:
        # Before it is written, so that `thrifty forget` knows of it in any case.
        note_export(database, path, method.value, who=Actor.from_user("thrifty train").who)
        found = export_rows(
            database, Form(method.value), open_subjects(database), skipped,
            Chosen(deployment=deployment or None),
        )  # fmt: skip
        with replace_atomically(path, mode=0o600) as temporary:
            count = _write(temporary, found)
    tell(f"{count} rows from feedback, in {path}")
    for reason, number in skipped.counts.most_common():
        tell(f"  no row: {number} {'response' if number == 1 else 'responses'} {REASONS[reason]}")


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    with path.open("w") as file:
        return sum(file.write(json.dumps(row, ensure_ascii=False) + "\n") > 0 for row in rows)


def _distill(asked: Asked, plot: Path | None, *, as_json: bool) -> None:
    """Learn the answers of a teacher to the data's prompts."""
    if asked.teacher is None:
        raise TrainingError(
            "--method distill needs --teacher (a model, or a server's URL); for all of its settings "
            "see 'thrifty distill --help'"
        )
    _refuse(
        asked,
        "--method distill",
        "epochs",
        "beta",
        "sft_weight",
        "batch",
        "window",
        "augment",
        "adapter",
        "ray",
        "restart",
    )
    home = find_home()
    if asked.data.startswith(LOG):
        files = [make_log_finder(home)(asked.data.removeprefix(LOG))]
    else:
        files = find_rows(home, asked.data, Method.SFT).learned
    minutes = DISTILL_MINUTES if asked.minutes is None else asked.minutes
    training = Training(
        minutes=minutes, learning_rate=asked.learning_rate, lora_rank=asked.lora_rank or 0,
        micro_batch=asked.micro_batch or 1, checkpointing=asked.checkpointing, seed=asked.seed,
    )  # fmt: skip
    remote = RemoteTeacher(asked.teacher, asked.teacher_model, asked.teacher_key_env)
    run_distill(
        asked.model, remote if is_url(asked.teacher) else asked.teacher, text=[str(path) for path in files],
        held_out=str(asked.held_out) if asked.held_out else None, out=asked.out, training=training,
        live=False, backend="openvino", processes=asked.processes, resume=asked.resume, plot=plot,
        as_json=as_json,
    )  # fmt: skip
