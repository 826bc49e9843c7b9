"""A service with the console for tests, screenshots and measurements: a real gateway with its
database and echo models, in one process. No controller runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.parts import echo_deployment, running_echo
from thrifty.console.oidc import OidcSettings
from thrifty.control.applied import AppliedSpec
from thrifty.db import Database, open_database
from thrifty.db.alerts import AlertRow, save_alerts
from thrifty.db.desired import SERVICE, DesiredChange, change_desired
from thrifty.db.desired_state import (
    DesiredChecks,
    DesiredDeployment,
    DesiredReplicas,
    DesiredService,
    DesiredSlo,
    DesiredVersion,
)
from thrifty.db.drift import DriftLook, save_looks
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.fleet import ReplicaRow, VersionRow, VersionSettings, save_deployment, save_replicas
from thrifty.db.improve import REFUSED, WAITING, begin_step, create_run, end_step, set_run_state
from thrifty.db.keys import create_key
from thrifty.db.quality import QualityAnswer, save_answers
from thrifty.db.releases import Event, Record, create_release, read_release, save_progress
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.scores import REVIEW, read_waiting, save_score
from thrifty.home import Home, make_private_folder
from thrifty.observe.rollups.roll import Roller
from thrifty.openai.conversations import Conversations
from thrifty.openai.response_ids import EPOCH_S
from thrifty.quality.check import AnswerChecker
from thrifty.release.plan import ReleasePlan, dump_plan
from thrifty.worker.assemble import Parts, Secrets, assemble
from thrifty.worker.home_services import make_home_services
from thrifty.worker.settings import GatewaySettings

SECRET = b"s" * 32
NAME = "assistant"
LABELS = ("stable", "candidate")
SLO = DesiredSlo(ttft_p95_s=0.3, tpot_p95_s=0.05)
PRICES = {"stable": (0.4, 1.2), "candidate": (0.2, 0.6)}
REPLY = {
    "stable": "The capital of France is **Paris**.\n\nIt has been since 987.",
    "candidate": "Paris.\n\n| city | people |\n|---|---|\n| Paris | 2.1 M |",
}


@dataclass
class Site:
    """The running service. `keys` are the secrets of its API keys by role; none exist without."""

    url: str
    home: Home
    database: Database
    parts: Parts
    keys: dict[str, str]

    @property
    def console(self) -> str:
        return f"{self.url}/console"


@contextlib.asynccontextmanager
async def running_site(
    folder: Path,
    *,
    with_keys: bool = False,
    reply: str | None = None,
    port: int = 0,
    oidc: OidcSettings | None = None,
) -> AsyncIterator[Site]:
    """The service, with two versions of one deployment. `reply` is what both versions say."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder}/thrifty.db"
    database = open_database(url, migrate=True)
    settings = GatewaySettings("127.0.0.1", port, record_prompts=True, oidc=oidc)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(database.close)
        urls = {
            label: await stack.enter_async_context(
                running_echo(NAME, reply=reply or REPLY[label], ttft_s=0.02, tpot_s=0.004)
            )
            for label in LABELS
        }
        _deploy(database, urls)
        keys = {}
        if with_keys:
            for role in ("viewer", "user", "operator", "admin"):
                _, keys[role] = create_key(database, f"{role}-key", role, "shop")
        make_services = functools.partial(make_home_services, url, Home(folder))
        secrets = Secrets(url, "", SECRET)
        parts = await stack.enter_async_context(assemble(settings, secrets, make_services))
        try:
            listening = await parts.server.start(settings.host, settings.port)
            while not parts.table.loaded or len(parts.table.keys) < len(keys):
                await asyncio.sleep(0.01)
            site = Site(f"http://127.0.0.1:{listening}", Home(folder), database, parts, keys)
            yield site
        finally:
            await parts.drain(0.5, 0.2)


def _deploy(database: Database, urls: dict[str, str]) -> None:
    row = echo_deployment(NAME)
    versions = tuple(_make_version(label, row.versions[0].settings) for label in LABELS)
    state = DesiredDeployment(NAME, "decoder", row.settings, versions)
    spec = AppliedSpec(
        written={
            "name": NAME,
            "gateway": {"port": 8080},
            "versions": [
                {"label": "stable", "engine": {"kind": "echo"}, "weight": 90},
                {"label": "candidate", "engine": {"kind": "echo"}, "weight": 10},
            ],
        },
        deployments={NAME: state},
    )
    service = DesiredService(spec=spec.to_builtins())
    change_desired(
        database,
        lambda _: [DesiredChange(NAME, state), DesiredChange(SERVICE, service)],
        kind="apply", who="ann (thrifty apply)", why="serve two versions",
    )  # fmt: skip
    rows = tuple(
        VersionRow(
            one.label, one.model, one.engine, one.revision, weight=one.weight, settings=one.settings
        )
        for one in versions
    )
    save_deployment(database, replace(row, versions=rows))
    save_replicas(database, make_replicas(urls), routing_changed=True)


