"""From the decision to roll back to the last new request on the bad version.

    python benchmarks/rollback_latency.py

A service of two gateway workers with two `echo` versions, and people who ask new questions all the
while and like the candidate's answers less. Each round releases the candidate at 50% and waits until
it is rolled back by itself. The time is that from the decision, as the release's event has it, to the
begin of the last request that the candidate answered, as the request log has it.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from pathlib import Path

import requests

from common import WORK, ThriftyService, figure, finish, free_port, parse_arguments, say

SPEC = {
    "name": "chat", "cache": False,
    "versions": [
        {"label": "old", "weight": 1, "engine": {"kind": "echo", "ttft": "5ms"}},
        {"label": "new", "weight": 0, "engine": {"kind": "echo", "ttft": "5ms"}},
    ],
}  # fmt: skip
PLAN = {
    "steps": [50, 100],
    "step": {"conversations": 20, "time": "1s"},
    "settle": "1s",
    "sticky": "0s",
}
LIKED = {"old": 0.9, "new": 0.2}
PEOPLE = 4
BAR_S = 1.0


def ask_on(url: str, stopping: threading.Event, seed: int) -> None:
    """One person: a new conversation each time, with a thumb."""
    rng, session = random.Random(seed), requests.Session()
    while not stopping.is_set():
        body = {"model": "chat", "messages": [{"role": "user", "content": f"{rng.random()}"}]}
        reply = session.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        label = reply.headers.get("x-thrifty-version", "")
        said = {
            "response_id": reply.headers["x-thrifty-response-id"],
            "thumbs": "up" if rng.random() < LIKED[label] else "down",
        }
        session.post(f"{url}/v1/feedback", json=said, timeout=60)


def roll_back_once(service: ThriftyService, plan: Path) -> float:
    """Seconds from the decision to the last request on the candidate."""
    began = json.loads(
        service.run("release", "new", "--to", "chat", "--plan", str(plan), "--yes", "--json")
    )
    while True:
        row = json.loads(service.run("releases", str(began["id"]), "--json"))
        if row["state"] == "rolled_back":
            break
        if row["state"] != "running":
            raise SystemExit(f"the release is {row['state']}: {row['message']}")
        time.sleep(0.5)
    decided_s = next(one["at_s"] for one in row["events"] if one["kind"] == "rollback")
    time.sleep(3.0)  # until the last rows are written
    with sqlite3.connect(f"file:{service.home}/thrifty.db?mode=ro", uri=True) as database:
        last_s = database.execute("SELECT max(at_s) FROM requests WHERE version = 'new'").fetchone()
    return max(0.0, last_s[0] - decided_s)


def main() -> None:
    arguments = parse_arguments(__doc__ or "", rounds=5)
    port = free_port()
    gateway = {"port": port, "workers": 2}
    service = ThriftyService("rollback", {**SPEC, "gateway": gateway}, fresh=True)
    plan = WORK / "homes" / "rollback" / "plan.yaml"
    plan.write_text(json.dumps(PLAN))
    stopping = threading.Event()
    people = [
        threading.Thread(target=ask_on, args=(service.url, stopping, seed))
        for seed in range(PEOPLE)
    ]
    times = []
    try:
        for person in people:
            person.start()
        for number in range(arguments.rounds):
            times.append(roll_back_once(service, plan))
            say(f"round {number + 1}: {times[-1]:.3f} s")
    finally:
        stopping.set()
        for person in people:
            person.join()
        service.stop()
    table = [["round", "seconds to the last new request"]]
    table += [[str(place + 1), f"{value:.3f}"] for place, value in enumerate(times)]
    worst = max(times)
    shown = figure(
        "decision to the last new request on the bad version", times, "<= 1 s", worst <= BAR_S
    )
    shown["measured"] = shown["measured"].removesuffix(" x") + " s"
    finish("rollback_latency", {"seconds": times}, table, [shown], save=not arguments.no_save)


if __name__ == "__main__":
    main()
