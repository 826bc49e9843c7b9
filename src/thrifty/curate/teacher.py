"""Asks a model many things, by single requests or as batches, and keeps answers as they come.

A run that is killed asks for the rest. A server that limits the rate is waited for, and told; one
that does not answer ends the run with what it said, and what was answered stays. What is of no use
is kept until the run has ended, so that a run that goes on asks the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.batches.client import run_batch
from thrifty.db import Database, open_database
from thrifty.db.fleet import read_fleet
from thrifty.db.ready_replicas import find_ready_replica
from thrifty.errors import BatchError, DataError, EvaluationError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.open_model import is_url
from thrifty.evaluate.served import REFUSED, RefusedRequest, ServedUrl
from thrifty.fleet.controller_note import find_database_url, read_controller_note
from thrifty.home import Home
from thrifty.types import OnProgress, Progress

Request = dict[str, Any]
"""A chat completion's body, without the model."""
BATCH_WINDOW = "24h"
HEADERS = {"cache-control": "no-store", "x-thrifty-origin": "measurement"}
KEY = "THRIFTY_KEY"
"""The environment variable of the key to this service."""
SHOWN = 200
UNSOUND, BATCH = "unsound.jsonl", "batch-"
"""Files that last until a run has ended: what was of no use, and how those of batches begin."""


@dataclass(frozen=True)
class Place:
    """Where a model is asked."""

    url: str
    model: str
    key_env: str | None
    through: str
    """`batch` or `requests`."""
    streams: int
    label: str
    """What people call it."""
    known_as: str
    """What its answers are kept under: they are those of its model, wherever it runs."""


def find_place(
    home: Home, named: str, url_model: str | None, key_env: str | None, through: str | None,
    streams: int,
) -> Place:  # fmt: skip
    """Where a deployment of this home, or a URL, is asked. Raises `DataError`."""
    if is_url(named):
        if url_model is None:
            try:
                served = ServedUrl(named, key_env)
                try:
                    url_model = str(served.list_models()[0]["id"])
                finally:
                    served.close()
            except EvaluationError as error:
                raise DataError(f"augment.model: {error}") from None
        way = through or "requests"
        return Place(named, url_model, key_env, way, streams, f"{url_model} at {named}", named)
    note = read_controller_note(home)
    if note is None or not note.alive or not note.url:
        raise DataError(
            f"augment names the deployment {named!r}, and no service of this home runs; start "
            "it (thrifty up), or name a server by its URL"
        )
    if key_env is None and os.environ.get(KEY):
        key_env = KEY
    known_as = _describe_versions(home, named)
    return Place(note.url, named, key_env, through or "batch", streams, named, known_as)


def _describe_versions(home: Home, named: str) -> str:
    """The versions of a deployment that may answer. Raises `DataError` where there is none."""
    database = open_database(find_database_url(home), migrate=False)
    try:
        deployments = read_fleet(database).deployments
    finally:
        database.close()
    versions = next((one.versions for one in deployments if one.name == named), ())
    found = sorted(f"{one.label} ({one.revision})" for one in versions if one.weight > 0)
    if not found:
        known = ", ".join(one.name for one in deployments) or "none"
        raise DataError(f"augment: this home serves no deployment {named!r} (it serves {known})")
    return f"{named}: {', '.join(found)}"


def find_replica(database: Database, named: str, streams: int) -> Place:
    """A ready replica of a deployment. Raises `DataError` where there is none."""
    found = find_ready_replica(read_fleet(database), named)
    if found is None:
        raise DataError(f"the deployment {named!r} has no ready replica to ask")
    known_as = f"{named}: {found.version} ({found.revision})"
    return Place(found.url, found.model, found.key_env, "requests", streams, named, known_as)


