"""Answers beside those of a reference: what is right, still right and broken; asked once, recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prepare import MODEL, put
from tests.parts import running_echo
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.errors import EvaluationError, FleetError
from thrifty.evaluate.answers import (
    ANSWERS,
    AnswersRequest,
    ServeModel,
    compare_given,
    evaluate_answers,
    find_questions,
    is_chat_model,
    is_right,
    measure_answers,
)
from thrifty.evaluate.answers_text import quote, summarize_answers
from thrifty.evaluate.asking import Serve
from thrifty.evaluate.questions import SHORT_REQUEST, SHORT_TOKENS, Question
from thrifty.types import OnProgress

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
CAPITALS = {"France": "Paris", "Paraguay": "Asunción", "Peru": "Lima", "Kenya": "Nairobi"}
SHORT = [
    Question((("user", f"What is the capital of {land}?"),), (city,))
    for land, city in CAPITALS.items()
]
OPEN = [
    Question((("user", "Why is the sky blue?"),)),
    Question((("system", "Be brief."), ("user", "Explain tides to me."))),
]
QUESTIONS = [*SHORT, *OPEN]
RIGHT = [*CAPITALS.values(), "The sky scatters blue light.", "The moon pulls the sea; hence tides."]


@pytest.mark.parametrize(
    "answer",
    ["Paris", " paris.", "The Paris!", "Paris\n\nIt lies at the Seine.", '"Paris"', "\n\nPARIS"],
)
def test_right_is_the_first_line_after_normalisation(answer: str) -> None:
    assert is_right(SHORT[0], answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.", "Paris is the capital of France. It is large.",
        "It is called Paris", "Capital of France: Paris",
    ],
)  # fmt: skip
def test_so_is_a_sentence_that_says_nothing_else(answer: str) -> None:
    assert is_right(SHORT[0], answer)


def test_what_the_question_says_is_no_answer() -> None:
    either = Question((("user", "Which is larger, the sun or the moon?"),), ("the sun",))
    assert is_right(either, "Sun")
    assert not is_right(either, "The moon is larger, not the sun")
    assert not is_right(either, "Which is larger, the moon or the sun")
    abbreviated = Question((("user", "What is the capital of Antigua?"),), ("St. John's",))
    assert is_right(abbreviated, "St. John's")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Paris Texas",
        "Pari s",
        "Lyon\nParis",
        "It may be Paris",
        "Not Paris",
        "The capital of France is Paris or Lyon",
    ],
)
def test_anything_else_is_not(answer: str) -> None:
    assert not is_right(SHORT[0], answer)
    assert not is_right(OPEN[0], answer)


def test_accents_do_not_count() -> None:
    assert is_right(SHORT[1], "Asuncion")
    assert is_right(Question((("user", "x"),), ("Asuncion",)), "Asunción")


def test_a_model_is_held_to_what_its_reference_has_right() -> None:
    reference = [*RIGHT[:3], "Mombasa", *RIGHT[4:]]
    candidate = [
        "Paris",
        "",
        "Lima",
        "Nairobi",
        "Blue " * 30,
        "You are a nice person and you know it",
    ]
    found = compare_given(QUESTIONS, reference, candidate)
    assert (found.asked, found.reference_right, found.still_right) == (6, 3, 2)
    assert found.still_right_share.share == pytest.approx(2 / 3)
    assert 0.2 < found.still_right_share.low < 2 / 3 < found.still_right_share.high < 0.95
    assert (found.empty, found.loops, found.ignored) == (1, 1, 1)
    assert dataclasses.asdict(found.reference_faults) == {"empty": 0, "loops": 0, "ignored": 0}
    told = found.as_dict()
    assert set(told["still_right_share"]) == {"share", "low", "high"}
    json.dumps(told, allow_nan=False)
    # Those that people read come first.
    assert told["samples"][0]["question"] == "Why is the sky blue?"
    assert told["samples"][0]["flags"] == ["loop"]
    assert told["samples"][1]["question"] == "system: Be brief.\nuser: Explain tides to me."
    assert told["samples"][2] == {
        "question": "What is the capital of France?", "reference": "Paris", "candidate": "Paris",
        "reference_flags": ["right"], "flags": ["right"],
    }  # fmt: skip
    assert told["samples"][3]["flags"] == ["empty"]


def test_a_reference_that_knows_nothing_has_no_share() -> None:
    found = compare_given(OPEN, RIGHT[4:], RIGHT[4:]).as_dict()
    assert found["reference_right"] == 0
    assert found["still_right_share"] is None
    assert "answers right, 0 of 0;" in summarize_answers("m", {"beside": "r", **found})[0]


def test_at_most_twenty_are_shown() -> None:
    many = [Question((("user", f"Say {number}"),)) for number in range(30)]
    answers = [str(number) for number in range(30)]
    assert len(compare_given(many, answers, answers).samples) == 20


def test_answers_are_quoted_on_one_line_that_can_be_printed() -> None:
    assert quote("a\n\x1b[31mb", ["loop"]) == "[loop] a \\x1b[31mb"
    assert quote("x" * 500, ()).endswith("x...")
    assert len(quote("x" * 500, ())) < 250


# Stored models


ECHOED = [
    Question((("user", name),), (f"{name} {SHORT_REQUEST}"[:SHORT_TOKENS],))
    for name in ("Paris", "Lima", "Rome", "Oslo")
]
CHAT = {"templates": {"default": TEMPLATE}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def serve_at(urls: dict[str, str], asked: list[str]) -> ServeModel:
    """Models that are served already, by their labels."""

    def serve(version: NamedVersion, artifact: Artifact, on_progress: OnProgress) -> Serve:
        def use(ask: Callable[[str, str], None]) -> None:
            asked.append(version.label)
            if version.label not in urls:
                raise FleetError("its process was killed by signal 9")
            ask(urls[version.label], "echo")

        return use

    return serve


def put_two(store: Store) -> tuple[Any, Any]:
    return put(store, **CHAT), put(store, dataclasses.replace(MODEL, seed=7), **CHAT)


async def test_models_are_asked_once_and_the_comparison_is_recorded(
    store: Store, tmp_path: Path
) -> None:
    reference, model = put_two(store)
    asked: list[str] = []
    async with running_echo() as url, running_echo(reply=f"Lima {SHORT_REQUEST}") as other:
        serve = serve_at({"tiny@v1": url, "tiny@v2": other}, asked)

        async def measure(questions: list[Question]) -> Any:
            request = AnswersRequest(reference[0], questions, serve)
            return await asyncio.to_thread(measure_answers, store, tmp_path, *model, request)

        found = await measure(ECHOED)
        assert await measure(ECHOED) == found
        assert asked == ["tiny@v1", "tiny@v2"]
        assert store.read_measurements(model[1].id) == (found,)
        assert found.kind == ANSWERS
        assert found.conditions["reference"] == reference[1].id
        assert found.conditions["processor"]
        assert found.values["beside"] == "tiny@v1"
        assert (found.values["reference_right"], found.values["still_right"]) == (4, 1)
        # Only what is new is asked.
        more = await measure(
            [*ECHOED, Question((("user", "Bern"),), (f"Bern {SHORT_REQUEST}"[:SHORT_TOKENS],))]
        )
    assert (more.values["reference_right"], more.values["asked"]) == (5, 5)
    assert asked == ["tiny@v1", "tiny@v2"] * 2
    assert len(store.read_measurements(model[1].id)) == 2
    kept = sorted((tmp_path / "answers").glob("chat-*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in kept] == [5, 5]


async def test_a_server_is_asked_where_it_is_and_anew_each_time(
    store: Store, tmp_path: Path
) -> None:
    reference = put(store, **CHAT)
    async with running_echo() as url, running_echo() as other:
        request = AnswersRequest(reference[0], ECHOED, serve_at({"tiny@v1": url}, []))
        for _ in range(2):
            found = await asyncio.to_thread(
                evaluate_answers, other, request, store=store, folder=tmp_path
            )
            assert (found["asked"], found["reference_right"], found["still_right"]) == (4, 4, 4)
            assert len(list((tmp_path / "answers").glob("chat-*.jsonl"))) == 1


async def test_an_error_names_the_model(store: Store, tmp_path: Path) -> None:
    reference, model = put_two(store)
    async with running_echo() as url:
        request = AnswersRequest(reference[0], ECHOED, serve_at({"tiny@v1": url}, []))
        with pytest.raises(EvaluationError, match=r"tiny@v2 did not answer .* killed by signal 9"):
            await asyncio.to_thread(measure_answers, store, tmp_path, *model, request)
    assert not store.read_measurements(model[1].id)


def test_models_without_a_template_cannot_be_asked(store: Store, tmp_path: Path) -> None:
    chat, plain = put(store, **CHAT), put(store, dataclasses.replace(MODEL, seed=7))
    assert is_chat_model(store, chat[1])
    assert not is_chat_model(store, plain[1])
    request = AnswersRequest(plain[0], ECHOED, serve_at({}, []))
    with pytest.raises(EvaluationError, match="tiny@v2 has no chat template"):
        measure_answers(store, tmp_path, *chat, request)


def test_files_of_questions_replace_the_others(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    records: list[dict[str, Any]] = [
        {"question": f"q{number}", "answers": ["a"]} for number in range(30)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*records, {"question": "open"}]))
    found = find_questions(str(path), tmp_path, store)
    assert len(found) == 31
    assert found[0].text == "open"
    bounded = find_questions(str(path), tmp_path, store, 7)
    assert len(bounded) == 8
    assert bounded == found[:8]
    assert [one.text for one in bounded[1:]] != [f"q{number}" for number in range(7)]
