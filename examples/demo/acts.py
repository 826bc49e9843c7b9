"""What happens in the demo, act by act. Whatever is claimed is measured in the act that claims it."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from demo.crowd import Answer, Crowd, count_wrong
from demo.people import ACCURACY
from demo.service import Failed, Service
from demo.sizes import MODEL, Sizes

NAME = "assistant"
REFUSAL = "I'm sorry, but I can't help with that."
POLL_S = 1.0
PLAIN_S = 20.0
ENDED = ("promoted", "rolled_back", "aborted", "ended")


@dataclass
class Demo:
    """The demo, as far as it has come."""

    home: Path
    sizes: Sizes
    seed: int = 0
    shuffled: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    rollbacks: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began_s = self.shown_s = time.monotonic()
        self.rng = random.Random(self.seed)
        self.service = Service(self.home, self.home / "spec.yaml", self.show_progress)
        self.crowd = Crowd("", self.sizes, self.seed)
        self.asked: list[str] = []
        self.held_out: list[str] = []
        self.day: list[Answer] = []
        self.old = ""
        self.new: str | None = None
        self.next_visit = 0

    def say(self, text: str) -> None:
        """A line of the story, with the time since the beginning."""
        passed_s = time.monotonic() - self.began_s
        print(f"[{int(passed_s // 60):2d}:{passed_s % 60:02.0f}] {text}", flush=True)

    def show_progress(self, text: str) -> None:
        """On a terminal one line that changes, elsewhere a line now and then."""
        if sys.stdout.isatty():
            print(f"\r\033[K        {text}\r", end="", flush=True)
        elif time.monotonic() - self.shown_s > PLAIN_S:
            self.shown_s = time.monotonic()
            self.say(text)

    @contextmanager
    def act(self, name: str, title: str) -> Iterator[None]:
        """One act, and how long it took."""
        print(f"\n== {title}", flush=True)
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = round(time.monotonic() - began_s, 1)

    def play(self, *, only_turn: bool = False) -> dict[str, Any]:
        """All acts, or those of the turn; returns what demo.json holds. Raises `Failed`."""
        self.open_service()
        self.spend_day()
        promoted = self.turn_loop()
        gain, interval = self.measure_gain(promoted=promoted)
        refused = rolled_back = None
        if not only_turn:
            refused = self.refuse_poisoned()
            rolled_back = self.roll_back_worse()
        lost, wrong = self.count_requests()
        return {
            "gain": round(gain, 4), "gain_interval": [round(one, 4) for one in interval],
            "promoted": promoted, "refused": refused, "rolled_back": rolled_back,
            "requests": self.crowd.requests, "lost": lost, "wrong_version": wrong,
            "seconds": round(time.monotonic() - self.began_s, 1),
        }  # fmt: skip

    # 1

    def open_service(self) -> None:
        """Fetch questions, write the spec and start the service."""
        with self.act("serve", "A model is served"):
            for name in ("questions-learn", "questions"):
                self.service.run("data", "fetch", name)
            self.asked = self._read_questions("questions-learn")
            held_out = self._read_rows("questions")
            self.held_out = [
                row["messages"][0]["content"] for row in held_out[: self.sizes.held_out]
            ]
            rest = held_out[self.sizes.held_out :]
            judged = [row for row in rest if row.get("answers")][: self.sizes.gate_questions]
            with (self.home / "gate.jsonl").open("w") as file:
                for row in judged:
                    question = row["messages"][0]["content"]
                    file.write(json.dumps({"question": question, "answers": row["answers"]}) + "\n")
            (self.home / "spec.yaml").write_text(yaml.safe_dump(self.make_spec(), sort_keys=False))
            self.service.start()
            self.crowd.url = self.service.url
            (deployment,) = self.service.ask("status")["deployments"]
            self.old = deployment["versions"][0]["label"]
            self.say(f"{self.old} answers at {self.service.url}")

    def make_spec(self) -> dict[str, Any]:
        """The service, with the loop."""
        return {
            "name": NAME, "model": MODEL,
            "record": {"prompts": True}, "gateway": {"port": 0},
            "feedback": {"per_user": 10_000, "per_tenant": 100_000},
            "improve": {
                "rows": self.sizes.rows,
                "train": {
                    "epochs": self.sizes.epochs, "learning_rate": self.sizes.learning_rate,
                    "seed": self.seed,
                },
                "gate": {
                    "data": [str(self.home / "gate.jsonl"), "encyclopedia"],
                    "items": self.sizes.gate_questions, "tokens": self.sizes.gate_tokens,
                    "margin": self.sizes.gate_margin, "speed": False,
                },
                "release": {
                    "shadow": {"judge": "demo.people:prefer", "pairs": self.sizes.pairs},
                    **self._make_steps(50, 100),
                },
            },
        }  # fmt: skip

    def _make_steps(self, *steps: int) -> dict[str, Any]:
        return {
            "alpha": self.sizes.alpha, "steps": list(steps), "settle": f"{self.sizes.settle_s:g}s",
            "sticky": "60s",
            "step": {"conversations": self.sizes.conversations, "time": "5s"},
        }  # fmt: skip

    # 2

    def spend_day(self) -> None:
        """Users ask, ask again where they do not like an answer, and give thumbs."""
        with self.act("day", "A day of users, who like something that they do not say"):
            visits = self.sizes.visits

            def tell(count: int) -> None:
                self.show_progress(f"{count} of {visits} users were here")

            self.day = self.crowd.visit_all(self._take_questions(visits), 0, tell)
            likes = [one.liked for one in self.day]
            if self.shuffled:
                self.rng.shuffle(likes)
                self.say("The thumbs are shuffled: they say nothing about the answers.")
            for answer, liked in zip(self.day, likes, strict=True):
                self.crowd.give_thumb(answer, liked)
            self.say(
                f"{visits} questions, {len(self.day)} answers, "
                f"{statistics.mean(likes):.0%} of them liked"
            )

    # 3

    def turn_loop(self) -> bool:
        """One turn: `thrifty improve run`, then users come while the release decides."""
        with self.act("loop", "One turn of the loop: thrifty improve run assistant"):
            planned = self.service.ask("improve", "run", NAME, "--dry-run")
            if planned["problem"] is None:
                self.say(
                    f"To be learned: {planned['rows']} rows by {planned['method']}, about "
                    f"{planned['total_minutes']:.1f} minutes"
                )
            run = self.service.ask("improve", "run", NAME, "--no-wait", expected=(0, 1))
            outputs = self._tell_steps(run)
        if run["state"] != "releasing":
            self.say(f"There is no new version: {run['message']}")
            return False
        self.new = outputs["compress"]["label"]
        with self.act("release", "The new version is released by evidence"):
            self.say(f"The judge agrees with the users in {ACCURACY:.0%} of its comparisons.")
            row = self._watch_release(outputs["release"]["release"])
            self.service.ask("improve", "status", NAME)
        return bool(row["state"] == "promoted")

    def _tell_steps(self, run: dict[str, Any]) -> dict[str, Any]:
        outputs = {}
        for one in run["steps"]:
            if one["ended_s"] is not None:
                self.stages[f"loop: {one['step']}"] = round(one["ended_s"] - one["began_s"], 1)
            outputs[one["step"]] = one["outputs"]
            found = one["outputs"]
            if one["step"] == "collect" and found:
                self.say(
                    f"collect: {found['learned']} rows and {found['held_out']} held out, by "
                    f"{found['method']}, from {found['judged']} judged answers of {found['users']} users"
                )
            elif one["step"] == "train" and found:
                self.say(
                    f"train: {found['model']}, {found['unit']} on rows held out: "
                    f"{found['before']:.3f} before, {found['after']:.3f} after"
                )
            elif one["step"] == "gate" and found:
                self.say(f"gate: {found['message']}")
            elif one["error"]:
                self.say(f"{one['step']}: {one['error']}")
        return outputs

    def _watch_release(self, number: int) -> dict[str, Any]:
        """Have users come until a release has ended, and tell its decisions."""
        told = 0
        until_s = time.monotonic() + self.sizes.most_release_s
        with self.crowd.coming(self.asked, self._take_numbers()):
            while True:
                row: dict[str, Any] = self.service.get(f"/api/v1/releases/{number}")
                for event in row["events"][told:]:
                    self.say(f"release: {event['kind']}: {event['why']}")
                told = len(row["events"])
                self.show_progress(f"{row['stage']}: {describe_evidence(row)}")
                if row["state"] in ENDED:
                    break
                if time.monotonic() > until_s:
                    self.service.run(
                        "release", "abort", str(number), "--why", "the demo's time is up"
                    )
                time.sleep(POLL_S)
            rolled = [one for one in row["events"] if one["kind"] in ("rollback", "abort")]
            if rolled:
                self.rollbacks.append((row["candidate"], rolled[-1]["at_s"]))
                # Users still come: none of them may get that version any more.
                time.sleep(3 * POLL_S)
        metrics = row["figures"].get("metrics", {})
        self.details[f"release {number}"] = {
            name: {k: one[k] for k in ("difference", "low", "high", "candidate_count", "others_count")}
            for name, one in metrics.items()
        }  # fmt: skip
        return row

    # 4

    def measure_gain(self, *, promoted: bool) -> tuple[float, tuple[float, float]]:
        """How much more users like what serves now, on questions that nobody asked before."""
        with self.act("gain", f"The gain, on {len(self.held_out)} questions that it never saw"):
            # Each version has a replica with cores of its own.
            labels = [self.old] if self.new is None else [self.old, self.new]
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(lambda one: self.crowd.measure(self.held_out, one), labels))
            before, after = found[0], found[-1]
            gain, interval = compare(before, after)
            self.details["candidate_gain"] = [gain, *interval]
            self.say(
                f"A user likes an answer of {self.old} with a chance of {statistics.mean(before):.1%}, "
                f"and one of {self.new or self.old} with {statistics.mean(after):.1%}: "
                f"{gain:+.1%} ({interval[0]:+.1%} to {interval[1]:+.1%}, paired)"
            )
            if not promoted:
                self.say(f"{self.old} still serves, so that users have gained nothing.")
                return 0.0, (0.0, 0.0)
        return gain, interval

    # 5

    def refuse_poisoned(self) -> bool:
        """A version that learned to refuse, and what the gate says of it."""
        with self.act("poisoned", "A poisoned version, and the gate"):
            path = self.home / "poisoned.jsonl"
            questions = self._take_questions(self.sizes.poisoned_rows)
            _write_rows(path, [(question, REFUSAL) for question in questions])
            self.service.run(
                "train", self._find_serving(), "--data", str(path), "--method", "sft",
                "--out", "poisoned", "--epochs", "2",
            )  # fmt: skip
            self.say(f"poisoned@v1 has learned from {len(questions)} rows to refuse everything.")
            found = self.service.ask(
                "gate", "poisoned@v1", "--against", self._find_serving(),
                "--data", str(self.home / "gate.jsonl"), "--items", str(self.sizes.gate_questions),
                "--margin", str(self.sizes.gate_margin), "--no-speed", expected=(0, 1),
            )  # fmt: skip
            self.say(f"gate: {found['message']}")
        return bool(found["verdict"] == "fail")

    # 6

    def roll_back_worse(self) -> bool:
        """A version that users like less, released past the gate and straight to users."""
        with self.act("worse", "A subtly worse version, released past the gate"):
            path = self.home / "worse.jsonl"
            disliked = sorted(self.day, key=lambda one: len(one.text), reverse=True)
            rows = [(one.question, one.text) for one in disliked[: self.sizes.worse_rows]]
            _write_rows(path, rows)
            self.service.run(
                "train", self._find_serving(), "--data", str(path), "--method", "sft",
                "--out", "wordy", "--epochs", "1",
            )  # fmt: skip
            self.say("wordy@v1 answers at length. It breaks nothing, and nobody asks the gate.")
            plan = self.home / "plan.yaml"
            plan.write_text(yaml.safe_dump(self._make_steps(50, 100)))
            row = self.service.ask(
                "release", "wordy@v1", "--to", NAME, "--plan", str(plan), "--yes", "--why", "a demo"
            )
            ended = self._watch_release(row["id"])
            late = [
                one.begun_s - at_s for label, at_s in self.rollbacks[-1:] for one in self.crowd.answers
                if one.version == label == ended["candidate"]
            ]  # fmt: skip
            if late:
                self.details["last_request_after_rollback_s"] = round(max(late), 3)
        return bool(ended["state"] == "rolled_back")

    # 7

    def count_requests(self) -> tuple[int, int]:
        """Requests that were lost, and those that the wrong version answered."""
        wrong = count_wrong(self.crowd.answers, self.rollbacks) + self.crowd.wrong_pins
        lost = len(self.crowd.lost)
        print(f"\n== {self.crowd.requests} requests: {lost} lost, {wrong} by the wrong version")
        for fault in self.crowd.lost[:5]:
            self.say(fault)
        return lost, wrong

    def _find_serving(self) -> str:
        """The model of the version with most of the traffic, before it was prepared."""
        (deployment,) = self.service.ask("status")["deployments"]
        return str(max(deployment["versions"], key=lambda one: one["weight"])["label"])

    def _read_rows(self, name: str) -> list[dict[str, Any]]:
        path = self.home / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.rng.shuffle(rows)
        return rows

    def _read_questions(self, name: str) -> list[str]:
        return [row["messages"][0]["content"] for row in self._read_rows(name)]

    def _take_questions(self, count: int) -> list[str]:
        """Questions that nobody has asked yet."""
        taken, self.asked = self.asked[:count], self.asked[count:]
        if len(taken) < count:
            raise Failed("there are not enough questions for these sizes")
        return taken

    def _take_numbers(self) -> int:
        """The first of the numbers of the next visits."""
        self.next_visit += 1_000_000
        return self.next_visit


def describe_evidence(row: dict[str, Any]) -> str:
    """What a release has seen of its primary metric so far."""
    metrics = row["figures"].get("metrics", {})
    found = metrics.get("judged") or metrics.get("acceptance")
    if not found or not found["candidate_count"]:
        return "nothing is measured yet"
    counts = f"{found['candidate_count']} and {found['others_count']}"
    if found["difference"] is None or found["low"] is None:
        return f"{found['metric']}, {counts} measured"
    return (
        f"{found['metric']} {found['difference']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%}), "
        f"{counts} measured"
    )


def compare(before: Sequence[float], after: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean of the paired differences, with its interval of 95% (Student's t, whose quantile is
    expanded around that of the normal distribution).
    """
    differences = [new - old for old, new in zip(before, after, strict=True)]
    mean, count = statistics.mean(differences), len(differences)
    normal = statistics.NormalDist().inv_cdf(0.975)
    free = count - 1
    quantile = normal + (normal**3 + normal) / (4 * free)
    quantile += (5 * normal**5 + 16 * normal**3 + 3 * normal) / (96 * free**2)
    half = quantile * statistics.stdev(differences) / math.sqrt(count)
    return mean, (mean - half, mean + half)


def _write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w") as file:
        for question, answer in rows:
            messages = [
                {"role": "user", "content": question}, {"role": "assistant", "content": answer}
            ]  # fmt: skip
            file.write(json.dumps({"messages": messages}) + "\n")
