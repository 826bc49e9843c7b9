"""Questions to a server in parallel: every answer is kept as it comes, and none is asked for twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.parts import running_echo, until
from thrifty.errors import EvaluationError
from thrifty.evaluate.asking import STREAMS, Serve, ask_url, collect_answers, serve_url
from thrifty.evaluate.questions import Question

QUESTIONS = [Question((("user", f"question {number}"),)) for number in range(40)]
ECHOED = [one.text for one in QUESTIONS]


def refuse(use: object) -> None:
    raise AssertionError("nothing is missing")


async def test_answers_come_in_order_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    async with running_echo() as url:
        found = await asyncio.to_thread(collect_answers, QUESTIONS[:10], path, serve_url(url))
        assert found == ECHOED[:10]
        asked: list[Question] = []

        def serve(use: object) -> None:
            ask_url(url, "echo", QUESTIONS[10:12], lambda one, _: asked.append(one))
            serve_url(url)(use)  # type: ignore[arg-type]

        assert await asyncio.to_thread(collect_answers, QUESTIONS[:12], path, serve) == ECHOED[:12]
    assert len(path.read_text().splitlines()) == 12
    assert collect_answers(QUESTIONS[:12], path, refuse) == ECHOED[:12]


async def test_streams_run_at_the_same_time() -> None:
    """Each waits until all others have been asked, or none would end."""
    together = threading.Barrier(STREAMS)
    async with running_echo() as url:
        await asyncio.to_thread(
            ask_url, url, "echo", QUESTIONS[:STREAMS], lambda *_: together.wait(60) and None
        )


async def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    async with running_echo(ttft_s=0.05, slots=1) as url:
        command = [sys.executable, "-m", "tests.evaluate.ask_and_wait", url, str(path)]
        process = subprocess.Popen(command, start_new_session=True)
        await until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 3)
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        before = path.read_bytes().count(b"\n")
        assert 3 <= before < len(QUESTIONS)
        steps: list[float] = []
        found = await asyncio.to_thread(
            collect_answers, QUESTIONS, path, serve_url(url), lambda step: steps.append(step.done)
        )
    assert found == ECHOED
    assert steps == list(range(before, len(QUESTIONS) + 1))


async def test_an_error_keeps_what_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    too_long = Question((("user", "x" * 100_000),))

    def serve(url: str) -> Serve:
        return lambda use: use(url, "echo")

    async with running_echo(context_length=2000) as url:
        with pytest.raises(EvaluationError, match="answered 400"):
            await asyncio.to_thread(
                collect_answers, [*QUESTIONS[:8], too_long, *QUESTIONS[8:]], path, serve(url)
            )
    kept = path.read_bytes().count(b"\n")
    assert kept >= 1
    assert too_long.text not in path.read_text()


async def test_what_is_no_chat_server_is_told(tmp_path: Path) -> None:
    async with running_echo() as url:
        with pytest.raises(EvaluationError, match=r"answered 404"):
            await asyncio.to_thread(ask_url, url, "another", QUESTIONS[:1], lambda *_: None)
