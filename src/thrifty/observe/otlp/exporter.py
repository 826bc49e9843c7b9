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
from collections import Counter, deque
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

from thrifty.observe.otlp.points import make_points
from thrifty.observe.otlp.spans import make_resource, make_spans
from thrifty.observe.recorder.messages import Family
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


class Sender:
    """A process whose telemetry is sent, and what became of its traces, in totals."""

    def __init__(self, instance: str, began_s: float) -> None:
        """`instance` names it. Its counts began at `began_s`, in seconds since 1970."""
        self.resource: Resource = make_resource(instance)
        self.began_s = began_s
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        """By reason."""


class _Refused(Exception):
    """The collector will not take a batch, now or later."""


class _Away(Exception):
    """A batch was not taken, and may be later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class Exporter:
    """`start` it, `put` from the event loop, `stop` it to send what is left. `on_change` is called
    where the counts of a sender or `up` have changed, on any thread.
    """

    def __init__(
        self,
        settings: OtlpSettings,
        *,
        on_change: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.up: bool | None = None
        """Whether the collector takes what it is sent; None where nothing was sent yet."""
        self._endpoint = settings.endpoint.rstrip("/")
        self._headers = {
            **read_headers(environment.get(settings.headers_env or "", "")),
            "content-type": "application/x-protobuf",
        }
        self._on_change = on_change
        self._queue: deque[tuple[Ended, Sender]] = deque()
        self._families: dict[Sender, tuple[Iterable[Family], float]] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def put(self, ended: Ended, sender: Sender) -> None:
        """Queue the trace of a request; never waits. A full queue drops it."""
        waiting = len(self._queue)
        if waiting >= QUEUE_TRACES or (waiting >= QUEUE_TRACES // 2 and not ended.notable):
            sender.dropped["queue_full"] += 1
            self._on_change()
            return
        self._queue.append((ended, sender))
        if waiting + 1 == BATCH_TRACES:
            self._wake.set()

    def put_metrics(self, families: Iterable[Family], at_s: float, sender: Sender) -> None:
        """Have the totals of `at_s` sent, in place of older ones that still wait."""
        self._families[sender] = families, at_s
        self._wake.set()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Send what is left, for at most `timeout_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        for _, sender in self._queue:
            sender.dropped["stopped"] += 1

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
                if self._stopping.is_set() and not self._queue and not self._families:
                    return

    def _send_traces(self, session: requests.Session) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(BATCH_TRACES, len(self._queue)))]
            by_sender: dict[Sender, list[Ended]] = {}
            for ended, sender in batch:
                by_sender.setdefault(sender, []).append(ended)
            reason = ""
            try:
                message = ExportTraceServiceRequest(
                    resource_spans=[make_spans(of, one.resource) for one, of in by_sender.items()]
                )
                body = message.SerializeToString()
                answer = self._send(session, TRACES_PATH, body, RETRY_S)
                _warn_of_rejected(ExportTraceServiceResponse, answer)
            except Exception as error:
                reason = _name_reason(error)
                if not isinstance(error, _Refused | _Away):
                    raise
            finally:
                for sender, of in by_sender.items():
                    if reason:
                        sender.dropped[reason] += len(of)
                    else:
                        sender.sent += len(of)
                self._on_change()

    def _send_metrics(self, session: requests.Session) -> None:
        while self._families:
            sender, (families, at_s) = self._families.popitem()
            points = make_points(families, sender.resource, sender.began_s, at_s)
            message = ExportMetricsServiceRequest(resource_metrics=[points]).SerializeToString()
            try:
                answer = self._send(session, METRICS_PATH, message)
            except (_Refused, _Away):
                continue  # the next totals hold these
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
        if up == self.up:
            return
        if not up:
            log.warning("the collector %s takes nothing: %s", self._endpoint, fault)
        elif self.up is False:
            log.info("the collector %s takes telemetry again", self._endpoint)
        self.up = up
        self._on_change()


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
