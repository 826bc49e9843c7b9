"""A deployment in a real database whose users are rows of the request log, at times of our own."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import insert

from tests.control.running import deployment, echo, service, want
from thrifty.db import Database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.fleet import ReplicaRow, read_fleet, save_deployment, save_replicas
from thrifty.db.releases import ReleaseRow, read_release
from thrifty.db.tables import feedback, request_texts, requests
from thrifty.gateway.routing.registry import make_policy
from thrifty.gateway.state.deployment import Deployment, merge_deployment
from thrifty.openai.conversations import Conversations
from thrifty.openai.fields import Endpoint
from thrifty.release.manage import start_release
from thrifty.release.plan import parse_plan
from thrifty.release.watch import Watch

PLAN = {
    "steps": [25, 100], "step": {"conversations": 20, "time": 0}, "settle": "1s", "sticky": "1h",
}  # fmt: skip
_numbers = itertools.count(1)


@dataclass
class Clock:
    """Two clocks, one of which may be set."""

    ahead_s: float = 0.0
    steady_s: float = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead_s

    def steady(self) -> float:
        return time.monotonic() + self.steady_s

    def pass_time(self, seconds: float) -> None:
        self.ahead_s += seconds
        self.steady_s += seconds


@dataclass
class World:
    """The database of a service with the versions `old` and `new`, and a release between them."""

    database: Database
    clock: Clock = field(default_factory=Clock)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    conversations: Conversations = field(default_factory=lambda: Conversations(b"s" * 32))
    release_id: int = 0
    watch: Watch | None = None

    def prepare(self, *, texts: bool = True, ready: bool = True, family: str = "decoder") -> None:
        state = deployment(echo("old", weight=1), echo("new", weight=0))
        state = replace(state, family=family)
        want(self.database, state, gateway=service(record_prompts=texts))
        save_deployment(self.database, state.row)
        for label in ("old", "new"):
            if ready or label == "old":
                self.set_replica(label, "ready")

    def set_replica(self, label: str, state: str, message: str | None = None) -> None:
        row = ReplicaRow(
            f"m-{label}", "m", "echo", label, label, None, "http://127.0.0.1:1", state,
            message=message,
        )  # fmt: skip
        save_replicas(self.database, [row], routing_changed=True)

    def start(self, **plan: Any) -> ReleaseRow:
        wanted = {**PLAN, **plan}
        if "bandit" in plan:
            wanted.pop("steps")
        made = start_release(self.database, "m", "new", parse_plan(wanted), who="test")
        self.release_id = made.id
        self.restart()
        return made

    def restart(self) -> None:
        """As a new controller would."""
        if self.watch is not None:
            self.watch.close()
        # A controller that is back counts no time in which there was none.
        self.watch = Watch(
            lambda: self.database, self.release, clock=self.clock.wall, steady=self.clock.steady
        )

    @property
    def release(self) -> ReleaseRow:
        return read_release(self.database, self.release_id)

    def turn(self, seconds: float = 1.0) -> ReleaseRow:
        assert self.watch is not None
        self.clock.pass_time(seconds)
        if self.release.is_active:
            self.watch.turn(self.release)
        return self.release

    def turn_until(self, condition: Callable[[ReleaseRow], bool], most: int = 200) -> ReleaseRow:
        for _ in range(most):
            if condition(row := self.turn()):
                return row
        raise AssertionError(f"it did not come to that: {self.release}")

    def routes(self) -> Deployment:
        """The deployment as a gateway knows it."""
        state = read_fleet(self.database)
        found = merge_deployment(None, state.deployments[0], make_policy)
        found.hold(state.held.get("m"))
        return found

    def shares(self) -> dict[str, float]:
        """The weights as gateways read them, as shares."""
        (row,) = read_fleet(self.database).deployments
        total = sum(version.weight for version in row.versions)
        return {version.label: round(version.weight / total, 6) for version in row.versions}

    def name(self) -> str:
        """A new conversation."""
        header = b"%d" % self.rng.getrandbits(63)
        return self.conversations.identify("", header, Endpoint.CHAT, {})

    def answer(
        self, conversation: str | None = None, *, liked: float | None = None, **values: Any
    ) -> tuple[int, str]:
        """One answered request; `liked` is the chance of a thumb up. Returns its number and who
        answered.
        """
        name = conversation or self.name()
        label = values.pop("version", None) or self.routes().choose(name).label
        number = next(_numbers)
        row = {
            "id": number, "at_s": self.clock.wall(), "conversation_id": name, "origin": "client",
            "endpoint": "/v1/chat/completions", "deployment": "m", "version": label, "status": 200,
            "stream": True, "cache": "miss", "attempts": 1, "prompt_tokens": 10,
            "completion_tokens": 10, "ttft_ms": self.rng.uniform(90, 110),
            "tpot_ms": self.rng.uniform(9, 11), "e2e_ms": 200.0, "rerouted": False, **values,
        }  # fmt: skip
        with self.database.begin() as connection:
            connection.execute(insert(requests).values(row))
        if liked is not None:
            thumb = Item("thumbs", float(self.rng.random() < liked))
            given = Feedback("", (thumb,), response=number)
            save_feedback(self.database, given, now_s=self.clock.wall())
        return number, label

    def people(self, count: int, likes: dict[str, float], **values: Any) -> None:
        """So many conversations, each with a thumb that is up with its version's chance."""
        routes = self.routes()
        rows, thumbs = [], []
        for _ in range(count):
            name = self.name()
            label = routes.choose(name).label
            number, at_s = next(_numbers), self.clock.wall()
            slower = values.get("slower", {}).get(label, 1.0)
            failed = self.rng.random() < values.get("fails", {}).get(label, 0.0)
            rows.append({
                "id": number, "at_s": at_s, "conversation_id": name, "origin": "client",
                "endpoint": "/v1/chat/completions", "deployment": "m", "version": label,
                "status": 500 if failed else 200, "stream": True, "cache": "miss", "attempts": 1,
                "prompt_tokens": 10, "completion_tokens": 10, "e2e_ms": 200.0, "rerouted": False,
                "ttft_ms": self.rng.uniform(90, 110) * slower, "tpot_ms": self.rng.uniform(9, 11),
            })  # fmt: skip
            if label in likes:
                thumbs.append((number, float(self.rng.random() < likes[label]), at_s))
        with self.database.begin() as connection:
            connection.execute(insert(requests), rows)
            for number, value, at_s in thumbs:
                connection.execute(
                    insert(feedback).values(
                        identity=str(number), kind="thumbs", tenant="", response=number,
                        source="key", value=value, at_s=at_s, updated_s=at_s, changes=0,
                    )
                )  # fmt: skip

    def shadow(self, prompt: str, other: str, candidate: str, status: int = 200) -> None:
        """A request that the old version answered, and the copy that the new one did."""
        number, _ = self.answer(version="old")
        with self.database.begin() as connection:
            name = connection.execute(
                requests.select().where(requests.c.id == number)
            ).mappings().one()["conversation_id"]  # fmt: skip
        copy, _ = self.answer(name, version="new", origin="shadow", shadow_of=number, status=status)
        with self.database.begin() as connection:
            for row_id, text in ((number, other), (copy, candidate)):
                connection.execute(insert(request_texts).values(
                    id=row_id, at_s=self.clock.wall(), prompt=f'[{{"role":"user","content":"{prompt}"}}]',
                    answer=text if status == 200 or row_id == number else "",
                ))  # fmt: skip
