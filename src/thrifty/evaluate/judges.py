"""Who judges answers: a Python function, a deployment, or a model elsewhere.

A judge compares two answers to one prompt, or scores one. It never learns which version gave which
answer, and sees each pair twice, the second time in the other order: a judge that prefers the first
place then says nothing (a tie) in place of something wrong. A function runs in a process of its
own, so that it can neither halt nor crash the controller.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import Any, Protocol

import msgspec

from thrifty.db.database import Database
from thrifty.db.fleet import read_fleet
from thrifty.db.ready_replicas import find_ready_replica
from thrifty.errors import EvaluationError, ThriftyError
from thrifty.evaluate.served import ServedUrl
from thrifty.spec.judges import DEPLOYMENT, RemoteJudge

TIMEOUT_S = 120.0
"""For one comparison."""
MAX_TOKENS = 8
MAX_CHARS = 20_000
"""Of the prompt and of each answer, as a model judge is shown them."""
QUESTION = """Compare two answers to the same request. Judge which one helps more: it must be right, \
complete and to the point. Do not prefer an answer for its length or its place.

Request:
{prompt}

Answer A:
{first}

Answer B:
{second}

Reply with one letter and nothing else: A, B, or T for a tie."""
RUBRIC = """Score an answer to a request from 1 to 5.

5: right, complete and to the point.
4: right, with something missing or needless.
3: partly right.
2: mostly wrong, or hardly about the request.
1: wrong, empty, unreadable, or refused without a reason.

Request:
{prompt}

Answer:
{answer}

Reply with one digit and nothing else."""
UNUSABLE = -1.0
"""The score of an answer about which the judge said nothing usable."""


class JudgeAway(ThriftyError):
    """The judge does not answer, or answers nothing usable."""


class Judge(Protocol):
    """Compares pairs of answers. Methods block."""

    def prefer(self, prompt: str, first: str, second: str) -> int:
        """1 where the first answer is better, -1 where the second one is, 0 for a tie. Raises
        `JudgeAway`.
        """

    def rate(self, prompt: str, answer: str) -> float:
        """A score from 0 to 1, or `UNUSABLE`. Raises `JudgeAway`."""

    def close(self) -> None:
        """Give back what it holds."""


def compare(judge: Judge, prompt: str, candidate: str, other: str) -> int:
    """1 where the candidate's answer is better, -1 where it is worse, else 0. Raises
    `JudgeAway`.
    """
    if candidate == other:
        return 0
    first = judge.prefer(prompt, candidate, other)
    second = -judge.prefer(prompt, other, candidate)
    return first if first == second else 0


def open_judge(named: str | RemoteJudge, database: Database | None) -> Judge:
    """The judge that a plan or a spec names; deployments are found in `database`. Raises
    `JudgeAway`.
    """
    if isinstance(named, RemoteJudge):
        return ModelJudge(named.url, named.model, named.key_env)
    if named.startswith(DEPLOYMENT):
        assert database is not None, named
        return open_deployment(named.removeprefix(DEPLOYMENT), database)
    return FunctionJudge(named)


def open_deployment(name: str, database: Database) -> ModelJudge:
    """A deployment of this service as judge."""
    state = read_fleet(database)
    if all(one.name != name for one in state.deployments):
        raise JudgeAway(f"there is no deployment {name!r} to judge")
    found = find_ready_replica(state, name)
    if found is None:
        raise JudgeAway(f"the deployment {name!r} has no ready replica to judge with")
    return ModelJudge(found.url, found.model, found.key_env)


class ModelJudge:
    """A chat model."""

    def __init__(self, url: str, model: str, key_env: str | None) -> None:
        try:
            self._served = ServedUrl(url, key_env, {"cache-control": "no-store"})
        except EvaluationError as error:
            raise JudgeAway(str(error)) from None
        self._model = model

    def prefer(self, prompt: str, first: str, second: str) -> int:
        """What the model replies; a reply that names none is a tie."""
        text = QUESTION.format(
            prompt=prompt[:MAX_CHARS], first=first[:MAX_CHARS], second=second[:MAX_CHARS]
        )
        return {"A": 1, "B": -1}.get(self._ask(text).upper()[:1], 0)

    def rate(self, prompt: str, answer: str) -> float:
        """The digit that the model replies, from 1 to 5, as a score."""
        said = self._ask(RUBRIC.format(prompt=prompt[:MAX_CHARS], answer=answer[:MAX_CHARS]))
        return (int(said[0]) - 1) / 4 if said[:1] in set("12345") else UNUSABLE

    def _ask(self, text: str) -> str:
        body = {
            "model": self._model, "temperature": 0, "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": text}],
        }  # fmt: skip
        try:
            until_s = time.monotonic() + TIMEOUT_S
            reply = self._served.ask("POST", "/v1/chat/completions", body, until_s)
            return str(reply["choices"][0]["message"].get("content") or "").strip().strip("*\"'.")
        except (EvaluationError, TimeoutError) as error:
            raise JudgeAway(f"the judge does not answer: {error}") from None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise JudgeAway("the judge's answer is no chat completion") from None

    def close(self) -> None:
        """Close the connections."""
        self._served.close()


class FunctionJudge:
    """A Python function in a process that imports it (`evaluate.judge_process`): of a prompt and
    two answers it returns 1, 0 or -1, of a prompt and one answer a score from 0 to 1.
    """

    def __init__(self, named: str) -> None:
        self._named = named
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thrifty.evaluate.judge_process", named],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy(),
        )  # fmt: skip
        self._buffer = b""

    def prefer(self, prompt: str, first: str, second: str) -> int:
        """What the function returns."""
        return int(self._ask([prompt, first, second])["preference"])

    def rate(self, prompt: str, answer: str) -> float:
        """What the function returns."""
        return float(self._ask([prompt, answer])["score"])

    def _ask(self, texts: list[str]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(msgspec.json.encode(texts) + b"\n")
            stdin.flush()
        except OSError:
            raise JudgeAway(f"the judge {self._named} has ended") from None
        answer = self._read_line(stdout.fileno())
        if "error" in answer:
            raise JudgeAway(f"the judge {self._named} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read_line(self, descriptor: int) -> dict[str, Any]:
        until_s = time.monotonic() + TIMEOUT_S
        while b"\n" not in self._buffer:
            left_s = until_s - time.monotonic()
            readable = left_s > 0 and select.select([descriptor], [], [], left_s)[0]
            data = os.read(descriptor, 65536) if readable else b""
            if not data:
                what = "has ended" if readable else f"took longer than {TIMEOUT_S:g} s"
                raise JudgeAway(f"the judge {self._named} {what}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = msgspec.json.decode(line)
        return found
