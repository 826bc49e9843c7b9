"""What all measurements share: peers in environments of their own, servers, records, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
WORK = Path(os.environ.get("THRIFTY_BENCH_HOME", Path.home() / ".cache" / "thrifty-bench"))
"""Peers' environments, models and homes. Nothing else is written."""


def parse_arguments(
    description: str, rounds: int, **others: tuple[type, Any, str]
) -> argparse.Namespace:
    """The options that every measurement has, and `others` by name: type, default and help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="How often each contender has its turn."
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="How long each turn lasts.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    for name, (kind, default, text) in others.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    return parser.parse_args()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"[{datetime.now().strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# Peers


def peer_environment(name: str, *requirements: str, without: Sequence[str] = ()) -> Path:
    """The Python of an environment with these packages, made once."""
    folder = WORK / "envs" / name
    python = folder / "bin" / "python"
    done = folder / ".done"
    wanted = "\n".join([*requirements, *(f"-{package}" for package in without)])
    if done.exists() and done.read_text() == wanted:
        return python
    say(f"installing {name}: {' '.join(requirements)}")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for requirement in requirements:
        subprocess.run([*pip, requirement], check=True, stdout=sys.stderr)
    for package in without:
        subprocess.run([str(python), "-m", "pip", "uninstall", "-y", "-q", package], check=True)
    done.write_text(wanted)
    return python


def version_of(python: Path, package: str) -> str:
    """The version of a package in a peer's environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {result.stdout.strip()}"


def need_tool(name: str, package: str) -> str:
    """The path of a program from Debian, installed if we may."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found:
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-q", package], check=True, stdout=sys.stderr)
        return need_tool(name, package)
    raise SystemExit(f"this needs {name}: apt-get install {package}")


# Servers


class Server:
    """A process that serves, which can be put to sleep while another has its turn."""

    def __init__(self, name: str, command: Sequence[str], **environment: str) -> None:
        self.name = name
        log = WORK / "logs" / f"{name.replace(' ', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._process = subprocess.Popen(
            list(command), env={**os.environ, **environment}, stdout=log.open("w"),
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, url: str, timeout_s: float = 600, data: bytes | None = None) -> float:
        """Seconds until `url` answers 200."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if self._process.poll() is not None:
                raise SystemExit(f"{self.name} ended: {self.log.read_text()[-2000:]}")
            request = urllib.request.Request(
                url, data=data, headers={"content-type": "application/json"}
            )
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(request, timeout=60).status == 200:
                    return time.monotonic() - began
            time.sleep(0.2)
        raise SystemExit(f"{self.name} was not ready in time: {self.log.read_text()[-2000:]}")

    def sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.wake()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            for process in [
                *psutil.Process(self.pid).children(recursive=True),
                psutil.Process(self.pid),
            ]:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)


