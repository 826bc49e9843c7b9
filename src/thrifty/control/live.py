"""How a service does right now: figures of the last seconds by deployment, version and replica.

They come from the request log and the tables of the fleet, so they need no key, and hold for all
gateway workers together. Requests count when they end; the log has them within a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.control.service_status import read_status
from thrifty.db import Database
from thrifty.db.fleet import read_fleet
from thrifty.db.live import MAX_ROWS, RecentRequest, read_recent, read_waiting

LOOK_BACK_S = 300.0
"""A request that took longer is not in the figures."""


def read_live(
    database: Database, window_s: float, *, clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """The figures of the last `window_s` seconds, as `thrifty top --json` prints them. Raises
    `DatabaseError`.
    """
    now_s = clock()
    recent = read_recent(database, now_s - window_s - LOOK_BACK_S)
    ended = [one for one in recent if now_s - window_s <= one.at_s + one.e2e_ms / 1e3 <= now_s + 1]
    if len(recent) == MAX_ROWS:
        # What is older than the oldest row is not known.
        window_s = max(1.0, min(window_s, now_s - recent[-1].at_s))
    waiting = read_waiting(database)
    loads = {row.id: row for row in read_fleet(database).replicas}
    deployments = []
    for status in read_status(database):
        name = status["name"]
        mine = [one for one in ended if one.deployment == name]
        versions = []
        for version in status["versions"]:
            label = version["label"]
            own = [one for one in mine if one.version == label]
            queues: Mapping[str, int] = waiting.get((name, label), {})
            versions.append(
                {
                    "label": label, "share": version["share"], "state": version["state"],
                    "ready": version["ready"], "wanted": version["wanted"],
                    "queued": queues.get("queued", 0), "held": queues.get("held", 0),
                    "in_flight": queues.get("in_flight", 0),
                    **compute_figures(own, window_s),
                    "replicas": [
                        _describe_replica(replica, loads.get(replica["id"]), own, window_s)
                        for replica in status["replicas"]
                        if replica["version"] == label
                    ],
                }
            )  # fmt: skip
        deployments.append({"name": name, **compute_figures(mine, window_s), "versions": versions})
    return {
        "at_s": now_s, "window_s": window_s, "deployments": deployments,
        "unrouted": compute_figures([one for one in ended if one.deployment is None], window_s),
    }  # fmt: skip


def compute_figures(rows: Sequence[RecentRequest], window_s: float) -> dict[str, Any]:
    """Rates over `window_s`, and quantiles in seconds; None where nothing was measured."""
    # Answers of the exact cache took an engine nothing.
    made = [one for one in rows if one.cache != "hit"]
    ttft = sorted(
        one.ttft_ms / 1e3 for one in made if one.stream and one.ttft_ms and one.status == 200
    )
    tpot = sorted(one.tpot_ms / 1e3 for one in made if one.tpot_ms is not None)
    results = [one.cache for one in rows]
    asked = results.count("hit") + results.count("miss")
    prompts = sum(one.prompt_tokens or 0 for one in made)
    return {
        "requests_per_s": len(rows) / window_s,
        "errors_per_s": sum(_failed(one) for one in rows) / window_s,
        "refused_per_s": sum(400 <= one.status < 499 for one in rows) / window_s,
        "ttft_p50_s": find_quantile(ttft, 0.5),
        "ttft_p95_s": find_quantile(ttft, 0.95),
        "tpot_p50_s": find_quantile(tpot, 0.5),
        "tokens_per_s": sum(one.completion_tokens or 0 for one in made) / window_s,
        "prompt_tokens_per_s": prompts / window_s,
        "cache_hit_ratio": results.count("hit") / asked if asked else None,
        "prefix_hit_ratio": (
            sum(one.cached_tokens or 0 for one in made) / prompts if prompts else None
        ),
    }


def find_quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile of sorted values; None of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else None


def _failed(one: RecentRequest) -> bool:
    return one.status >= 500 or (one.error is not None and one.status < 400)


def _describe_replica(
    replica: dict[str, Any], row: Any, rows: Sequence[RecentRequest], window_s: float
) -> dict[str, Any]:
    load = (row.load or {}) if row is not None else {}
    return {
        "id": replica["id"], "state": replica["state"], "restarts": replica["restarts"],
        "memory_bytes": replica["memory_bytes"], "running": load.get("running"),
        "waiting": load.get("waiting"), "kv_usage": load.get("kv_usage"),
        **compute_figures([one for one in rows if one.replica == replica["id"]], window_s),
    }  # fmt: skip
