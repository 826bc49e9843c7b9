"""Sends traces and metrics to a collector: a bounded queue and one thread.

The request path appends and never waits. A collector that is away, slow or refuses costs telemetry
and nothing else: a batch is tried again for `RETRY_S`, the queue fills meanwhile, and what does not
fit is dropped and counted by its reason. From half full on, only traces of requests that failed or
were slow are taken. Of metrics the newest totals are kept, which hold all that came before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import requests
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client.metrics_core import Metric as Family

from thrifty.observe.otlp.points import make_points
from thrifty.observe.otlp.spans import make_resource, make_spans
from thrifty.observe.settings import OtlpSettings
from thrifty.observe.trace import Ended
from thrifty.untrusted_text import sanitize_line

log = logging.getLogger(__name__)

QUEUE_TRACES = 2048
BATCH_TRACES = 256
INTERVAL_S = 1.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.0, 10.0
RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts at one batch. After the last one the batch is dropped."""
MAX_PAUSE_S = 30.0
"""The longest `Retry-After` that is obeyed."""
RETRIABLE = frozenset({408, 429, 502, 503, 504})
MAX_ANSWER_BYTES = 65_536
TRACES_PATH, METRICS_PATH = "/v1/traces", "/v1/metrics"

OnSent = Callable[[int], None]
OnDropped = Callable[[str, int], None]


class _Refused(Exception):
    """The collector will not take a batch, now or later."""


class _Away(Exception):
    """A batch was not taken, and may be later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class Exporter:
    """`start` it, `put` from the event loop, `stop` it to send what is left."""

    def __init__(
        self,
        settings: OtlpSettings,
        instance: str,
        *,
        on_sent: OnSent = lambda count: None,
        on_dropped: OnDropped = lambda reason, count: None,
        on_state: Callable[[bool], None] = lambda up: None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`instance` names this process. `on_sent` counts traces that a collector took,
        `on_dropped` those that are lost, with the reason. `on_state` is told whether the collector
        takes what it is sent. They are called on any thread.
        """
        self._endpoint = settings.endpoint.rstrip("/")
        self._headers = {
            **read_headers(environment.get(settings.headers_env or "", "")),
            "content-type": "application/x-protobuf",
        }
        self._resource: Resource = make_resource(instance)
        self._on_sent, self._on_dropped, self._on_state = on_sent, on_dropped, on_state
        self._began_s = time.time()
        self._queue: deque[Ended] = deque()
        self._families: tuple[list[Family], float] | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._up: bool | None = None
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def put(self, ended: Ended) -> None:
        """Queue the trace of a request; never waits. A full queue drops it."""
        waiting = len(self._queue)
        if waiting >= QUEUE_TRACES or (waiting >= QUEUE_TRACES // 2 and not ended.notable):
            self._on_dropped("queue_full", 1)
            return
        self._queue.append(ended)
        if waiting + 1 == BATCH_TRACES:
            self._wake.set()

    def put_metrics(self, families: Iterable[Family]) -> None:
        """Have the totals of now sent, in place of older ones that still wait."""
        self._families = list(families), time.time()
        self._wake.set()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Send what is left, for at most `timeout_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        left = len(self._queue)
        if left:
            self._on_dropped("stopped", left)

    def _run(self) -> None:
        with requests.Session() as session:
            session.headers.update(self._headers)
            while True:
                self._wake.wait(INTERVAL_S)
                self._wake.clear()
                try:
                    self._send_traces(session)
                    self._send_metrics(session)
                except Exception:
                    # A fault of ours in one batch must not end all later ones.
                    log.exception("telemetry cannot be exported")
                if self._stopping.is_set() and not self._queue and self._families is None:
                    return

    def _send_traces(self, session: requests.Session) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH_TRACES, len(self._queue)))]
            try:
                message = ExportTraceServiceRequest(
                    resource_spans=[make_spans(batch, self._resource)]
                )
                body = message.SerializeToString()
                answer = self._send(session, TRACES_PATH, body, RETRY_S)
            except Exception as error:
                self._on_dropped(_name_reason(error), len(batch))
                if not isinstance(error, _Refused | _Away):
                    raise
                continue
            self._on_sent(len(batch))
            _warn_of_rejected(ExportTraceServiceResponse, answer)

    def _send_metrics(self, session: requests.Session) -> None:
        if self._families is None:
            return
        (families, at_s), self._families = self._families, None
        points = make_points(families, self._resource, self._began_s, at_s)
        message = ExportMetricsServiceRequest(resource_metrics=[points]).SerializeToString()
        try:
            answer = self._send(session, METRICS_PATH, message)
        except (_Refused, _Away):
            return  # the next totals hold these
        _warn_of_rejected(ExportMetricsServiceResponse, answer)

    def _send(
        self, session: requests.Session, path: str, body: bytes, pauses_s: Sequence[float] = ()
    ) -> bytes:
        """Send one message, again after each pause; returns the answer's body. Raises `_Refused` or
        `_Away`.
        """
        left = list(pauses_s)
        while True:
            try:
                answer = self._post(session, path, body)
            except _Away as error:
                self._note(str(error))
                if not left or self._stopping.is_set():
                    raise
                pause_s = left.pop(0)
                pause_s = error.pause_s if error.pause_s is not None else pause_s
                self._stopping.wait(min(MAX_PAUSE_S, pause_s))
            except _Refused as error:
                self._note(str(error))
                raise
            else:
                self._note(None)
                return answer

    def _post(self, session: requests.Session, path: str, body: bytes) -> bytes:
        timeout_s = (1.0, 2.0) if self._stopping.is_set() else (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        try:
            with session.post(
                f"{self._endpoint}{path}", data=body, timeout=timeout_s, allow_redirects=False,
                stream=True,
            ) as answer:  # fmt: skip
                content = answer.raw.read(MAX_ANSWER_BYTES)
        except (requests.RequestException, OSError) as error:
            raise _Away(type(error).__name__) from error
        if 200 <= answer.status_code < 300:
            return bytes(content)
        reason = f"status {answer.status_code}"
        if answer.status_code in RETRIABLE:
            raise _Away(reason, _read_pause(answer.headers.get("retry-after")))
        raise _Refused(f"{reason} {sanitize_line(content.decode('latin-1'), 200)}")

    def _note(self, fault: str | None) -> None:
        """Note whether the collector takes what it is sent; a change is logged."""
        up = fault is None
        if up == self._up:
            return
        if not up:
            log.warning("the collector %s takes nothing: %s", self._endpoint, fault)
        elif self._up is False:
            log.info("the collector %s takes telemetry again", self._endpoint)
        self._up = up
        self._on_state(up)


def read_headers(text: str) -> dict[str, str]:
    """Headers as OpenTelemetry's variables have them: `name=value,other=value`, percent-encoded."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): unquote(value.strip()) for name, sign, value in pairs if sign}


def _warn_of_rejected(kind: type[Message], answer: bytes) -> None:
    try:
        partial: Any = kind.FromString(answer)
        partial = partial.partial_success
    except DecodeError:
        return  # some collectors answer with JSON
    if partial.ListFields():
        log.warning("the collector rejected a part: %s", sanitize_line(str(partial), 300))


def _name_reason(error: Exception) -> str:
    if isinstance(error, _Away):
        return "collector_away"
    return "collector_refused" if isinstance(error, _Refused) else "error"


def _read_pause(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None
