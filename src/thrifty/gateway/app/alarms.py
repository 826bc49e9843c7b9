"""What somebody should hear of: shares far from their due, and signals that stopped coming."""

from __future__ import annotations

import logging

from thrifty.gateway.state.table import RoutingTable
from thrifty.gateway.state.version import Version
from thrifty.observe.metrics import GatewayMetrics

log = logging.getLogger(__name__)

REPORTED_BEFORE = 50
SILENT_SINCE = 200
"""An engine that told of cached tokens so often, and then not for so many answers, has lost its
voice: routing goes on by its own memory alone."""


def raise_alarms(table: RoutingTable, metrics: GatewayMetrics) -> None:
    """Look at every version's routing; log and count what is wrong. Called now and then."""
    for version in table.versions():
        _watch_shares(version, metrics)
        _watch_signals(version, metrics)


def _watch_shares(version: Version, metrics: GatewayMetrics) -> None:
    for alarm in version.router.shares.take_alarms() or ():
        metrics.share_alarms.labels(version.deployment, alarm.replica).inc()
        log.warning(
            "%s: the replica %s got %.0f %% of the requests under load; its due was %.0f %%",
            version.concurrency.name, alarm.replica, 100 * alarm.share, 100 * alarm.due,
        )  # fmt: skip


def _watch_signals(version: Version, metrics: GatewayMetrics) -> None:
    router = version.router
    lost = router.reported >= REPORTED_BEFORE and router.silent >= SILENT_SINCE
    if lost and not router.signals_lost:
        log.warning(
            "%s: its replicas no longer say how many prompt tokens they found cached; routing goes "
            "by what it remembers", version.concurrency.name,
        )  # fmt: skip
    elif router.signals_lost and not lost:
        log.info("%s: its replicas tell of cached tokens again", version.concurrency.name)
    router.signals_lost = lost
    metrics.signals_lost.labels(version.deployment, version.label).set(int(lost))
