"""The spans of a request that has ended, as OTLP messages.

    POST /v1/chat/completions      SERVER    from the first byte to the last
    ├── admit                      INTERNAL  key, form, version, limits, validity
    ├── cache                      INTERNAL  where the shared cache or a shared generation was asked
    ├── queue                      INTERNAL  where it waited for a slot or a replica
    ├── chat MODEL                 CLIENT    an attempt at a replica that failed
    └── chat MODEL                 CLIENT    the attempt that answered, with the event `first token`

Steps of microseconds are no spans. Times are the wall clock's at the beginning and differences of a
monotonic clock from there, so that a clock that is set makes no span run backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from thrifty.db.request_log import COLUMNS
from thrifty.observe.otlp import conventions as names
from thrifty.observe.trace import Attempt, Ended, make_span_id
from thrifty.version import __version__

SCOPE = InstrumentationScope(name="thrifty", version=__version__)
MAX_VALUE_CHARS = 256


def make_resource(instance: str) -> Resource:
    """Who sends."""
    return Resource(
        attributes=make_attributes(
            {
                names.SERVICE_NAME: "thrifty",
                names.SERVICE_VERSION: __version__,
                names.SERVICE_INSTANCE: instance,
            }
        )
    )


def make_spans(ended: Sequence[Ended], resource: Resource) -> ResourceSpans:
    """The spans of all these requests."""
    spans = [span for one in ended for span in make_request_spans(one)]
    return ResourceSpans(resource=resource, scope_spans=[ScopeSpans(scope=SCOPE, spans=spans)])


def make_request_spans(ended: Ended) -> list[Span]:
    """The spans of one request; the first is that of the whole."""
    return _SpanMaker(ended).make()


def make_attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    """Attributes, without those that are not known."""
    return [
        KeyValue(key=key, value=_make_value(value))
        for key, value in values.items()
        if value is not None and value != ""
    ]


def _make_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=str(value)[:MAX_VALUE_CHARS])


class _SpanMaker:
    def __init__(self, ended: Ended) -> None:
        self._ended = ended
        self._row = dict(zip(COLUMNS, ended.row, strict=True))
        self._trace_id = bytes.fromhex(ended.trace.trace_id)
        self._root_id = bytes.fromhex(make_span_id())
        # The row has the wall clock's time at which the call was made, right after its first byte.
        self._zero_ns = round(self._row["at_s"] * 1e9) - round(ended.received_s * 1e9)
        self._children = 0

    def make(self) -> list[Span]:
        ended, trace = self._ended, self._ended.trace
        spans = [self._make_root()]
        begun_s = min(
            [
                ended.ended_s,
                *(wait.began_s for wait in trace.waits),
                *(attempt.sent_s for attempt in trace.attempts),
            ]
        )
        spans.append(self._make("admit", ended.received_s, trace.admitted_s or begun_s))
        for wait in trace.waits:
            spans.append(self._make(wait.name, wait.began_s, wait.ended_s))
        for attempt in trace.attempts:
            spans.append(self._make_attempt(attempt, answered=attempt is trace.attempts[-1]))
        return spans

    def _make_root(self) -> Span:
        ended, row = self._ended, self._row
        status, error = row["status"], row["error"]
        attributes = {attribute: row[column] for column, attribute in names.REQUEST.items()}
        attributes |= {
            names.METHOD: "POST",
            names.ROUTE: row["endpoint"],
            names.STATUS: status,
            names.ERROR: error,
            names.RESPONSE_ID: ended.response_id,
            names.CACHE_TIER: ended.tier if row["cache"] == "hit" else None,
            **self._describe_operation(),
        }
        span = self._make(f"POST {row['endpoint']}", ended.received_s, ended.ended_s)
        span.span_id = self._root_id
        span.kind = Span.SPAN_KIND_SERVER
        parent = ended.trace.parent_id
        span.parent_span_id = bytes.fromhex(parent) if parent is not None else b""
        span.attributes.extend(make_attributes(attributes))
        if ended.trace.state:
            span.trace_state = ended.trace.state.decode("ascii")
        # A request that the client got wrong is no fault of the server's span.
        if status >= 500 or (error is not None and status < 400):
            span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=error or ""))
        return span

    def _make_attempt(self, attempt: Attempt, *, answered: bool) -> Span:
        ended, row = self._ended, self._row
        lost = answered and row["error"] is not None and not attempt.ended_s
        error = attempt.error or (row["error"] if lost else None)
        end_s = attempt.ended_s or (ended.last_byte_s if answered else 0.0) or ended.ended_s
        operation = names.OPERATIONS.get(row["endpoint"], "request")
        span = self._make(f"{operation} {row['deployment'] or ''}".rstrip(), attempt.sent_s, end_s)
        span.span_id = bytes.fromhex(attempt.span_id)
        span.kind = Span.SPAN_KIND_CLIENT
        values = {
            **self._describe_operation(),
            names.REQUEST["deployment"]: row["deployment"],
            names.REQUEST["version"]: attempt.version,
            names.REQUEST["replica"]: attempt.replica,
            names.ERROR: error,
        }
        if answered:
            for column in ("prompt_tokens", "completion_tokens", "cached_tokens"):
                values[names.REQUEST[column]] = row[column]
            if attempt.sent_s <= ended.first_byte_s <= end_s:
                at_ns = self._zero_ns + round(ended.first_byte_s * 1e9)
                span.events.append(Span.Event(name=names.FIRST_TOKEN, time_unix_nano=at_ns))
        span.attributes.extend(make_attributes(values))
        if error is not None:
            span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=error))
        return span

    def _describe_operation(self) -> dict[str, Any]:
        operation = names.OPERATIONS.get(self._row["endpoint"])
        return {names.OPERATION: operation, names.PROVIDER[0]: names.PROVIDER[1]}

    def _make(self, name: str, began_s: float, ended_s: float) -> Span:
        """A child of the whole."""
        self._children += 1
        number = (int.from_bytes(self._root_id) + self._children) % 2**64
        return Span(
            trace_id=self._trace_id,
            span_id=number.to_bytes(8),
            parent_span_id=self._root_id,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=self._zero_ns + round(began_s * 1e9),
            end_time_unix_nano=self._zero_ns + round(max(began_s, ended_s) * 1e9),
        )
