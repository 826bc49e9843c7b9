"""A Grafana dashboard for a service, by deployment and version, as JSON.

It needs a Prometheus that scrapes `/metrics`. Panels are data here: a title, a unit and queries.
The variables `deployment` and `version` choose; `$__rate_interval` is Grafana's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CHOSEN = '{deployment=~"$deployment",version=~"$version"}'
DEPLOYMENT = '{deployment=~"$deployment"}'
BY = "by (deployment, version)"
NAMED = "{{deployment}} {{version}}"
WIDTH, HEIGHT = 8, 8
COLUMNS = 3


class Query(NamedTuple):
    """A query in PromQL, and what its lines are called."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """A chart. `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: tuple[Query, ...]


def _rate(metric: str, by: str = BY, chosen: str = CHOSEN) -> str:
    return f"sum {by} (rate({metric}{chosen}[$__rate_interval]))"


def _quantile(share: float, metric: str) -> Query:
    rate = f"sum by (deployment, version, le) (rate({metric}_bucket{CHOSEN}[$__rate_interval]))"
    return Query(f"histogram_quantile({share:g}, {rate})", f"p{share * 100:g} {NAMED}")


def _latency(title: str, metric: str, *shares: float) -> Panel:
    return Panel(title, "s", tuple(_quantile(share, metric) for share in shares))


def _replicas(metric: str) -> str:
    """Of each replica once: all gateway workers show the same."""
    return f"max by (deployment, version, replica) ({metric}{CHOSEN})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Requests",
        (
            Panel("Requests", "reqps", (Query(_rate("thrifty_requests_total"), NAMED),)),
            Panel(
                "Goodput: answered without error and within slo",
                "percentunit",
                (
                    Query(
                        f"{_rate('thrifty_good_requests_total')} / "
                        f"({_rate('thrifty_judged_requests_total')} > 0)",
                        NAMED,
                    ),
                ),
            ),
            Panel(
                "Failed and slow",
                "reqps",
                (
                    Query(_rate("thrifty_failed_requests_total"), f"failed {NAMED}"),
                    Query(_rate("thrifty_slow_requests_total"), f"slow {NAMED}"),
                ),
            ),
            Panel(
                "Errors by kind",
                "reqps",
                (
                    Query(
                        _rate("thrifty_errors_total", "by (version, kind)"), "{{kind}} {{version}}"
                    ),
                ),
            ),
            Panel(
                "Not admitted, by reason",
                "reqps",
                (
                    Query(
                        _rate("thrifty_rejections_total", "by (deployment, reason)", DEPLOYMENT),
                        "{{reason}} {{deployment}}",
                    ),
                ),
            ),
            Panel(
                "Share of the traffic",
                "percentunit",
                (
                    Query(
                        f"max {BY} (thrifty_version_weight{CHOSEN}) / on (deployment) group_left "
                        "sum by (deployment) (max by (deployment, version) "
                        f"(thrifty_version_weight{DEPLOYMENT}))",
                        NAMED,
                    ),
                ),
            ),
        ),
    ),
    (
        "Latency",
        (
            _latency("Time to the first token", "thrifty_ttft_seconds", 0.5, 0.95, 0.99),
            _latency("Between tokens", "thrifty_inter_token_seconds", 0.5, 0.95, 0.99),
            _latency("Mean time of a token", "thrifty_tpot_seconds", 0.5, 0.95),
            _latency("Whole answer", "thrifty_e2e_seconds", 0.5, 0.95),
            _latency("In the queue", "thrifty_queue_seconds", 0.5, 0.95),
            _latency("The gateway itself", "thrifty_gateway_overhead_seconds", 0.5, 0.99),
        ),
    ),
    (
        "Tokens and caches",
        (
            Panel(
                "Tokens",
                "short",
                (
                    Query(_rate("thrifty_prompt_tokens_total"), f"in {NAMED}"),
                    Query(_rate("thrifty_completion_tokens_total"), f"out {NAMED}"),
                ),
            ),
            Panel(
                "Prompt tokens from prefix caches",
                "percentunit",
                (
                    Query(
                        f"{_rate('thrifty_cached_tokens_total')} / "
                        f"({_rate('thrifty_prompt_tokens_total')} > 0)",
                        NAMED,
                    ),
                ),
            ),
            Panel(
                "Exact cache: requests by result",
                "reqps",
                (
                    Query(
                        _rate("thrifty_cache_requests_total", "by (version, result)"),
                        "{{result}} {{version}}",
                    ),
                ),
            ),
            Panel(
                "Exact cache: hits by tier",
                "reqps",
                (
                    Query(
                        _rate("thrifty_cache_hits_total", "by (version, tier)"),
                        "{{tier}} {{version}}",
                    ),
                ),
            ),
            Panel(
                "Saved by the exact cache",
                "s",
                (Query(_rate("thrifty_cache_saved_seconds_total"), NAMED),),
            ),
            Panel(
                "Tenants with the most requests",
                "reqps",
                (
                    Query(
                        f"topk(10, {_rate('thrifty_tenant_requests_total', 'by (tenant)', DEPLOYMENT)})",
                        "{{tenant}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Replicas and queues",
        (
            Panel(
                "Replicas by state",
                "short",
                (
                    Query(
                        "sum by (deployment, version, state) (max by (deployment, version, "
                        f"replica, state) (thrifty_replica_state{CHOSEN}))",
                        "{{state}} {{version}}",
                    ),
                ),
            ),
            Panel(
                "Restarts in an hour",
                "short",
                (
                    Query(
                        "max by (deployment, version, replica) "
                        f"(increase(thrifty_replica_restarts_total{CHOSEN}[1h]))",
                        "{{replica}}",
                    ),
                ),
            ),
            Panel(
                "Waiting for a slot",
                "short",
                (
                    Query(
                        f"sum by (deployment, version, priority) (thrifty_queue_length{CHOSEN})",
                        "{{priority}} {{version}}",
                    ),
                    Query(f"sum {BY} (thrifty_held_requests{CHOSEN})", f"held {NAMED}"),
                ),
            ),
            Panel(
                "Slots taken",
                "percentunit",
                (
                    Query(
                        f"sum {BY} (thrifty_slots_taken{CHOSEN}) / "
                        f"(sum {BY} (thrifty_slots{CHOSEN}) > 0)",
                        NAMED,
                    ),
                ),
            ),
            Panel(
                "KV cache in use",
                "percentunit",
                (Query(_replicas("thrifty_engine_kv_usage"), "{{replica}}"),),
            ),
            Panel(
                "In engines",
                "short",
                (
                    Query(_replicas("thrifty_engine_running"), "running {{replica}}"),
                    Query(_replicas("thrifty_engine_waiting"), "waiting {{replica}}"),
                ),
            ),
            Panel(
                "Memory",
                "bytes",
                (Query(_replicas("thrifty_replica_memory_bytes"), "{{replica}}"),),
            ),
            Panel(
                "Autoscaler: wanted and ready",
                "short",
                (
                    Query(f"max {BY} (thrifty_replicas_wanted{CHOSEN})", f"wanted {NAMED}"),
                    Query(f"max {BY} (thrifty_replicas_ready{CHOSEN})", f"ready {NAMED}"),
                ),
            ),
            Panel(
                "Retries, and replicas that are ejected",
                "short",
                (
                    Query(
                        _rate("thrifty_retries_total", "by (deployment)", DEPLOYMENT),
                        "retries {{deployment}}",
                    ),
                    Query(f"sum {BY} (thrifty_replica_ejected{CHOSEN})", f"ejected {NAMED}"),
                ),
            ),
        ),
    ),
    (
        "Telemetry",
        (
            Panel(
                "Request log: rows written and waiting",
                "short",
                (
                    Query("sum(rate(thrifty_log_rows_written_total[$__rate_interval]))", "written"),
                    Query("sum(thrifty_log_rows_waiting)", "waiting"),
                ),
            ),
            Panel(
                "Database and request log up",
                "bool_on_off",
                (
                    Query("min(thrifty_database_up)", "database"),
                    Query("min(thrifty_log_up)", "request log"),
                ),
            ),
            Panel(
                "Traces",
                "short",
                (
                    Query("sum(rate(thrifty_traces_exported_total[$__rate_interval]))", "exported"),
                    Query(
                        "sum by (reason) (rate(thrifty_traces_dropped_total[$__rate_interval]))",
                        "dropped: {{reason}}",
                    ),
                ),
            ),
        ),
    ),
)


def make_dashboard() -> dict[str, Any]:
    """The dashboard, for Grafana 10 or newer."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(_make_row(len(panels) + 1, title, y))
        y += 1
        for index, panel in enumerate(row):
            place = {
                "x": index % COLUMNS * WIDTH, "y": y + index // COLUMNS * HEIGHT,
                "w": WIDTH, "h": HEIGHT,
            }  # fmt: skip
            panels.append(_make_panel(len(panels) + 1, panel, place))
        y += -(-len(row) // COLUMNS) * HEIGHT
    return {
        "uid": "thrifty",
        "title": "Thrifty",
        "tags": ["thrifty", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _make_variable("deployment", "label_values(thrifty_version_weight, deployment)"),
                _make_variable(
                    "version", f"label_values(thrifty_version_weight{DEPLOYMENT}, version)"
                ),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Versions change weight",
                    "datasource": _SOURCE,
                    "enable": True,
                    "expr": f"changes(thrifty_version_weight{CHOSEN}[1m]) > 0",
                    "titleFormat": NAMED,
                    "iconColor": "blue",
                }
            ]
        },
        "panels": panels,
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _make_row(number: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
    }  # fmt: skip


def _make_panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index), "datasource": _SOURCE,
                "expr": query.expr, "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }  # fmt: skip


def _make_variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
