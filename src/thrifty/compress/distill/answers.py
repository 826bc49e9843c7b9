"""What a teacher writes when it is asked: chat answers, and continuations of plain text, recorded.

Text sampled at temperature 1 follows the teacher's own distribution, so training on it aims at the
same goal as training on its log-probabilities. Kim and Rush 2016, 1606.07947. A teacher on this
machine also predicts every token of its own answers, which is far less noisy.

A file of answers has a line for each prompt, in the order of the prompts, and grows: a longer one
begins with the shorter one. A prompt's seed depends on its number alone.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thrifty.compress.mix import Record, Source, read_prompt
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.engines.server.turns import encode_turn
from thrifty.errors import CompressionError, EvaluationError
from thrifty.evaluate.asking import Serve
from thrifty.evaluate.served import ServedUrl
from thrifty.evaluate.windows import read_texts, read_windows
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer

PROMPT_TOKENS = 64
"""The teacher continues this much of each window of plain text."""
STREAMS = 16
"""Requests at the same time, over all texts: what replicas work on at once, and as many that
wait."""
LEAST_ANSWER_TOKENS = 32
"""A prompt that leaves less room in the window is not asked."""
MOST_ROUNDS = 4
"""Each prompt is asked at most so often, with other seeds."""
MOST_UNUSABLE = 0.25
MOST_CUT = 0.8
"""Shares of a teacher's answers: with more of them empty or in loops, or cut, training stops."""
JUDGED_ANSWERS = 40
"""The shares are known after so many answers."""
LOOP_WORDS, LOOP_SHARE = 60, 0.2
"""An answer of so many words is a loop if fewer than this share of its word triples differ."""
PASSAGE_WORDS = 120
DOCUMENT_PROMPTS = (
    "Summarize the following text in a few sentences.\n\n{text}",
    "Explain the main point of this text in simple words.\n\n{text}",
    "Ask three questions that this text answers, and answer them.\n\n{text}",
    "What are the most important facts in the following text? List them.\n\n{text}",
    "Write a short title for this text, and say why it fits.\n\n{text}",
)
"""What users say about a passage. Which one a passage gets depends on its number alone."""


@dataclass(frozen=True)
class RemoteTeacher:
    """Where a teacher is served."""

    url: str
    model: str | None = None
    key_env: str | None = None
    """The environment variable that holds the API key."""


@dataclass(frozen=True)
class Sampling:
    """How a teacher writes."""

    temperature: float = 1.0
    seed: int = 0
    window: int = 512
    """Tokens of a prompt and its answer, at most."""


@dataclass(frozen=True)
class Prompt:
    """What a teacher is asked: messages, or plain text to continue."""

    messages: list[Record] = field(default_factory=list)
    tools: list[Record] | None = None
    text: str = ""


@dataclass
class Tally:
    """How the answers in a file are."""

    asked: int = 0
    tokens: int = 0
    """Of prompts and usable answers."""
    empty: int = 0
    loops: int = 0
    cut: int = 0
    """Answers that the limit of tokens ended; they are learned from."""

    def check(self, label: str) -> None:
        """Raise `CompressionError` if too many answers are unusable."""
        if self.asked < JUDGED_ANSWERS:
            return
        unusable, cut = (self.empty + self.loops) / self.asked, self.cut / self.asked
        if unusable > MOST_UNUSABLE or cut > MOST_CUT:
            raise CompressionError(
                f"{label} answers badly: of {self.asked} answers {self.empty} are empty, "
                f"{self.loops} repeat themselves and {self.cut} were cut; at most "
                f"{MOST_UNUSABLE:.0%} may be unusable and {MOST_CUT:.0%} cut. Use another teacher, "
                "other prompts, or plain text alone (--text passages)"
            )


