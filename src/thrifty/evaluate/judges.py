"""Who judges answers: a Python function, a deployment, or a model elsewhere.

A judge compares two answers to one prompt, or scores one. It never learns which version gave which
answer, and sees each pair twice, the second time in the other order. Where it does not say the same
both times, it has said nothing of that pair: that is no tie, and no evidence. A function runs in a
process of its own, so that it can neither halt nor crash the controller.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from thrifty.db.database import Database
from thrifty.db.fleet import read_fleet
from thrifty.db.ready_replicas import find_ready_replica
from thrifty.errors import EvaluationError, ThriftyError
from thrifty.evaluate.served import ServedUrl
from thrifty.spec.judges import DEPLOYMENT, RemoteJudge
from thrifty.text.reasoning import KNOWN_TAGS

TIMEOUT_S = 120.0
"""For one comparison."""
MAX_TOKENS, REASONING_TOKENS = 8, 2048
"""Of a reply: first of all, and from then on for a model that was cut before it had answered."""
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
SILENT = 2
"""The outcome of a pair about which the judge said nothing usable: no preference, or one that
changed when the answers changed places."""
LEAST_SILENT = 20
"""A judge is not found mute before it has said nothing so often."""
_PREFERENCE = re.compile(r"\W*(?:(?:the\s+)?answer\W+(?:is\W+)?)?(A|B|T|tie)\b", re.IGNORECASE)
_SCORE = re.compile(r"\W*(?:score\W+)?([1-5])\b", re.IGNORECASE)
T = TypeVar("T")


class JudgeAway(ThriftyError):
    """The judge does not answer, or by no protocol that is known."""


class Judge(Protocol):
    """Compares pairs of answers. Methods block."""

    def prefer(self, prompt: str, first: str, second: str) -> int:
        """1 where the first answer is better, -1 where the second one is, 0 for a tie, or `SILENT`.
        Raises `JudgeAway`.
        """

    def rate(self, prompt: str, answer: str) -> float:
        """A score from 0 to 1, or `UNUSABLE`. Raises `JudgeAway`."""

    def close(self) -> None:
        """Give back what it holds."""


def compare(judge: Judge, prompt: str, candidate: str, other: str) -> int:
    """1 where the candidate's answer is better, -1 where it is worse, 0 for a tie, or `SILENT`. Two
    equal answers tie without being shown. Raises `JudgeAway`.
    """
    if candidate == other:
        return 0
    first = judge.prefer(prompt, candidate, other)
    if first == SILENT:
        return SILENT
    second = judge.prefer(prompt, other, candidate)
    return first if second != SILENT and first == -second else SILENT


def is_mute(silent: int, asked: int) -> bool:
    """Whether a judge that said nothing usable in `silent` of `asked` cases says no more than a
    coin would, which contradicts itself in every other pair.
    """
    return silent >= LEAST_SILENT and 2 * silent >= asked


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
        self._tokens = MAX_TOKENS

    def prefer(self, prompt: str, first: str, second: str) -> int:
        """The letter that the model replies."""
        text = QUESTION.format(
            prompt=prompt[:MAX_CHARS], first=first[:MAX_CHARS], second=second[:MAX_CHARS]
        )
        return self._ask(text, read_preference, SILENT)

    def rate(self, prompt: str, answer: str) -> float:
        """The digit that the model replies, from 1 to 5, as a score."""
        text = RUBRIC.format(prompt=prompt[:MAX_CHARS], answer=answer[:MAX_CHARS])
        return self._ask(text, read_score, UNUSABLE)

    def _ask(self, text: str, read: Callable[[str], T], nothing: T) -> T:
        """What is read in the reply. A model that was cut before it said anything usable, such as
        one that reasons first, is given more tokens from then on.
        """
        said, cut = self._ask_once(text)
        found = read(said)
        if found == nothing and cut and self._tokens < REASONING_TOKENS:
            self._tokens = REASONING_TOKENS
            found = read(self._ask_once(text)[0])
        return found

    def _ask_once(self, text: str) -> tuple[str, bool]:
        """The reply, and whether it was cut."""
        body = {
            "model": self._model, "temperature": 0, "max_tokens": self._tokens,
            "messages": [{"role": "user", "content": text}],
        }  # fmt: skip
        try:
            until_s = time.monotonic() + TIMEOUT_S
            reply = self._served.ask("POST", "/v1/chat/completions", body, until_s)
            choice = reply["choices"][0]
            said = str(choice["message"].get("content") or "")
            return said, choice.get("finish_reason") == "length"
        except (EvaluationError, TimeoutError) as error:
            raise JudgeAway(f"the judge does not answer: {error}") from None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise JudgeAway("the judge's answer is no chat completion") from None

    def close(self) -> None:
        """Close the connections."""
        self._served.close()


def read_preference(reply: str) -> int:
    """The preference that a model's reply begins with, after its reasoning; else `SILENT`."""
    found = _PREFERENCE.match(_drop_reasoning(reply))
    return SILENT if found is None else {"A": 1, "B": -1, "T": 0}[found[1][0].upper()]


def read_score(reply: str) -> float:
    """The score that a model's reply begins with, after its reasoning; else `UNUSABLE`."""
    found = _SCORE.match(_drop_reasoning(reply))
    return UNUSABLE if found is None else (int(found[1]) - 1) / 4


def _drop_reasoning(reply: str) -> str:
    for tags in KNOWN_TAGS:
        _, ended, said = reply.rpartition(tags.end)
        if ended:
            return said
        if reply.lstrip().startswith(tags.begin):
            return ""
    return reply


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
                # What another thread was about to ask cannot be written any more.
                with contextlib.suppress(OSError):
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
