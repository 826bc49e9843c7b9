"""Text that a served teacher generates for training, recorded: continuations and chat answers.

Text sampled at temperature 1 follows the teacher's own distribution, so training on it aims at the
same goal as training on its log-probabilities, with more noise. Kim and Rush 2016, 1606.07947.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import CompressionError, EvaluationError
from thrifty.evaluate.served import ServedUrl
from thrifty.evaluate.windows import read_windows
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

PROMPT_TOKENS = 64
"""The teacher continues this much of each window of plain text."""
CONCURRENCY = 8
PROMPT_FIELDS = ("prompt", "instruction", "question")
"""A `.jsonl` record with one of these fields is a user's message and gets a chat answer."""


@dataclass(frozen=True)
class RemoteTeacher:
    """Where a teacher is served."""

    url: str
    model: str | None = None
    key_env: str | None = None
    """The environment variable that holds the API key."""


def write_answers(
    teacher: RemoteTeacher,
    tokenizer: TextTokenizer,
    text: Path,
    path: Path,
    *,
    tokens: int,
    window: int,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Have the teacher generate until there are `tokens` in total or the text ends.

    `path` gets a line `{"tokens", "first"}` for each answer. Answers that it already contains are
    not requested again. Raises `CompressionError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    done = sum(len(json.loads(line)["tokens"]) for line in kept)
    prompts = itertools.islice(_read_prompts(text, tokenizer, window), len(kept), None)
    try:
        with (
            closing(ServedUrl(teacher.url, teacher.key_env)) as served,
            path.open("r+b" if path.exists() else "wb") as file,
            ThreadPoolExecutor(CONCURRENCY) as pool,
        ):
            model = teacher.model or str(served.list_models()[0]["id"])
            file.truncate(sum(len(line) + 1 for line in kept))
            file.seek(0, os.SEEK_END)
            while done < tokens:
                group = list(itertools.islice(prompts, CONCURRENCY))
                if not group:
                    break
                answers = pool.map(lambda prompt: _ask(served, model, prompt, window), group)
                for prompt, answer in zip(group, answers, strict=True):
                    line = _encode(tokenizer, prompt, answer, window)
                    file.write(json.dumps(line).encode() + b"\n")
                    done += len(line["tokens"])
                file.flush()
                on_progress(Progress("the teacher writes", min(done, tokens), tokens, "tokens"))
            os.fsync(file.fileno())
    except EvaluationError as error:
        raise CompressionError(f"{error}. The text generated so far is kept") from None
    if not done:
        raise CompressionError(f"{text} contains no prompts for the teacher to answer")


@dataclass(frozen=True)
class _Prompt:
    text: str
    chat: bool


def _read_prompts(text: Path, tokenizer: TextTokenizer, window: int) -> Iterator[_Prompt]:
    if text.suffix == ".jsonl" and (found := list(_read_questions(text))):
        yield from found
        return
    for tokens in read_windows(text, tokenizer, window):
        yield _Prompt(tokenizer.decode(tokens[:PROMPT_TOKENS].tolist()), chat=False)


def _read_questions(text: Path) -> Iterator[_Prompt]:
    try:
        lines = text.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{text} cannot be read: {error}") from None
    for record in records:
        if not isinstance(record, dict):
            raise EvaluationError(f"{text} contains a line that is not a JSON object")
        named = [record[name] for name in PROMPT_FIELDS if isinstance(record.get(name), str)]
        if named:
            yield _Prompt(named[0], chat=True)


def _ask(served: ServedUrl, model: str, prompt: _Prompt, window: int) -> str:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": window - PROMPT_TOKENS,
        "temperature": 1.0,
    }
    if prompt.chat:
        body["messages"] = [{"role": "user", "content": prompt.text}]
        answer = served.ask("POST", "/v1/chat/completions", body)
        return str(answer["choices"][0]["message"].get("content") or "")
    body["prompt"] = prompt.text
    return str(served.ask("POST", "/v1/completions", body)["choices"][0]["text"])


def _encode(tokenizer: TextTokenizer, prompt: _Prompt, answer: str, window: int) -> dict[str, Any]:
    """The tokens of prompt and answer, and the index of the first prediction to learn from."""
    if prompt.chat:
        messages = [{"role": "user", "content": prompt.text}]
        before = tokenizer.render_chat(messages)
        whole = tokenizer.render_chat(
            [*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False
        )
        answer = whole[len(before) :] if whole.startswith(before) else answer
        head = tokenizer.encode(before, add_special_tokens=False)
    else:
        head = tokenizer.encode(prompt.text)
    head = head[-(window // 2) :]
    tail = tokenizer.encode(answer, add_special_tokens=False)
    tokens = (head + tail)[:window]
    return {"tokens": tokens, "first": max(0, len(head) - 1)}
