"""Limits of keys as users meet them: `thrifty keys create`, several gateway workers, OpenAI's client."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.parts import RunningService, run_thrifty, running_service, wait_until
from tests.redis_server import running_redis
from tests.service.test_up import write_spec
from thrifty.fleet.process import find_ours

pytestmark = pytest.mark.service

BODY: dict[str, Any] = {
    "model": "echo", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 11,
}  # fmt: skip
PRICES = {"output": 1_000_000}
"""A token of an answer costs 1; an answer has 11."""


def make_key(service: RunningService, name: str, *limits: str) -> str:
    result = run_thrifty(service.home, "keys", "create", "--name", name, *limits)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def ask(service: RunningService, key: str) -> requests.Response:
    # A connection each: the kernel spreads them over the workers.
    with requests.Session() as session:
        return session.post(
            f"{service.url}/v1/chat/completions", json=BODY, timeout=30,
            headers={"authorization": f"Bearer {key}"},
        )  # fmt: skip


def spec_with(folder: Path, **keys: Any) -> str:
    from thrifty.fleet.ports import find_free_port

    return write_spec(
        folder, gateway={"port": find_free_port(), "workers": 2}, prices=PRICES, **keys
    )


def test_a_budget_holds_across_workers_and_their_deaths(tmp_path: Path) -> None:
    with running_service(tmp_path, spec_with(tmp_path), "--no-measure") as service:
        key = make_key(service, "ann", "--budget-day", "110")
        served = 0
        for _ in range(6):
            served += ask(service, key).status_code == 200
            time.sleep(0.1)
        assert served == 6
        time.sleep(0.6)
        for ident, role, _ in find_ours(tmp_path):
            if role == "gateway":
                os.kill(ident.pid, signal.SIGKILL)

        def back() -> bool:
            try:
                return requests.get(f"{service.url}/healthz", timeout=2).status_code == 200
            except requests.RequestException:
                return False

        wait_until(back, what="a gateway")
        time.sleep(1.0)
        for _ in range(8):
            served += ask(service, key).status_code == 200
            time.sleep(1.3)  # so long until one worker knows what the other's requests cost
        assert served == 10
        refused = ask(service, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")


def test_redis_holds_the_limit_to_the_request_and_openais_client_raises(tmp_path: Path) -> None:
    import openai

    with running_redis() as redis:
        # Exact while Redis answers in time, for which a busy machine is given time.
        spec = spec_with(tmp_path, redis=redis.url, redis_timeout="5s")
        with running_service(tmp_path, spec, "--no-measure") as service:
            key = make_key(service, "ann", "--rpm", "30")
            assert ask(service, key).status_code == 200
            with ThreadPoolExecutor(16) as pool:
                statuses = list(pool.map(lambda _: ask(service, key).status_code, range(120)))
            assert Counter(statuses) == {200: 29, 429: 91}
            with (
                openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0) as client,
                pytest.raises(openai.RateLimitError) as raised,
            ):
                client.chat.completions.create(model="echo", messages=BODY["messages"])
            assert raised.value.code == "rate_limit_exceeded"
            assert raised.value.response.headers["x-ratelimit-limit-requests"] == "30"
            # Nobody notices that Redis is gone.
            other = make_key(service, "bob", "--rpm", "1000")
            redis.kill()
            assert {ask(service, other).status_code for _ in range(20)} == {200}
