"""What a running batch does to interactive requests, what it makes of the rest, what kills cost it.

    python benchmarks/batches.py [--engines echo,real] [--kills 50]

Interactive load (open loop, Poisson arrivals, streams) runs in turns without and with a batch under
it, and the batch runs alone. Lines and interactive requests have prompts and answers of the same
lengths, so that their tokens count alike: what the interactive load leaves is the batch's tokens/s
alone less the interactive tokens/s, and the share used is the batch's tokens/s beside it over that.

Two engines: `echo` with 16 places, which tells what the scheduling alone does, and the default model
on this machine, where every running line slows the others down: fewer places make shorter steps, and
each interactive request displaces two lines.

Then random SIGKILLs of gateways, replicas and controllers under a batch on the echo engine, with a
new `thrifty up` after each killed controller; at the end every line must stand in the output once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

import requests

from common import (
    WORK,
    ThriftyService,
    figure,
    finish,
    free_port,
    in_turns,
    say,
    show_spread,
    spread,
)
from thrifty.bench import LoadPlan, Workload, run_load, summarize
from thrifty.bench.client import Target
from thrifty.bench.workload import Lengths
from thrifty.http.origin import parse_origin

PROMPT_TOKENS, OUTPUT_TOKENS = 96, 48
LINES = 20_000
SPECS: dict[str, dict[str, Any]] = {
    "echo": {
        "engine": {"kind": "echo", "ttft": "150ms", "tpot": "6ms", "slots": 16},
        "batches": {"slots": 16},
    },
    "real": {"batches": {"slots": 8, "displace": 2}},
}
RATES = {"echo": 14.0, "real": 2.0}
"""Interactive requests per second: about half of what each can do."""


def make_line(number: int, model: str, salt: int) -> dict[str, Any]:
    words = " ".join(f"word{(number * 31 + i * 7 + salt) % 997}" for i in range(PROMPT_TOKENS // 3))
    return {
        "custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": model, "messages": [{"role": "user", "content": f"{number} {salt} {words}"}],
                 "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0.7},
    }  # fmt: skip


class Batch:
    """A batch that is far from its end."""

    def __init__(self, url: str, model: str, salt: int, count: int = LINES) -> None:
        self.url = url
        data = "".join(json.dumps(make_line(i, model, salt)) + "\n" for i in range(count)).encode()
        file = requests.post(
            f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)}, timeout=120
        ).json()  # fmt: skip
        body = {
            "input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
        }  # fmt: skip
        self.id = requests.post(f"{url}/v1/batches", json=body, timeout=60).json()["id"]
        while self.read()["request_counts"]["completed"] < min(8, count):
            time.sleep(0.1)

    def read(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/v1/batches/{self.id}", timeout=60).json()

    def tokens(self) -> tuple[float, int]:
        """When the count last changed, and what it was then."""
        first = self.read()["usage"]["output_tokens"]
        while True:
            now = self.read()["usage"]["output_tokens"]
            if now != first:
                return time.monotonic(), now
            time.sleep(0.01)

    def cancel(self) -> None:
        requests.post(f"{self.url}/v1/batches/{self.id}/cancel", timeout=60)
        while self.read()["status"] != "cancelled":
            time.sleep(0.1)


def cancel_all(url: str) -> None:
    """End what a run that was broken off has left: it would take its share."""
    for batch in requests.get(f"{url}/v1/batches?limit=100", timeout=60).json()["data"]:
        if batch["status"] in ("validating", "in_progress", "finalizing"):
            requests.post(f"{url}/v1/batches/{batch['id']}/cancel", timeout=60)


def measure_engine(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Interactive latencies and tokens/s, in turns."""
    service = ThriftyService(
        f"batches {name}",
        {**SPECS[name], "gateway": {"port": free_port()}, "cache": {"exact": False}},
    )
    model = service.status["deployments"][0]["name"]
    salts = iter(range(1, 10_000))
    cancel_all(service.url)

    def talk() -> dict[str, float]:
        workload = Workload(
            Lengths("fixed", PROMPT_TOKENS, 0), Lengths("fixed", OUTPUT_TOKENS, 0), seed=time.time_ns()
        )  # fmt: skip
        plan = LoadPlan(duration_s=seconds, warm_up_s=3.0, rate=RATES[name], seed=7)
        target = Target(parse_origin(service.url), model)
        result = summarize(asyncio.run(run_load(target, workload, plan)))
        if result.errors:
            raise SystemExit(f"{name}: {result.error_samples}")
        assert result.ttft_ms is not None
        return {
            "ttft_p50_ms": result.ttft_ms.p50,
            "ttft_p95_ms": result.ttft_ms.p95,
            "tokens_per_s": result.output_tokens_per_s.value,
        }

    def with_batch() -> dict[str, float]:
        batch = Batch(service.url, model, next(salts))
        began_s, before = batch.tokens()
        talked = talk()
        ended_s, after = batch.tokens()
        batch.cancel()
        return {**talked, "batch_tokens_per_s": (after - before) / (ended_s - began_s)}

    def batch_alone() -> dict[str, float]:
        batch = Batch(service.url, model, next(salts))
        began_s, before = batch.tokens()
        time.sleep(seconds)
        ended_s, after = batch.tokens()
        batch.cancel()
        return {"batch_tokens_per_s": (after - before) / (ended_s - began_s)}

    try:
        return in_turns(rounds, {"alone": talk, "with": with_batch, "batch": batch_alone})
    finally:
        service.stop()


