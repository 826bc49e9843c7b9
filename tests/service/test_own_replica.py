"""A model is served for one piece of work, on the real engine, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engines.test_prepare import MODEL, put
from tests.evaluate.bigram import write_text
from tests.parts import run_thrifty, wait_until
from thrifty.artifacts import Store
from thrifty.engines.machine import detect_machine
from thrifty.errors import EvaluationError, FleetError
from thrifty.evaluate.answers import DEFAULT_SETS, AnswersRequest, measure_answers
from thrifty.evaluate.questions import TWENTY, Question
from thrifty.evaluate.served import ServedUrl
from thrifty.fleet.process import find_ours
from thrifty.home import Home
from thrifty.own_replica import make_server, use_replica

pytestmark = pytest.mark.service

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
LONG = dataclasses.replace(MODEL, context=2048)


def put_chat(store: Store, **changes: Any) -> Any:
    return put(store, dataclasses.replace(LONG, **changes), templates={"default": TEMPLATE})


def test_random_models_are_asked_through_the_engine(home: Home) -> None:
    store = Store(home.models)
    reference, model = put_chat(store), put_chat(store, seed=3)
    questions = [*TWENTY[:6], Question((("user", "Who?"),), ("nobody",))]
    request = AnswersRequest(reference[0], questions, make_server(store, home, detect_machine()))
    found = measure_answers(store, home.evaluations, *model, request)
    assert found.values["asked"] == 7
    assert found.values["reference_right"] == 0
    assert found.values["still_right_share"] is None
    assert len(found.values["samples"]) == 7
    assert any(sample["candidate"] for sample in found.values["samples"])
    assert measure_answers(store, home.evaluations, *model, request) == found
    assert not find_ours(home.root)
    # The model beside itself says the same.
    itself = measure_answers(store, home.evaluations, *reference, request).values
    assert [one["candidate"] for one in itself["samples"]] == [
        one["reference"] for one in itself["samples"]
    ]


def test_an_engine_that_dies_is_told_of(home: Home) -> None:
    store = Store(home.models)
    version, artifact = put_chat(store)

    def kill(url: str, name: str) -> None:
        """Ask until there is no answer."""
        served = ServedUrl(url)
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        served.ask("POST", "/v1/chat/completions", body)
        (found,) = [ident for ident, _, name_ in find_ours(home.root) if "own-replica" in name_]
        process = found.find()
        assert process is not None
        for one in [*process.children(recursive=True), process]:
            one.kill()
        served.ask("POST", "/v1/chat/completions", body)

    with pytest.raises(FleetError, match=r"tiny-openvino@v1 ended while it was asked"):
        use_replica(store, home, version, artifact, detect_machine(), kill)
    wait_until(lambda: not find_ours(home.root))


def test_what_the_work_raises_comes_through(home: Home, tmp_path: Path) -> None:
    store = Store(home.models)
    version, artifact = put_chat(store)

    def fail(url: str, name: str) -> None:
        assert psutil.pid_exists(find_ours(home.root)[0][0].pid)
        raise EvaluationError("enough")

    with pytest.raises(EvaluationError, match="enough"):
        use_replica(store, home, version, artifact, detect_machine(), fail)
    assert not find_ours(home.root)


def test_the_commands_show_answers_side_by_side(home: Home, tmp_path: Path) -> None:
    store = Store(home.models)
    reference, model = put_chat(store), put_chat(store, seed=3)
    text = write_text(tmp_path / "text.txt", 1500)
    questions = tmp_path / "questions.jsonl"
    records = [{"question": "Why?"}, {"question": "Who?", "answers": ["nobody"]}]
    questions.write_text("".join(json.dumps(one) + "\n" for one in records))
    command = (
        "evaluate", model[0].label, "--reference", reference[0].label, "--text", str(text),
        "--tokens", "600",
    )  # fmt: skip
    told = run_thrifty(home.root, *command, "--questions", str(questions), "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["tokens"] > 0
    answers = found["answers"]
    assert (answers["asked"], answers["reference_right"], answers["still_right"]) == (2, 0, 0)
    assert {"empty", "loops", "ignored", "still_right_share"} <= set(answers)
    assert [one["question"] for one in answers["samples"]] == ["Why?", "Who?"]
    shown = run_thrifty(home.root, *command, "--answers", "--questions", str(questions)).stdout
    assert "answers, of 2 questions" in shown
    assert "1. Why?" in shown
    assert "2. Who?" in shown
    # Where a text is named alone, nothing is asked unless it is said so.
    assert "answers" not in json.loads(run_thrifty(home.root, *command, "--json").stdout)
    domain = (*command[:4], "--domain", f"mine={text}", *command[6:], "--json")
    left_out = json.loads(run_thrifty(home.root, *domain, "--no-answers").stdout)
    assert set(left_out["domains"]) == {"mine"}
    assert "answers" not in left_out
    # With domains a chat model is asked, which needs the default questions.
    home.data.mkdir(exist_ok=True)
    (home.data / f"{DEFAULT_SETS[0]}.jsonl").write_text("[]\n")
    asked = run_thrifty(home.root, *domain)
    assert asked.returncode == 1
    assert f"{DEFAULT_SETS[0]}.jsonl" in asked.stderr
    both = run_thrifty(home.root, *command, "--no-answers", "--questions", str(questions))
    assert both.returncode == 1
    assert "--questions says what to ask, and --no-answers to ask nothing" in both.stderr
    report = tmp_path / "report.html"
    compared = run_thrifty(
        home.root, "compare", reference[0].label, model[0].label, "--no-measure", "--report",
        str(report), "--json",
    )  # fmt: skip
    own, other = json.loads(compared.stdout)["models"]
    assert own["answers"] is None
    assert other["answers"] == {**answers, "beside": reference[0].label}
    assert '<table class="answers">' in report.read_text()
