"""Alarms: replicas with an unfair share of requests, and engines that stop reporting."""

from __future__ import annotations

import logging

from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.observe.metrics import GatewayMetrics

log = logging.getLogger(__name__)

REPORTED_BEFORE = 50
SILENT_SINCE = 200
"""An engine that reported cached tokens this often, and then not for this many answers, has stopped
reporting them: routing then relies on the gateway's own prefix index."""


def raise_alarms(table: RoutingTable, metrics: GatewayMetrics) -> None:
    """Check the routing of every version; log and count problems. Called periodically."""
    for version in table.versions():
        _watch_shares(version, metrics)
        _watch_signals(version, metrics)


def _watch_shares(version: Version, metrics: GatewayMetrics) -> None:
    for alarm in version.router.shares.take_alarms() or ():
        metrics.share_alarms.labels(version.deployment, alarm.replica).inc()
        log.warning(
            "%s: replica %s received %.0f %% of the requests under load; its fair share is %.0f %%",
            version.concurrency.name, alarm.replica, 100 * alarm.share, 100 * alarm.due,
        )  # fmt: skip


def _watch_signals(version: Version, metrics: GatewayMetrics) -> None:
    router = version.router
    lost = router.reported >= REPORTED_BEFORE and router.silent >= SILENT_SINCE
    if lost and not router.signals_lost:
        log.warning(
            "%s: its replicas no longer report cached prompt tokens; routing continues with the "
            "gateway's own prefix index", version.concurrency.name,
        )  # fmt: skip
    elif router.signals_lost and not lost:
        log.info("%s: its replicas report cached tokens again", version.concurrency.name)
    router.signals_lost = lost
    metrics.signals_lost.labels(version.deployment, version.label).set(int(lost))