def measure_kills(kills: int) -> dict[str, int]:
    """Lines lost and doubled over so many SIGKILLs."""
    from thrifty.fleet.process import find_ours

    home = WORK / "homes" / "batch-kills"
    home.mkdir(parents=True, exist_ok=True)
    port, rng = free_port(), random.Random(11)
    spec = home / "thrifty.yaml"
    spec.write_text(
        json.dumps(
            {
                "engine": {"kind": "echo", "ttft": "80ms", "slots": 8}, "replicas": 2,
                "gateway": {"port": port}, "cache": False,
            }
        )
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "THRIFTY_HOME": str(home)}
    thrifty = [sys.executable, "-m", "thrifty"]
    subprocess.run([*thrifty, "down"], env=environment, check=False, capture_output=True)

    def up() -> subprocess.Popen[bytes]:
        with (home / "up.out").open("ab") as output:
            return subprocess.Popen(
                [*thrifty, "up", str(spec), "--no-measure"], env=environment, stdout=output, stderr=output
            )  # fmt: skip

    controller = up()

    def ask(method: str, path: str, **fields: Any) -> requests.Response:
        nonlocal controller
        while True:
            if controller.poll() is not None:
                # Its gateway was killed while it started, which it takes for a reason to end.
                controller = up()
            try:
                reply = requests.request(method, url + path, timeout=30, **fields)
                if reply.status_code == 200:
                    return reply
            except requests.RequestException:
                pass
            time.sleep(0.1)

    killed: Counter[str] = Counter()
    try:
        ask("GET", "/readyz")
        count = 130 * kills
        batch = Batch(url, "echo", 1, count)
        while sum(killed.values()) < kills:
            time.sleep(rng.uniform(0.3, 1.5))
            role = rng.choice(("gateway", "replica", "controller"))
            if role == "controller":
                if controller.poll() is None:
                    controller.kill()
                    controller.wait()
                    killed[role] += 1
            elif found := [ident for ident, r, _ in find_ours(home) if r == role]:
                try:
                    os.kill(rng.choice(found).pid, signal.SIGKILL)
                    killed[role] += 1
                except ProcessLookupError:
                    continue
            if controller.poll() is not None:
                controller = up()
        done = ask("GET", f"/v1/batches/{batch.id}").json()
        say(f"{dict(killed)} killed, {done['request_counts']}")
        while (done := ask("GET", f"/v1/batches/{batch.id}").json())["status"] != "completed":
            time.sleep(0.2)
        found_lines: Counter[str] = Counter()
        for file_id in (done["output_file_id"], done["error_file_id"]):
            if file_id is not None:
                content = ask("GET", f"/v1/files/{file_id}/content").content
                found_lines.update(json.loads(line)["custom_id"] for line in content.splitlines())
        return {
            "kills": kills,
            "lines": count,
            "lost": sum(1 for i in range(count) if not found_lines[str(i)]),
            "doubled": sum(1 for times in found_lines.values() if times > 1),
            "failed": done["request_counts"]["failed"],
            **{f"killed_{role}": times for role, times in killed.items()},
        }
    finally:
        if controller.poll() is None:
            controller.send_signal(signal.SIGINT)
            controller.wait(60)
        subprocess.run([*thrifty, "down"], env=environment, check=False, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="How often each has its turn.")
    parser.add_argument("--seconds", type=float, default=30.0, help="How long each turn lasts.")
    parser.add_argument("--engines", default="echo,real", help="echo, real or both.")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs under a batch; 0: none.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    table = [("figure", "alone", "with a batch", "ratio")]
    record: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds, "engines": {}}
    figures = []
    for name in filter(None, options.engines.split(",")):
        say(f"{name}: without, with and under a batch")
        results = measure_engine(name, options.rounds, options.seconds)
        pairs = list(zip(results["with"], results["alone"], strict=True))
        ttft = [a["ttft_p95_ms"] / b["ttft_p95_ms"] for a, b in pairs]
        used = [
            beside["batch_tokens_per_s"] / max(1e-9, alone["batch_tokens_per_s"] - beside["tokens_per_s"])
            for beside, alone in zip(results["with"], results["batch"], strict=True)
        ]  # fmt: skip
        record["engines"][name] = {
            "spec": SPECS[name], "rate": RATES[name], "results": results,
            "ttft_p95_ratio": spread(ttft), "idle_used": spread(used),
        }  # fmt: skip
        table += [
            (f"{name}: interactive TTFT p95, ms",
             show_spread([r["ttft_p95_ms"] for r in results["alone"]], "{:.0f}"),
             show_spread([r["ttft_p95_ms"] for r in results["with"]], "{:.0f}"), show_spread(ttft)),
            (f"{name}: interactive tokens/s",
             show_spread([r["tokens_per_s"] for r in results["alone"]], "{:.0f}"),
             show_spread([r["tokens_per_s"] for r in results["with"]], "{:.0f}"), ""),
            (f"{name}: the batch's tokens/s",
             show_spread([r["batch_tokens_per_s"] for r in results["batch"]], "{:.0f}"),
             show_spread([r["batch_tokens_per_s"] for r in results["with"]], "{:.0f}"),
             f"{show_spread(used)} of what is left"),
        ]  # fmt: skip
        figures += [
            figure(f"interactive TTFT p95 with a batch running over without ({name})", ttft, "<= 1.15 x",
                   median(ttft) <= 1.15),
            figure(f"idle capacity that the batch used ({name})", used, ">= 0.90 x", median(used) >= 0.9),
        ]  # fmt: skip
    if options.kills:
        say(f"{options.kills} SIGKILLs")
        record["kills"] = kills = measure_kills(options.kills)
        wrong = kills["lost"] + kills["doubled"]
        table.append(
            (
                f"lines lost or doubled over {options.kills} SIGKILLs",
                "",
                f"{wrong} of {kills['lines']}",
                "",
            )
        )
        shown = f"{wrong} of {kills['lines']}"
        what = f"lines of a batch lost or doubled over {options.kills} random SIGKILLs"
        figures.append({"figure": what, "measured": shown, "bar": "0", "met": wrong == 0})
    finish("batches", record, table, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