def _make_version(label: str, settings: VersionSettings) -> DesiredVersion:
    price_input, price_output = PRICES[label]
    return DesiredVersion(
        label=label, model=f"smollm2@v{LABELS.index(label) + 1}", engine="echo",
        revision=f"r-{label}", artifact=None, options={},
        weight=90.0 if label == "stable" else 10.0,
        settings=replace(settings, price_input=price_input, price_output=price_output),
        replicas=DesiredReplicas(count=2 if label == "stable" else 1), slo=SLO,
    )  # fmt: skip


def make_replicas(urls: dict[str, str], **states: str) -> list[ReplicaRow]:
    """The rows of the replicas; `states` has those that are not ready, by version."""
    rows = []
    for label in ("stable", "stable", "candidate"):
        number = len(rows)
        rows.append(
            ReplicaRow(
                id=f"{NAME}-{number}", deployment=NAME, engine="echo", version=label,
                revision=f"r-{label}", artifact=None, url=urls[label],
                state=states.get(f"r{number}", "ready"), memory_bytes=412_000_000 + number,
                load={"running": number, "waiting": 0, "kv_usage": 0.2 + number / 10},
            )
        )  # fmt: skip
    return rows


def fill(database: Database, requests: int, *, span_s: float = 3600.0, seed: int = 7) -> None:
    """Requests and feedback of the last `span_s`, such as two versions make them: the candidate is
    faster and liked less. For screenshots and measurements.
    """
    chance = random.Random(seed)
    log, now_s = RequestLog(database), time.time()
    conversations = Conversations(SECRET)
    entries: list[Entry] = []
    for number in range(requests):
        at_s = now_s - span_s + span_s * (number + 1) / (requests + 2)
        row = _make_row(chance, at_s, number, conversations)
        text = (
            '[{"role":"user","content":"What is the capital of France?"}]',
            REPLY[row["version"]],
        )
        entries.append(
            Entry(tuple(row[name] for name in COLUMNS), text if number % 5 == 0 else None)
        )
        if len(entries) == 2000 or number == requests - 1:
            assert not log.write(entries)
            entries.clear()
        if number % max(2, requests // 300) == 0 and row["status"] == 200:
            save_feedback(database, _judge(chance, row), at_s + 5)
    Roller(database).catch_up()


def fill_quality(database: Database, *, seed: int = 3) -> None:
    """What is found out about the answers of `fill`, and what a judge, people and canary questions say
    of them. The candidate is worse.
    """
    chance, now_s = random.Random(seed), time.time()
    checks = DesiredChecks(1e6, judge="judges:rate", judge_share=1.0)
    checker = AnswerChecker(database)
    while checker.step({NAME: checks}) is not None:
        pass
    waiting = read_waiting(database, NAME, "judges:rate", 10_000)
    for number, one in enumerate(waiting):
        good = chance.random() < 0.8
        save_score(database, one.id, min(1.0, max(0.0, good + chance.choice((0, 0, -0.25, 0.25)))))
        if number % 5 < 2:
            review = Item(REVIEW, float(good if chance.random() < 0.85 else not good))
            save_feedback(database, Feedback("", (review,), response=one.id, user="console:ann"))
    asked = [
        QualityAnswer(
            now_s - 3600 + 600 * turn, NAME, label, f"r-{label}", "0123456789abcdef", place,
            place % (9 if label == "stable" else 6 - 2 * (turn > 2)) != 0,
        )
        for label in LABELS for turn in range(6) for place in range(40)
    ]  # fmt: skip
    save_answers(database, asked)
    today = int(now_s // 86400) * 86400
    looks = [
        DriftLook(
            today - 86400 * day, NAME, version, name, 2100, 320, effect, p_value, p_value < 1e-4
        )
        for day in (1, 2, 3)
        for version, name, effect, p_value in (
            ("", "prompt_tokens", 0.03 + 0.01 * day, 0.4),
            ("stable", "completion_tokens", 0.02, 0.7),
            ("candidate", "completion_tokens", 0.19 if day == 1 else 0.04, 1e-6 if day == 1 else 0.3),
        )
    ]  # fmt: skip
    save_looks(database, looks)


def fill_improve(database: Database, home: Home) -> tuple[int, int]:
    """A run that the gate refused, with its record, and one that waits for a person; their numbers."""
    slices = [
        {"metric": "right", "name": "topic=billing", "count": 40, "candidate": 0.4, "against": 0.9,
         "base": 0.8, "difference": -0.5, "low": -0.65, "high": -0.35, "outcome": "worse",
         "examples": [{"question": "What does plan B cost?", "against": "9", "candidate": "?"}]},
        {"metric": "right", "name": "all", "count": 500, "candidate": 0.71, "against": 0.7,
         "base": 0.6, "difference": 0.01, "low": -0.01, "high": 0.03, "outcome": "not worse",
         "examples": []},
    ]  # fmt: skip
    folder = make_private_folder(home.gates)
    (folder / "abc.json").write_text(json.dumps({"slices": slices}))
    collected = {
        "data": "chat-dpo@v1", "method": "dpo", "learned": 90, "held_out": 10, "judged": 140,
        "users": 12, "left_out": {"outlier": 7, "trusted": 9}, "no_row": {"no_text": 3},
        "removed": {"near": 2}, "own": 4, "trusted": {"data": "chat-trusted@v1", "rows": 30},
    }  # fmt: skip
    refused = create_run(database, NAME, {}, began_by="drift", who="controller")
    gate = {
        "verdict": "fail", "message": "chat@v2 fails the gate", "against": "chat@v1",
        "record": str(folder / "abc.json"), "failed": ["right: topic=billing"],
    }  # fmt: skip
    for step, outputs in (("collect", collected), ("train", {"model": "chat@v2"}), ("gate", gate)):
        begin_step(database, refused, step, {})
        end_step(database, refused, step, outputs)
    set_run_state(
        database, refused, REFUSED, "chat@v2 fails the gate: right: topic=billing (-50.0%)"
    )
    waiting = create_run(database, NAME, {}, began_by="every", who="controller")
    begin_step(database, waiting, "collect", {})
    end_step(database, waiting, "collect", collected)
    set_run_state(database, waiting, WAITING, "chat@v3 passed the gate and waits for approval")
    return refused.id, waiting.id


def fill_release(database: Database) -> int:
    """A release under way, with one decision; its number. `measure_release` gives it figures."""
    record = Record("", dump_plan(ReleasePlan()), {"stable": 1.0, "candidate": 0.0}, {}, stage=1)
    with database.begin() as connection:
        return create_release(
            connection, NAME, "candidate", record, Event("start", "ann", "a test")
        )


def measure_release(database: Database, number: int, difference: float) -> None:
    """What a release has measured now, which is no decision."""
    metrics = {
        name: {
            "metric": name, "verdict": "inconclusive", "difference": change, "candidate": value,
            "low": None if change is None else change - 0.2, "others": value, "level": 0.005,
            "high": None if change is None else change + 0.1, "candidate_count": 20,
            "others_count": 80,
        }
        for name, change, value in (
            ("acceptance", difference, 0.6), ("ttft", 0.02, 21.5), ("tpot", None, None),
        )
    }  # fmt: skip
    save_progress(database, read_release(database, number), 60.0, {"metrics": metrics})


def raise_alert(database: Database) -> None:
    """An open alert, as the controller writes it."""
    now_s = time.time()
    row = AlertRow(
        f"errors/{NAME}/candidate/", "errors", "ticket", NAME, "candidate",
        "An answer in a hundred is lost: the error budget of 30 days will be spent in 9.",
        "docs/runbooks.md#errors-burn", now_s - 900, now_s,
    )  # fmt: skip
    save_alerts(database, [row])


def _make_row(
    chance: random.Random, at_s: float, number: int, conversations: Conversations
) -> dict[str, Any]:
    label = "candidate" if chance.random() < 0.12 else "stable"
    busy = 1 + 0.6 * (chance.random() ** 3)
    ttft = chance.gammavariate(6, 20 if label == "stable" else 14) * busy
    tokens, failed = chance.randint(12, 220), chance.random() < 0.004
    hit = chance.random() < 0.18
    status, error = (502, "upstream_failed") if failed else (200, None)
    if not failed and chance.random() < 0.01:
        status, error = 400, "invalid_value"
    if hit:
        ttft = 1.1
    prompt, prices = chance.randint(20, 900), PRICES[label]
    return {
        **dict.fromkeys(COLUMNS),
        "id": (int((at_s - EPOCH_S) * 1000) << 22) + number % 4096, "at_s": at_s,
        "conversation_id": f"cv-{number // 3:012d}", "origin": "client",
        "endpoint": "/v1/chat/completions", "deployment": NAME, "version": label,
        "replica": f"{NAME}-{2 if label == 'candidate' else number % 2}", "tenant": None,
        "end_user": f"user-{chance.randrange(40)}", "status": status, "error": error,
        "stream": True, "cache": "hit" if hit else "miss", "attempts": 2 if failed else 1,
        "prompt_tokens": prompt, "completion_tokens": tokens,
        "cached_tokens": chance.randint(0, 20), "queue_ms": 0.0 if hit else ttft * 0.1,
        "ttft_ms": ttft, "tpot_ms": 1000 / 90, "e2e_ms": ttft + (2 if hit else tokens * 11.0),
        "overhead_us": chance.uniform(180, 420), "rerouted": False,
        "max_tokens": 216 if label == "stable" else 200,
        "cost": (prompt * prices[0] + tokens * prices[1]) / 1e6,
    }  # fmt: skip


def _judge(chance: random.Random, row: dict[str, Any]) -> Feedback:
    liked = chance.random() < (0.9 if row["version"] == "stable" else 0.72)
    items = [Item("thumbs", 1.0 if liked else 0.0)]
    if not liked:
        said = chance.choice(("Too long", "Wrong city", "It does not answer the question"))
        items.append(Item("comment", text=said))
        if chance.random() < 0.4:
            items.append(Item("correction", text="The capital of France is Paris."))
    return Feedback("", tuple(items), response=row["id"], user=row["end_user"])