class ThriftyService:
    """`thrifty up` in a home of its own. Its children run in sessions of their own."""

    variables: Mapping[str, str] = {}
    """What its environment has besides this one's."""

    def __init__(
        self, name: str, spec: dict[str, Any], home: Path | None = None, *, fresh: bool = False
    ) -> None:
        """`fresh` begins with an empty home."""
        self.name = name
        self.home = home or WORK / "homes" / name.replace(" ", "-")
        if fresh:
            shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True, exist_ok=True)
        path = self.home / f"{name.replace(' ', '-')}.yaml"
        path.write_text(json.dumps(spec))
        self.environment = {**os.environ, **self.variables, "THRIFTY_HOME": str(self.home)}
        self.run("down")
        self._output = self.home / "up.out"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", "up", str(path), "--no-measure"], env=self.environment,
            stdout=self._output.open("w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        began = time.monotonic()
        while "is served at" not in self._output.read_text():
            if self._process.poll() is not None or time.monotonic() - began > 600:
                raise SystemExit(f"{name}: {self._output.read_text()}")
            time.sleep(0.1)
        self.start_s = time.monotonic() - began
        self.url = self._output.read_text().split("is served at ")[1].split("/v1")[0]

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "thrifty", *arguments]

    def run(self, *arguments: str) -> str:
        return subprocess.run(
            self.command(*arguments), env=self.environment,
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip

    @property
    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json"))

    @property
    def replica_urls(self) -> list[str]:
        return [replica["url"] for replica in self.status["deployments"][0]["replicas"]]

    def processes(self) -> list[Any]:
        """Every process of the service."""
        import psutil

        from thrifty.fleet.process import find_ours

        roots = [psutil.Process(self._process.pid)]
        roots += [psutil.Process(ident.pid) for ident, _, _ in find_ours(self.home)]
        found = []
        for root in roots:
            found += [root, *root.children(recursive=True)]
        return found

    def gateway_pid(self) -> int:
        from thrifty.fleet.process import find_ours

        return next(ident.pid for ident, role, _ in find_ours(self.home) if role == "gateway")

    def sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.wake()
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def _signal(self, number: int) -> None:
        import psutil

        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


@contextlib.contextmanager
def nginx(answer: str, models: str = "smol") -> Iterator[str]:
    """A static OpenAI-style upstream: nginx, which costs next to nothing."""
    program = need_tool("nginx", "nginx-light")
    folder = WORK / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    listing = json.dumps(
        {
            "object": "list",
            "data": [{"id": models, "object": "model", "created": 1, "owned_by": "x"}],
        }
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 100000000; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; default_type application/json;\n"
        f"location = /v1/models {{ return 200 '{listing}'; }}\n"
        f"location = /v1/chat/completions {{ return 200 '{answer}'; }}\n"
        # A collector of OTLP that throws away what it gets.
        "location ~ ^/v1/(traces|metrics)$ { client_max_body_size 64m; return 200; }\n"
        "location / { return 200 '{}'; } } }\n"
    )
    server = Server("nginx", [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    try:
        server.wait_ready(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def free_port() -> int:
    from thrifty.fleet.ports import find_free_port

    return find_free_port()


def wrk(url: str, script: str, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second and latencies that wrk saw; fails where an answer was not a 200."""
    program = need_tool("wrk", "wrk")
    whole_s = max(1, round(seconds))  # wrk takes no fractions
    path = WORK / "wrk.lua"
    path.write_text(script + _WRK_REPORT)
    result = subprocess.run(
        [program, "-t1", f"-c{connections}", f"-d{whole_s}s", "--latency", "--timeout", "30s", "-s", str(path), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(result.stdout[result.stdout.index("REPORT ") + 7 :].splitlines()[0])
    if report["errors"]:
        raise SystemExit(f"{url}: {report['errors']} answers were errors\n{result.stdout}")
    return report


_WRK_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'REPORT {"requests": %d, "per_s": %f, "p50_us": %f, "p99_us": %f, "errors": %d}\\n',
    summary.requests, summary.requests / (summary.duration / 1e6), latency:percentile(50),
    latency:percentile(99), e.status + e.connect + e.read + e.write + e.timeout))
end
"""


# Traces

TRACES = {
    "conversation": "azure_conv_2023.csv.gz",
    "prefixes": "mooncake_conversation.jsonl.gz",
}
"""Recorded traffic by what it shows: an hour of chat, and an hour of chat with shared beginnings."""


def find_trace(kind: str) -> Path:
    """The recorded trace in the folder that `THRIFTY_TRACES` names, or a made-up one of its shape."""
    folder = os.environ.get("THRIFTY_TRACES")
    if folder:
        path = Path(folder) / TRACES[kind]
        if not path.exists():
            raise SystemExit(f"{path} is not there; unset THRIFTY_TRACES to use a made-up trace")
        return path
    say(f"THRIFTY_TRACES is not set: a made-up trace in place of {TRACES[kind]}")
    path = WORK / "traces" / f"{kind}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _make_conversations() if kind == "prefixes" else _make_chat()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _make_arrivals(rate: float, clump: float) -> Iterator[tuple[float, random.Random]]:
    """An hour of arrivals whose rate wanders, in clumps of `clump` on average."""
    rng = random.Random(18)
    at_s = 0.0
    while at_s < 3600:
        wave = 1 + 0.5 * math.sin(at_s / 400) + 0.3 * math.sin(at_s / 47)
        for _ in range(1 + int(rng.expovariate(1 / max(1e-9, clump - 1)))):
            yield at_s, rng
        at_s += rng.expovariate(rate / clump * wave)


def _make_chat() -> Iterator[dict[str, Any]]:
    for at_s, rng in _make_arrivals(5.4, 1.3):
        yield {"at_s": at_s, "prompt_tokens": 1 + int(rng.lognormvariate(6.7, 0.9)),
               "output_tokens": 1 + int(rng.lognormvariate(5.1, 0.8))}  # fmt: skip


def _make_conversations() -> Iterator[dict[str, Any]]:
    """Conversations that grow, all of which begin with the same 512 tokens."""
    fresh = iter(range(1, 10**9))
    going: list[list[int]] = []
    for at_s, rng in _make_arrivals(3.4, 2.0):
        if going and rng.random() < 0.6:
            blocks = going[int(len(going) * rng.random() ** 0.5)]
        else:
            blocks = [0]
            going = [*going[-300:], blocks]
        blocks += [next(fresh) for _ in range(1 + int(rng.lognormvariate(2.0, 1.0)))]
        yield {"timestamp": round(at_s * 1000), "input_length": 512 * len(blocks) + rng.randrange(512),
               "output_length": 1 + int(rng.lognormvariate(5.6, 0.7)),
               "hash_ids": [*blocks, next(fresh)]}  # fmt: skip


# Records


def describe_machine() -> dict[str, Any]:
    """What it ran on."""
    from thrifty.engines.machine import detect_machine

    machine = detect_machine()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "processor": machine.processor,
        "cores": machine.core_count,
        "features": sorted(machine.features),
        "memory_bytes": machine.memory_bytes,
        "python": platform.python_version(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 14: 2.145,
         19: 2.093, 24: 2.064, 29: 2.045}  # fmt: skip
"""Student's t for a two-sided interval of 95%, by degrees of freedom."""


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of ratios, and its 95% interval: Student's t on their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    degrees = len(logs) - 1
    t = T_975[max(known for known in T_975 if known <= degrees)]
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def ratio_figure(
    what: str,
    ratios: Sequence[float],
    bar: str,
    is_met: Callable[[float, float, float], bool],
    form: str = "{:.2f}",
) -> dict[str, Any]:
    """A figure that is a ratio: its geometric mean with its 95% interval. `is_met` gets the mean and
    the interval's ends.
    """  # fmt: skip
    mean, low, high = interval(ratios)
    shown = (
        f"{form.format(mean)} (95%: {form.format(low)} to {form.format(high)}) x, "
        f"{len(ratios)} rounds"
    )
    return {"figure": what, "measured": shown, "bar": bar, "met": bool(is_met(mean, low, high))}


def show_spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median and range, as text."""
    s = spread(values)
    return f"{form.format(s['median'])} ({form.format(s['min'])} to {form.format(s['max'])})"


def figure(
    what: str, values: Sequence[float], bar: str, met: bool, form: str = "{:.2f}"
) -> dict[str, Any]:
    """One figure as the README shows it: its median and spread, and the bar it is held to."""
    shown = f"{show_spread(values, form)} x" if len(values) > 1 else f"{form.format(values[0])} x"
    return {"figure": what, "measured": shown, "bar": bar, "met": bool(met)}


def finish(
    name: str,
    record: dict[str, Any],
    table: Sequence[Sequence[str]],
    figures: Sequence[dict[str, Any]],
    *,
    save: bool,
) -> None:
    """Print the table, and keep the record."""
    widths = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))]
    lines = [
        "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    text = "\n".join(lines)
    print(text)
    for entry in figures:
        verdict = "met" if entry["met"] else "MISSED"
        print(f"{entry['figure']}: {entry['measured']}, bar {entry['bar']}: {verdict}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        record = {"machine": describe_machine(), "figures": list(figures), **record}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text + "\n")


def in_turns(rounds: int, contenders: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Each contender's results, taken in turns, the order changing from round to round."""
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        for name in order:
            results[name].append(contenders[name]())
        say(f"round {number + 1} of {rounds} done")
    return results
