"""The answers of the models in a comparison: asked or found, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.machine import Machine
from thrifty.errors import ThriftyError
from thrifty.evaluate.answers import (
    ANSWERS,
    VERSION,
    AnswersRequest,
    find_questions,
    is_chat_model,
    measure_answers,
)
from thrifty.evaluate.answers_text import describe_share
from thrifty.evaluate.suite import describe_arithmetic
from thrifty.home import Home
from thrifty.own_replica import make_server
from thrifty.types import OnProgress

COLUMNS = ("still right", "empty / loops / ignored")


def make_request(
    store: Store, home: Home, root: NamedVersion, machine: Machine, on_progress: OnProgress
) -> AnswersRequest | None:
    """What the models of a comparison with `root` are asked; None if it is no chat model."""
    if not is_chat_model(store, store.load(root.artifact)):
        return None
    questions = find_questions(None, home.data, store, on_progress=on_progress)
    return AnswersRequest(root, questions, make_server(store, home, machine))


def ask(
    request: AnswersRequest,
    model: tuple[NamedVersion, Artifact],
    store: Store,
    home: Home,
    on_progress: OnProgress,
) -> str | None:
    """Ask a model what it was not asked before; why that did not succeed, if it did not."""
    if model[1].id == request.reference.artifact:
        return None
    try:
        measure_answers(store, home.evaluations, *model, request, on_progress)
    except ThriftyError as error:
        return f"{model[0].label} was not asked questions: {error}"
    return None


def find_recorded(
    store: Store, artifact: Artifact, root: NamedVersion, request: AnswersRequest | None
) -> dict[str, Any] | None:
    """A model's answers beside those of `root`: to what `request` asks, or else the latest."""
    here = describe_arithmetic().items()
    found = [
        one
        for one in store.read_measurements(artifact.id)
        if one.kind == ANSWERS
        and one.conditions["reference"] == root.artifact
        and one.conditions.get("version") == VERSION
        and here <= one.conditions.items()
        and (request is None or one.conditions == request.conditions)
    ]
    return found[-1].values if found else None


def make_cells(values: Mapping[str, Any] | None) -> tuple[str, str]:
    """The cells of a model, for `COLUMNS`."""
    if values is None:
        return "", ""
    faults = " / ".join(str(values[kind]) for kind in ("empty", "loops", "ignored"))
    return describe_share(values), f"{faults} of {values['asked']}"


def make_sample_rows(
    found: Sequence[Mapping[str, Any] | None],
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """For each question, the reference's answer and that of each model in order, with its marks. A
    model that was asked other questions than the first one has an empty answer.
    """
    known = [values["samples"] for values in found if values is not None]
    if not known:
        return []
    rows = []
    for at, first in enumerate(known[0]):
        cells = [(first["reference"], first["reference_flags"])]
        for samples in known:
            same = at < len(samples) and samples[at]["question"] == first["question"]
            cells.append((samples[at]["candidate"], samples[at]["flags"]) if same else ("", []))
        rows.append((first["question"], cells))
    return rows
