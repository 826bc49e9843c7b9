"""What the gateway costs: latency and throughput against a static upstream, beside the field.

    python benchmarks/gateway_overhead.py

nginx answers every request at once, so that what is measured is the gateway alone. Thrifty runs
with keys, the exact cache's look-up, metrics and the request log on, one worker. smg (Rust) runs
with its defaults; LiteLLM's proxy with one worker. Each request asks something new, greedily, so
that Thrifty's cache is looked up and missed, except in the row of hits.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from statistics import median

from common import (
    WORK,
    Server,
    ThriftyService,
    figure,
    finish,
    free_port,
    in_turns,
    need_tool,
    nginx,
    parse_arguments,
    peer_environment,
    ratio_figure,
    say,
    show_spread,
    spread,
    version_of,
    wrk,
)

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "smol",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": "The capital of France is Paris."}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28},
    }
)  # fmt: skip

LITELLM_KEY = "sk-for-this-measurement"
"""It does not start without one any more."""

FRESH = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %(key)s"
math.randomseed(os.time() + %(salt)d)
local base, n = math.random(1, 1000000000), 0
request = function()
  n = n + 1
  return wrk.format(nil, "/v1/chat/completions", nil, '{"model":"smol","messages":[{"role":"system",' ..
    '"content":"You are a helpful assistant."},{"role":"user","content":"What is the capital of France? ' ..
    base .. '-' .. n .. '"}],"temperature":0,"max_tokens":64}')
end
"""
SAME = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %(key)s"
wrk.path = "/v1/chat/completions"
wrk.body = '{"model":"smol","messages":[{"role":"system","content":"You are a helpful assistant."},' ..
  '{"role":"user","content":"What is the capital of France?"}],"temperature":0,"max_tokens":64}'
"""


def start_smg(upstream: str) -> tuple[Server, str, str]:
    """smg in front of the upstream."""
    python = peer_environment("smg", "smg")
    port = free_port()
    server = Server(
        "smg",
        [str(python.parent / "smg"), "launch", "--worker-urls", upstream, "--host", "127.0.0.1",
         "--port", str(port), "--policy", "round_robin", "--prometheus-port", str(free_port())],
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    body = {"model": "smol", "messages": [{"role": "user", "content": "x"}]}
    server.wait_ready(f"{url}/v1/chat/completions", data=json.dumps(body).encode())
    return server, url, version_of(python, "smg")


def start_litellm(upstream: str) -> tuple[Server, str, str]:
    """LiteLLM's proxy in front of the upstream."""
    python = peer_environment("litellm", "litellm[proxy]")
    port = free_port()
    config = WORK / "litellm.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [{
                    "model_name": "smol",
                    "litellm_params": {"model": "openai/smol", "api_base": f"{upstream}/v1", "api_key": "x"},
                }],
                "litellm_settings": {"telemetry": False},
            }
        )
    )  # fmt: skip
    server = Server(
        "litellm",
        [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port",
         str(port), "--num_workers", "1"],
        LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_MASTER_KEY=LITELLM_KEY,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    server.wait_ready(f"{url}/health/liveliness")
    return server, url, version_of(python, "litellm")


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=12)
    nginx_version = subprocess.run(
        [need_tool("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=False
    ).stderr
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(nginx(ANSWER))
        service = ThriftyService(
            "gateway overhead",
            {"model": "smol", "engine": {"kind": "remote", "urls": [f"{upstream}/v1"]},
             "gateway": {"port": free_port()}},
        )  # fmt: skip
        stack.callback(service.stop)
        service.run("keys", "revoke", "bench")
        key = service.run("keys", "create", "--name", "bench").strip().splitlines()[-1]
        smg, smg_url, smg_version = start_smg(upstream)
        stack.callback(smg.stop)
        litellm, litellm_url, litellm_version = start_litellm(upstream)
        stack.callback(litellm.stop)
        servers = {"thrifty": service, "smg": smg, "litellm": litellm}
        urls = {"nginx": upstream, "thrifty": service.url, "smg": smg_url, "litellm": litellm_url}
        salt = 0

        def turn(name: str, connections: int, script: str = FRESH):  # type: ignore[no-untyped-def]
            def measure() -> dict[str, float]:
                nonlocal salt
                salt += 1
                for other, server in servers.items():
                    (server.wake if other == name else server.sleep)()
                sent = LITELLM_KEY if name == "litellm" else key
                text = script % {"key": sent, "salt": salt}
                wrk(urls[name], text, connections, 1)
                salt += 1
                text = script % {"key": sent, "salt": salt}
                return wrk(urls[name], text, connections, options.seconds)

            return measure

        say("one connection")
        one = in_turns(
            options.rounds, {n: turn(n, 1) for n in ("nginx", "thrifty", "smg", "litellm")}
        )
        say("64 connections")
        many = in_turns(options.rounds, {n: turn(n, 64) for n in ("thrifty", "smg", "litellm")})
        say("hits and misses")
        cache = in_turns(
            options.rounds, {"miss": turn("thrifty", 64), "hit": turn("thrifty", 64, SAME)}
        )

    overhead = {
        name: [a["p50_us"] - b["p50_us"] for a, b in zip(one[name], one["nginx"], strict=True)]
        for name in ("thrifty", "smg", "litellm")
    }
    over_smg = [a / b for a, b in zip(overhead["thrifty"], overhead["smg"], strict=True)]
    per_s = {name: [r["per_s"] for r in results] for name, results in many.items()}
    over_litellm = [a / b for a, b in zip(per_s["thrifty"], per_s["litellm"], strict=True)]
    hits = [a["per_s"] / b["per_s"] for a, b in zip(cache["hit"], cache["miss"], strict=True)]
    versions = {"smg": smg_version, "litellm": litellm_version, "nginx": nginx_version.strip()}
    finish(
        "gateway_overhead",
        {
            "versions": versions, "rounds": options.rounds, "seconds": options.seconds,
            "one_connection": one, "64_connections": many, "cache": cache,
            "overhead_us": {name: spread(values) for name, values in overhead.items()},
            "ratios": {"overhead_over_smg": spread(over_smg), "requests_over_litellm": spread(over_litellm),
                       "hits_over_misses": spread(hits)},
        },
        [
            ("figure", "thrifty", versions["smg"], versions["litellm"], "ratio"),
            ("overhead at the median, 1 connection, us", *(show_spread(overhead[n], "{:.0f}") for n in
             ("thrifty", "smg", "litellm")), f"{show_spread(over_smg)} of smg"),
            ("requests/s, 64 connections, one worker", *(show_spread(per_s[n], "{:.0f}") for n in
             ("thrifty", "smg", "litellm")), f"{show_spread(over_litellm, '{:.0f}')} x LiteLLM"),
            ("exact-cache hits/s, 64 connections", show_spread([r["per_s"] for r in cache["hit"]], "{:.0f}"),
             "", "", f"{show_spread(hits)} x misses"),
        ],
        [
            ratio_figure(
                f"gateway overhead at the median, 1 connection, over that of {versions['smg']}",
                over_smg, "<= 0.8 x", lambda mean, low, high: mean <= 0.8,
            ),
            ratio_figure(
                f"gateway requests/s, 64 connections, one worker, over {versions['litellm']}",
                over_litellm, ">= 60 x", lambda mean, low, high: mean >= 60, "{:.0f}",
            ),
            figure("exact-cache hits/s, one worker, over the same worker's misses", hits, ">= 2 x",
                   median(hits) >= 2),
        ],
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    assert Path(__file__).exists()
    main()