def ask_teacher(
    serve: Serve,
    key_env: str | None,
    label: str,
    prompts: Callable[[], Iterator[Prompt]],
    tokenizer: TextTokenizer,
    path: Path,
    *,
    tokens: int,
    sampling: Sampling,
    streams: int = STREAMS,
    until_s: float = math.inf,
    stopped: Callable[[], bool] = lambda: False,
    on_answer: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Have the teacher answer, `streams` prompts at a time, until the usable lines of `path` have
    `tokens`, prompts end, `stopped`, or it is `until_s` by `time.monotonic`. Requests that are not
    answered then are cancelled.

    A line is `{"tokens", "first", "text", "end"}`: the first prediction of the answer, and why it
    ended; `tokens` is empty for an unusable answer. Lines that are there are not asked again, and
    `serve` is called only if some are missing. `prompts` yields all prompts from the first.
    `on_answer` is called with the tally of all lines, which is returned, too. Blocks. Raises
    `CompressionError`, also for a teacher that answers badly; what is written stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tally = count_answers(path)
    tally.check(label)
    ended = path.with_suffix(".ended")
    if tally.tokens >= tokens or ended.exists():
        return tally

    def is_enough() -> bool:
        return tally.tokens >= tokens or stopped() or time.monotonic() >= until_s

    def use(url: str, name: str) -> None:
        kept = read_kept(path)
        try:
            with closing(ServedUrl(url, key_env)) as served:
                rest = itertools.islice(enumerate(prompts()), len(kept), None)
                model = name or str(served.list_models()[0]["id"])

                def ask(entry: tuple[int, Prompt]) -> Record | None:
                    return _ask(served, model, tokenizer, entry, sampling, until_s)

                with path.open("r+b" if path.exists() else "wb") as file:
                    file.truncate(sum(len(line) + 1 for line in kept))
                    file.seek(0, os.SEEK_END)
                    for line in _in_order(ask, rest, is_enough, streams):
                        file.write(json.dumps(line).encode() + b"\n")
                        file.flush()
                        _count(tally, line)
                        tally.check(label)
                        on_answer(tally)
                    os.fsync(file.fileno())
        except EvaluationError as error:
            raise CompressionError(f"{error}. The text generated so far is kept") from None
        except WireError as error:
            raise CompressionError(
                f"{label} cannot be asked a prompt of the text: {error.message}"
            ) from None

    serve(use)
    if not is_enough():
        ended.touch()
    return tally


def serve_remote(teacher: RemoteTeacher) -> Serve:
    """A teacher that is served already."""
    return lambda use: use(teacher.url, teacher.model or "")


def _in_order(
    ask: Callable[[tuple[int, Prompt]], Record | None],
    prompts: Iterator[tuple[int, Prompt]],
    enough: Callable[[], bool],
    streams: int,
) -> Iterator[Record]:
    """Answers in the order of their prompts, `streams` of them asked at a time. Once there are
    `enough`, those that are being answered are still taken, up to the first that is too late.
    """
    waiting: deque[Future[Record | None]] = deque()
    pool = ThreadPoolExecutor(streams)
    try:
        while True:
            if enough():
                while waiting and waiting[-1].cancel():
                    waiting.pop()
            else:
                while len(waiting) < 2 * streams and (entry := next(prompts, None)) is not None:
                    waiting.append(pool.submit(ask, entry))
            if not waiting or (line := waiting.popleft().result()) is None:
                return
            yield line
    finally:
        pool.shutdown(cancel_futures=True)


def _ask(
    served: ServedUrl,
    model: str,
    tokenizer: TextTokenizer,
    entry: tuple[int, Prompt],
    sampling: Sampling,
    until_s: float,
) -> Record | None:
    """The line of one prompt; None if there is no answer when it is `until_s`."""
    number, prompt = entry
    head = _encode_prompt(prompt, tokenizer)
    room = sampling.window - len(head)
    if room < LEAST_ANSWER_TOKENS:
        return {"tokens": [], "first": 0, "text": "", "end": "too long"}
    body: dict[str, Any] = {
        "model": model, "max_tokens": room, "temperature": sampling.temperature,
        "seed": random.Random(f"{sampling.seed} {number}").randrange(2**31),
    }  # fmt: skip
    if prompt.messages:
        path, body["messages"] = "/v1/chat/completions", prompt.messages
        if prompt.tools:
            body["tools"] = prompt.tools
    else:
        path, body["prompt"] = "/v1/completions", prompt.text
    try:
        choice = served.ask("POST", path, body, until_s)["choices"][0]
    except TimeoutError:
        return None
    message = choice["message"] if prompt.messages else {"content": choice["text"]}
    answer = str(message.get("content") or "")
    cut = choice.get("finish_reason") == "length"
    if not answer.strip() and not message.get("tool_calls"):
        return {"tokens": [], "first": 0, "text": "", "end": "empty"}
    if is_loop(answer):
        return {"tokens": [], "first": 0, "text": answer, "end": "loop"}
    tail = _encode_answer(prompt, message, tokenizer, cut=cut)
    return {
        "tokens": (head + tail)[: sampling.window], "first": max(0, len(head) - 1), "text": answer,
        "end": "cut" if cut else "stop",
    }  # fmt: skip


def _encode_prompt(prompt: Prompt, tokenizer: TextTokenizer) -> list[int]:
    if not prompt.messages:
        return tokenizer.encode(prompt.text)
    plan = parse_tools({"tools": prompt.tools})
    return build_prompt({"messages": prompt.messages}, tokenizer, plan).ids


def _encode_answer(
    prompt: Prompt, message: Record, tokenizer: TextTokenizer, *, cut: bool
) -> list[int]:
    """The tokens that the teacher wrote, with the one that ends the turn unless it was cut."""
    answer = str(message.get("content") or "")
    if not prompt.messages:
        return tokenizer.encode(answer, add_special_tokens=False)
    said: Record = {"role": "assistant", "content": answer}
    if message.get("tool_calls"):
        said["tool_calls"] = message["tool_calls"]
    turn = encode_turn(prompt.messages, said, tokenizer, parse_tools({"tools": prompt.tools}))
    if turn is None:
        return tokenizer.encode(answer, add_special_tokens=False)
    return turn.answer[:-1] if cut and turn.ended else turn.answer


def is_loop(text: str) -> bool:
    """Whether a text repeats itself: few of its word triples differ, or it is one character."""
    words = text.split()
    if len(words) < LOOP_WORDS:
        return len(text) >= LOOP_WORDS and len(set(text.replace(" ", ""))) <= 2
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < LOOP_SHARE * len(triples)


def count_answers(path: Path) -> Tally:
    """How the answers in a file are, which may not be there."""
    tally = Tally()
    for line in read_kept(path):
        _count(tally, json.loads(line))
    return tally


def read_kept(path: Path) -> list[bytes]:
    """The whole lines of a file of answers; a killed run may have left a part of one."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _count(tally: Tally, line: Record) -> None:
    tally.tokens += len(line["tokens"])
    end = line.get("end", "stop")
    tally.asked += end != "too long"
    tally.empty += end == "empty"
    tally.loops += end == "loop"
    tally.cut += end == "cut"


# Prompts


def read_prompts(source: Source, *, rounds: int = MOST_ROUNDS) -> Iterator[Prompt]:
    """The prompts of conversations and of prompts, `rounds` times over."""
    for _ in range(rounds):
        for record, _ in source.read():
            messages = read_prompt(record)
            if messages is not None:
                yield Prompt(messages, record.get("tools"))


def read_document_prompts(source: Source) -> Iterator[Prompt]:
    """Prompts about the passages of a plain text."""
    number = 0
    for text in read_texts(source.path):
        for passage in text.split("\n\n"):
            words = passage.split()
            if len(words) < PASSAGE_WORDS // 2:
                continue
            form = DOCUMENT_PROMPTS[number % len(DOCUMENT_PROMPTS)]
            said = form.format(text=" ".join(words[:PASSAGE_WORDS]))
            yield Prompt([{"role": "user", "content": said}])
            number += 1


def read_beginnings(source: Source, tokenizer: TextTokenizer, window: int) -> Iterator[Prompt]:
    """The beginnings of the windows of a plain text, to continue."""
    for tokens in read_windows(source.path, tokenizer, window):
        yield Prompt(text=tokenizer.decode(tokens[:PROMPT_TOKENS].tolist()))


def describe(sampling: Sampling) -> Record:
    """What answers depend on, besides the teacher and the prompts."""
    return {**asdict(sampling), "rounds": MOST_ROUNDS, "forms": len(DOCUMENT_PROMPTS)}
