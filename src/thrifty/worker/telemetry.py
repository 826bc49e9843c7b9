"""A gateway worker's traces and metrics for a collector, where the spec names one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric

from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.settings import OtlpSettings
from thrifty.observe.trace import Tracer

if TYPE_CHECKING:
    from thrifty.observe.otlp.exporter import Exporter

log = logging.getLogger(__name__)

Collect = Callable[[], Awaitable[list[Metric]]]


class Telemetry:
    """`start` it on the event loop, and `stop` it there."""

    tracer: Tracer | None = None
    """None where no traces are sent."""

    def __init__(self, settings: OtlpSettings | None, worker: str, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._exporter: Exporter | None = None
        self._task: asyncio.Task[None] | None = None
        if settings is None:
            return
        # Imported only here: the messages of OTLP are an extra.
        from thrifty.observe.otlp.exporter import Exporter

        self._exporter = Exporter(
            settings, worker,
            on_sent=metrics.traces_sent.inc,
            on_dropped=lambda reason, count: metrics.traces_dropped.labels(reason).inc(count),
            on_state=lambda up: metrics.collector_up.labels("otlp").set(1 if up else 0),
        )  # fmt: skip
        if settings.traces:
            self.tracer = Tracer(settings.sample, settings.slow_s, self._exporter.put)

    def start(self, collect: Collect) -> None:
        """Send what is queued, and what `collect` gives every so often."""
        if self._exporter is None or self._settings is None:
            return
        self._exporter.start()
        if self._settings.metrics:
            send = _send_metrics(collect, self._exporter, self._settings.interval_s)
            self._task = asyncio.ensure_future(send)

    def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        if self._task is not None:
            self._task.cancel()
        if self._exporter is not None:
            self._exporter.stop()


async def _send_metrics(collect: Collect, exporter: Exporter, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            exporter.put_metrics(await collect())
        except Exception:
            log.exception("the metrics cannot be collected")
