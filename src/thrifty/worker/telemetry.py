"""A gateway worker's line to the recorder: request log, and traces and metrics for a collector."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from prometheus_client.metrics_core import Metric

from thrifty.observe.metrics import GatewayMetrics
from thrifty.observe.recorder.line import Connect, RecorderLine
from thrifty.observe.settings import OtlpSettings
from thrifty.observe.trace import Tracer
from thrifty.unix_sockets import connect_to
from thrifty.worker.settings import GatewaySettings

log = logging.getLogger(__name__)

Collect = Callable[[], Awaitable[list[Metric]]]


async def open_line(
    stack: contextlib.AsyncExitStack,
    settings: GatewaySettings,
    name: str,
    database_url: str,
    secret: bytes,
    metrics: GatewayMetrics,
) -> RecorderLine | None:
    """Open the line of the worker `name` to the recorder, if there is anything to record. Where the
    settings name no recorder, one runs within this process.
    """
    if not settings.needs_recorder:
        return None
    connect: Connect = functools.partial(connect_to, Path(settings.recorder_path))
    if not settings.recorder_path:
        # Imported only here: workers of a service have theirs in another process.
        from thrifty.observe.recorder.recorder import Recorder

        recorder = Recorder(settings, database_url, secret)
        await recorder.start()
        stack.push_async_callback(recorder.stop)
        connect = recorder.connect
    line = RecorderLine(connect, name, metrics)
    if settings.record_requests:
        metrics.watch_log(lambda: line.state)
    line.start()
    stack.push_async_callback(line.stop)
    return line


def make_tracer(settings: OtlpSettings | None, line: RecorderLine | None) -> Tracer | None:
    """What begins traces and hands them over; None where none are sent."""
    if settings is None or line is None or not settings.traces:
        return None
    return Tracer(settings.sample, settings.slow_s, line.put_trace)


def send_metrics(
    stack: contextlib.AsyncExitStack,
    settings: OtlpSettings | None,
    collect: Collect,
    line: RecorderLine,
) -> None:
    """Hand over what `collect` gives now and then until the worker ends, if it is sent anywhere."""
    if settings is None or not settings.metrics:
        return
    interval_s = settings.interval_s

    async def send() -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                line.put_metrics(await collect())
            except Exception:
                log.exception("the metrics cannot be collected")

    stack.callback(asyncio.ensure_future(send()).cancel)