class Teacher:
    """A model that is asked. `folder` keeps its answers."""

    def __init__(
        self, place: Place, folder: Path, on_progress: OnProgress, on_note: Callable[[str], None]
    ) -> None:
        self.place = place
        self._folder = folder
        self._on_progress = on_progress
        self._on_note = on_note

    def ask(
        self, requests: Sequence[Request], what: str, is_sound: Callable[[str], bool] = bool
    ) -> list[str | None]:
        """The answer to each request, in order; None for one that the server refuses, or whose
        answer was cut. What is known from before is not asked again. Blocks. Raises `DataError`.
        """
        with (
            KeptAnswers(self._folder / "answers.jsonl") as sound,
            KeptAnswers(self._folder / UNSOUND) as unsound,
        ):
            known_as, model = self.place.known_as, self.place.model

            def find(request: Request) -> Any:
                return sound.find(known_as, model, request) or unsound.find(
                    known_as, model, request
                )

            different = {json.dumps(one): one for one in requests}.values()
            missing = [one for one in different if find(one) is None]
            lock = threading.Lock()
            done = len(different) - len(missing)

            def keep(request: Request, answer: str | None) -> None:
                nonlocal done
                kept = sound if answer is not None and is_sound(answer) else unsound
                with lock:
                    kept.add({"text": answer}, known_as, model, request)
                    done += 1
                    self._on_progress(Progress(what, done, len(different), "requests"))

            if missing:
                self._on_progress(Progress(what, done, len(different), "requests"))
                try:
                    if self.place.through == "batch":
                        self._ask_batch(missing, keep)
                    else:
                        self._ask_each(missing, keep)
                except (EvaluationError, BatchError) as error:
                    raise DataError(
                        f"{self.place.label} does not answer: {error}. {done} of {len(different)} "
                        "answers are kept; the same command goes on"
                    ) from None
            return [find(one)["text"] for one in requests]

    def end(self) -> None:
        """Remove what only a run that goes on needs, so that the next one asks again for what was
        of no use.
        """
        (self._folder / UNSOUND).unlink(missing_ok=True)
        for path in self._folder.glob(f"{BATCH}*"):
            path.unlink(missing_ok=True)

    def _ask_each(
        self, requests: Sequence[Request], keep: Callable[[Request, str | None], None]
    ) -> None:
        lock, waiting, stop = threading.Lock(), iter(requests), threading.Event()

        def take() -> Iterator[Request]:
            while not stop.is_set():
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                yield request

        def run() -> None:
            served = ServedUrl(self.place.url, self.place.key_env, HEADERS, self._tell_wait)
            try:
                for request in take():
                    body = {"model": self.place.model, **request}
                    try:
                        reply = served.ask("POST", "/v1/chat/completions", body)
                    except RefusedRequest as error:
                        self._tell_once(f"{self.place.label} refuses a request: {error}")
                        keep(request, None)
                    else:
                        keep(request, read_answer(reply))
            finally:
                served.close()

        count = min(self.place.streams, len(requests))
        with ThreadPoolExecutor(count) as pool:
            running = [pool.submit(run) for _ in range(count)]
            wait(running, return_when=FIRST_EXCEPTION)
            stop.set()
        for one in running:
            one.result()

    def _tell_wait(self, status: int, seconds: float) -> None:
        what = "limits the rate" if status == 429 else f"answers {status}"
        self._on_note(f"{self.place.label} {what}; asking again in {seconds:.0f} s")

    def _tell_once(self, text: str) -> None:
        if not getattr(self, "_told", False):
            self._told = True
            self._on_note(f"{text[:SHOWN]}")

    def _ask_batch(
        self, requests: Sequence[Request], keep: Callable[[Request, str | None], None]
    ) -> None:
        """As one batch, which goes on while nobody waits for it. Its files are named by what it
        asks and where, so that a killed run finds the batch that it waited for.
        """
        lines = [
            {"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": self.place.model, **one}}
            for n, one in enumerate(requests)
        ]  # fmt: skip
        text = "".join(json.dumps(one) + "\n" for one in lines)
        key = hashlib.sha256(f"{self.place.url}\n{text}".encode()).hexdigest()[:16]
        source, output, errors = (
            self._folder / f"{BATCH}{key}.{name}.jsonl" for name in ("in", "out", "errors")
        )
        source.write_text(text, encoding="utf-8")
        self._on_note(f"a batch of {len(requests)} requests to {self.place.label}")

        def show(batch: dict[str, Any]) -> None:
            counts = batch["request_counts"]
            count = counts["completed"] + counts["failed"]
            self._on_progress(Progress("batch", count, len(requests), "requests"))

        batch = run_batch(
            source, output, errors, url=self.place.url, key=_read_key(self.place.key_env),
            window=BATCH_WINDOW, on_progress=show,
        )  # fmt: skip
        answered = _read_lines(output)
        failed = _read_lines(errors) if batch.get("error_file_id") else {}
        for n, request in enumerate(requests):
            reply = answered.get(str(n))
            if reply is not None and reply.get("status_code") == 200:
                keep(request, read_answer(reply["body"]))
            elif str(n) in failed and failed[str(n)].get("status_code") in REFUSED:
                self._tell_once(f"{self.place.label} refuses a request: {failed[str(n)]}")
                keep(request, None)
        for path in (source, output, errors):
            path.unlink(missing_ok=True)
        if batch["status"] != "completed" or len(answered) + len(failed) < len(requests):
            raise BatchError(f"the batch {batch['id']} is {batch['status']}")
        late = [one for one in failed.values() if one.get("status_code") not in REFUSED]
        if late:
            raise BatchError(f"{len(late)} requests of the batch were not answered: {late[0]}")


def _read_key(key_env: str | None) -> str | None:
    return os.environ.get(key_env or KEY)


def _read_lines(path: Path) -> dict[str, Any]:
    """The response of each line of a batch's output, by its name."""
    if not path.exists():
        return {}
    found = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            found[record["custom_id"]] = record.get("response") or record.get("error") or {}
    return found


def read_answer(reply: dict[str, Any]) -> str | None:
    """The text of a chat completion; None for one that was cut or is none. Raises
    `EvaluationError` for what is no chat completion.
    """
    try:
        choice = reply["choices"][0]
        content = choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise EvaluationError(f"the answer is no chat completion: {reply!s:.200}") from None
    if choice.get("finish_reason") == "length":
        return None
    return str(content or "").strip()
