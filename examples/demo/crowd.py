"""Users who ask over HTTP, look at answers, ask again, and give thumbs; and what became of each request."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

from demo.people import chance_of_like
from demo.service import Failed
from demo.sizes import MAX_TOKENS, TEMPERATURE, Sizes

TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Answer:
    """One answered request."""

    conversation: str
    begun_s: float
    version: str
    question: str
    text: str
    response: str
    liked: bool
    user: str


@dataclass
class Crowd:
    """All users, and what all of their requests came to."""

    url: str
    sizes: Sizes
    seed: int
    requests: int = 0
    lost: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    wrong_pins: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()

    def visit(self, number: int, question: str, *, tries: int, thumbs: bool = True) -> list[Answer]:
        """A user asks a question, and asks again until an answer is liked or there were `tries`."""
        rng = random.Random(f"{self.seed} {number}")
        user = f"user-{rng.randrange(self.sizes.users)}"
        conversation = f"visit-{self.seed}-{number}"
        seen = []
        for _ in range(tries):
            answer = self._ask(question, user, conversation, rng)
            if answer is None:
                break
            seen.append(answer)
            if thumbs:
                self.give_thumb(answer, answer.liked)
            if answer.liked:
                break
        return seen

    def visit_all(
        self, questions: Sequence[str], first: int, on_visit: Callable[[int], None]
    ) -> list[Answer]:
        """One visit for each question, several at the same time; nobody gives thumbs yet. `on_visit`
        is told how many have ended.
        """
        found: list[Answer] = []
        with ThreadPoolExecutor(self.sizes.crowd) as pool:
            numbers = range(first, first + len(questions))
            tries = self.sizes.tries
            seen = pool.map(
                lambda n, q: self.visit(n, q, tries=tries, thumbs=False), numbers, questions
            )
            for count, one in enumerate(seen, 1):
                found += one
                on_visit(count)
        return found

    @contextmanager
    def coming(self, questions: Sequence[str], first: int) -> Iterator[None]:
        """Users come and go all the while, each giving thumbs at once."""
        stopping = threading.Event()
        numbers = iter(range(first, first + 1_000_000))

        def come() -> None:
            while not stopping.is_set():
                with self._lock:
                    number = next(numbers)
                self.visit(number, questions[number % len(questions)], tries=self.sizes.patience)

        threads = [threading.Thread(target=come) for _ in range(self.sizes.crowd)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()

    def give_thumb(self, answer: Answer, liked: bool) -> None:
        """Send feedback on an answer."""
        body = {
            "response_id": answer.response, "thumbs": "up" if liked else "down",
            "user": answer.user,
        }  # fmt: skip
        self._session.post(
            f"{self.url}/v1/feedback", json=body, timeout=TIMEOUT_S
        ).raise_for_status()

    def measure(self, questions: Sequence[str], version: str) -> list[float]:
        """The chance that users like one version's answer to each question. Nothing of it is
        recorded.
        """
        headers = {"x-thrifty-version": version, "x-thrifty-origin": "measurement"}

        def ask(place: int) -> float:
            question = questions[place]
            body = _make_body(question, "measurement", self.seed * 100_003 + place)
            reply = self._post(body, headers)
            if reply is None:
                raise Failed(f"{version} does not answer: {self.lost[-1]}")
            if reply.headers["x-thrifty-version"] != version:
                with self._lock:
                    self.wrong_pins += 1
            return chance_of_like(question, reply.json()["choices"][0]["message"]["content"] or "")

        with ThreadPoolExecutor(self.sizes.crowd) as pool:
            return list(pool.map(ask, range(len(questions))))

    def _ask(
        self, question: str, user: str, conversation: str, rng: random.Random
    ) -> Answer | None:
        body = _make_body(question, user, rng.getrandbits(31))
        begun_s = time.time()
        reply = self._post(body, {"x-thrifty-conversation": conversation})
        if reply is None:
            return None
        found = reply.json()
        text = found["choices"][0]["message"]["content"] or ""
        liked = rng.random() < chance_of_like(question, text)
        version = reply.headers["x-thrifty-version"]
        answer = Answer(conversation, begun_s, version, question, text, found["id"], liked, user)
        with self._lock:
            self.answers.append(answer)
        return answer

    def _post(self, body: object, headers: dict[str, str]) -> requests.Response | None:
        """The reply; None, and counted as lost, where there is none."""
        fault = ""
        try:
            reply = self._session.post(
                f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=TIMEOUT_S
            )
            if reply.status_code != 200:
                fault = f"{reply.status_code} {reply.text[:200]}"
        except requests.RequestException as error:
            fault = f"{type(error).__name__}: {error}"
        with self._lock:
            self.requests += 1
            if fault:
                self.lost.append(fault)
        return None if fault else reply

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


def _make_body(question: str, user: str, seed: int) -> dict[str, object]:
    return {
        "model": "assistant", "messages": [{"role": "user", "content": question}], "user": user,
        "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": seed,
    }  # fmt: skip


def count_wrong(
    answers: Sequence[Answer], rollbacks: Sequence[tuple[str, float]], grace_s: float = 1.0
) -> int:
    """Requests that the wrong version answered: another one than the conversation had before, unless
    that one was rolled back; or one that was rolled back more than `grace_s` before the request
    began. `rollbacks` are labels with the times of the decisions.
    """
    decided = dict(rollbacks)
    wrong = 0
    had: dict[str, str] = {}
    for one in sorted(answers, key=lambda answer: answer.begun_s):
        before = had.get(one.conversation, one.version)
        had[one.conversation] = one.version
        moved = before != one.version and before not in decided
        late = one.version in decided and one.begun_s > decided[one.version] + grace_s
        wrong += moved or late
    return wrong
