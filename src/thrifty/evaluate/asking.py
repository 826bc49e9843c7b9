"""Questions to a server, in parallel streams. The answers are kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock
from typing import Any

from thrifty.errors import EvaluationError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.questions import Question
from thrifty.evaluate.served import ServedUrl
from thrifty.types import OnProgress, Progress, ignore_progress

STREAMS = 8
"""Requests at the same time: what a replica of the `openvino` engine works on at once."""
Serve = Callable[[Callable[[str, str], None]], None]
"""Calls what it is given with a server's URL and the model's name there."""


def serve_url(url: str) -> Serve:
    """The first model of a server that runs already."""

    def serve(use: Callable[[str, str], None]) -> None:
        served = ServedUrl(url)
        try:
            name = str(served.list_models()[0]["id"])
        finally:
            served.close()
        use(url, name)

    return serve


def collect_answers(
    questions: Sequence[Question],
    path: Path,
    serve: Serve,
    on_progress: OnProgress = ignore_progress,
) -> list[str]:
    """The answers to all questions, in order. Those in the file at `path` are not asked again, and
    what is answered is written there at once: a run that is killed resumes. Blocks.

    `serve` is called only if an answer is missing. Raises what it raises, and `EvaluationError`.
    """
    with KeptAnswers(path) as kept:
        missing = [one for one in questions if kept.find(one.request) is None]
        if missing:
            lock, done = Lock(), len(questions) - len(missing)

            def keep(question: Question, answer: str) -> None:
                nonlocal done
                with lock:
                    kept.add({"text": answer}, question.request)
                    done += 1
                    on_progress(Progress("ask", done, len(questions), "questions"))

            on_progress(Progress("ask", done, len(questions), "questions"))
            serve(lambda url, name: ask_url(url, name, missing, keep))
        return [str(kept.find(one.request)["text"]) for one in questions]


def ask_url(
    url: str,
    name: str,
    questions: Sequence[Question],
    on_answer: Callable[[Question, str], None],
    streams: int = STREAMS,
) -> None:
    """Ask the model `name` at `url`, `streams` questions at a time. Blocks.

    `on_answer` is called in the threads of the streams. Raises `EvaluationError` with the first
    question that is not answered; those that are being answered are waited for.
    """
    lock, waiting, stop = Lock(), iter(questions), Event()

    def take() -> Iterator[Question]:
        while not stop.is_set():
            with lock:
                question = next(waiting, None)
            if question is None:
                return
            yield question

    def run_stream() -> None:
        served = ServedUrl(url, headers=_HEADERS)
        try:
            for question in take():
                body = {"model": name, **question.request}
                on_answer(question, _read_answer(served.ask("POST", "/v1/chat/completions", body)))
        finally:
            served.close()

    with ThreadPoolExecutor(min(streams, len(questions))) as pool:
        running = [pool.submit(run_stream) for _ in range(min(streams, len(questions)))]
        wait(running, return_when=FIRST_EXCEPTION)
        stop.set()
    for one in running:
        one.result()


_HEADERS = {"cache-control": "no-store", "x-thrifty-origin": "measurement"}


def _read_answer(reply: dict[str, Any]) -> str:
    """The text of a chat completion; without its reasoning, if the server tells them apart."""
    try:
        content = reply["choices"][0]["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise EvaluationError(
            f"the server's answer is no chat completion: {reply!s:.200}"
        ) from None
    return str(content or "").strip()
