"""Prometheus rules for a service: recorded ratios, and alerts with multi-window burn rates.

They see what `/metrics` shows, so they hold without Thrifty's own alerts, which read the request
log and are in the spec (`alerts`). Both use the windows and rates of `observe/burn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.observe.burn import BURNS, LATENCY_OBJECTIVE, WINDOWS_S, Burn, write_window

BY = "by (deployment, version)"
RUNBOOK_URL = "docs/runbooks.md"
"""The page with a section for each alert, in Thrifty's repository and sdist."""
_RATIOS = {
    "errors": "thrifty_failed_requests_total",
    "slow": "thrifty_slow_requests_total",
}


def make_rules(availability: float, minimum: int) -> dict[str, Any]:
    """The file of rules. `availability` is the share of requests that must not fail, `minimum` how
    many a long window must have.
    """
    objectives = {"errors": availability, "slow": LATENCY_OBJECTIVE}
    return {
        "groups": [
            {"name": "thrifty-ratios", "rules": _make_records()},
            {
                "name": "thrifty-objectives",
                "rules": [
                    _make_burn_alert(name, objective, burn, minimum)
                    for name, objective in objectives.items()
                    for burn in BURNS
                ],
            },
            {"name": "thrifty-service", "rules": [_make_alert(*one) for one in _SERVICE]},
        ]
    }


def _make_records() -> list[Mapping[str, str]]:
    records: list[Mapping[str, str]] = []
    for seconds in WINDOWS_S:
        window = write_window(seconds)
        judged = f"sum {BY} (increase(thrifty_judged_requests_total[{window}]))"
        records.append({"record": f"thrifty:judged_requests:increase{window}", "expr": judged})
        for name, metric in _RATIOS.items():
            ratio = f"sum {BY} (increase({metric}[{window}])) / ({judged} > 0)"
            records.append({"record": f"thrifty:{name}:ratio{window}", "expr": ratio})
    return records


def _make_burn_alert(name: str, objective: float, burn: Burn, minimum: int) -> dict[str, Any]:
    budget = f"{burn.rate:g} * {1 - objective:.6g}"
    long, short = write_window(burn.long_s), write_window(burn.short_s)
    what = "fail" if name == "errors" else "miss the latencies of slo"
    return {
        "alert": "ThriftyErrors" if name == "errors" else "ThriftySlow",
        "expr": (
            f"thrifty:{name}:ratio{long} > {budget} and thrifty:{name}:ratio{short} > {budget} "
            f"and thrifty:judged_requests:increase{long} >= {minimum}"
        ),
        "labels": {"severity": burn.severity, "window": long},
        "annotations": {
            "summary": "{{ $labels.deployment }} {{ $labels.version }}: "
            f"{{{{ $value | humanizePercentage }}}} of the requests of {long} {what}",
            "description": f"The budget of {objective:.4g} is spent {burn.rate:g} times too fast.",
            "runbook": f"{RUNBOOK_URL}#{'errors' if name == 'errors' else 'slow'}-burn",
        },
    }


def _make_alert(
    name: str, expr: str, wait: str, severity: str, summary: str, runbook: str
) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "runbook": f"{RUNBOOK_URL}#{runbook}"},
    }


_LACK = "queue_full|queue_timeout|no_replica_ready|cannot_start"
_SERVICE = (
    (
        "ThriftyCrashLoop",
        'max by (deployment, version, replica) (thrifty_replica_state{state="crash_loop"}) > 0',
        "1m", "page", "{{ $labels.replica }} ends again and again",
        "a-replica-is-in-a-crash-loop",
    ),
    (
        "ThriftyNothingReady",
        "sum by (deployment) (thrifty_held_requests) > 0 unless "
        "sum by (deployment) (thrifty_replica_up) > 0",
        "2m", "page", "requests wait for {{ $labels.deployment }}, and no replica is ready",
        "nothing-is-ready",
    ),
    (
        "ThriftyTooSmall",
        f'sum by (deployment) (rate(thrifty_rejections_total{{reason=~"{_LACK}"}}[5m])) > 0',
        "10m", "ticket", "{{ $labels.deployment }} refuses requests for want of replicas",
        "clients-get-503-queue_full-or-queue_timeout",
    ),
    (
        "ThriftyLogStopped", "min(thrifty_log_up) == 0", "5m", "ticket",
        "the request log cannot be written", "the-request-log-has-stopped",
    ),
    (
        "ThriftyDatabaseAway", "min(thrifty_database_up) == 0", "5m", "page",
        "the database does not answer", "the-database-is-away",
    ),
    (
        "ThriftyCollectorAway", "min(thrifty_collector_up) == 0", "10m", "ticket",
        "the OTLP collector takes nothing", "the-collector-is-away",
    ),
)  # fmt: skip
