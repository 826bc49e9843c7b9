"""The runtime's loop: take an event, pass its request to the engine, stream the answer back.

    before the first byte     an answer with an error's status and body, as the OpenAI API has them
    after it                  an error event where the answer is a stream of events, then trailers
                              that tell Lambda; without them a cut answer would count as whole
    the engine is gone        the same, then the runtime ends, and Lambda starts a new environment

A function that runs out of time is ended by Lambda without a word, so that answers end before.
"""

from __future__ import annotations

import http.client
import logging
import time

from thrifty.aws_lambda.access import Access
from thrifty.aws_lambda.engine_process import EngineAnswer, EngineProcess
from thrifty.aws_lambda.events import EventRefused, HttpRequest, make_prelude, parse_event
from thrifty.aws_lambda.runtime_api import (
    Fault,
    Invocation,
    ResponseStream,
    RuntimeApi,
    RuntimeApiError,
)
from thrifty.errors import EngineError
from thrifty.openai.errors import SERVER, WireError, bad_request, unavailable
from thrifty.openai.events import encode_error_event

log = logging.getLogger(__name__)

_END_MARGIN_S = 0.5
"""An answer ends so long before Lambda would end the function."""
_EVENTS = "text/event-stream"


class Stopped(BaseException):
    """SIGTERM came."""


class Runtime:
    """Answers events until the engine is gone (then `serve` returns) or `Stopped` is raised."""

    def __init__(self, api: RuntimeApi, engine: EngineProcess, access: Access) -> None:
        self._api = api
        self._engine = engine
        self._access = access

    def serve(self) -> str:
        """Answer one event after the other; returns how the engine ended. Raises
        `RuntimeApiError` where no event can be had.
        """
        while (reason := self._engine.ended) is None:
            invocation = self._api.next()
            try:
                self._answer(invocation)
            except RuntimeApiError as error:
                # The client has gone, or Lambda has given the invocation up; the next one may work.
                log.warning("%s: %s", invocation.id, error)
        return reason

    def _answer(self, invocation: Invocation) -> None:
        try:
            request = parse_event(invocation.event)
        except EventRefused as error:
            self._api.fail(invocation, Fault("Thrifty.EventRefused", str(error)))
            return
        try:
            self._access.check(request)
            answer = self._ask(request, invocation)
        except WireError as error:
            self._answer_error(invocation, error)
            return
        try:
            self._pass_on(answer, invocation)
        finally:
            answer.close()

    def _ask(self, request: HttpRequest, invocation: Invocation) -> EngineAnswer:
        """The head of the engine's answer. Raises `WireError`."""
        left_s = _find_left_s(invocation)
        try:
            if not self._engine.wait_ready(time.monotonic() + left_s):
                raise unavailable(
                    f"the model was not loaded within {left_s:.0f} s; try again, or give the function "
                    "more memory, which brings more processor",
                    "loading",
                )
            return self._engine.send(request, _find_left_s(invocation))
        except TimeoutError:
            raise _out_of_time() from None
        except EngineError as error:
            raise _engine_gone(str(error)) from None
        except (ValueError, http.client.InvalidURL) as error:
            raise bad_request(f"the request cannot be passed on: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = (
                self._engine.find_end() or f"the engine gave no answer ({type(error).__name__})"
            )
            raise _engine_gone(reason) from None

    def _pass_on(self, answer: EngineAnswer, invocation: Invocation) -> None:
        stream = self._api.stream(invocation)
        stream.write(make_prelude(answer.head.status, answer.head.getheaders()))
        is_events = answer.head.headers.get_content_type() == _EVENTS
        last = b""
        try:
            while piece := answer.read(_find_left_s(invocation)):
                stream.write(piece)
                last = (last + piece)[-2:]
        except TimeoutError:
            _cut(stream, is_events, last, _out_of_time())
        except Stopped:
            _cut(stream, is_events, last, _engine_gone("the function was told to end"))
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = (
                self._engine.find_end() or f"the engine's answer broke ({type(error).__name__})"
            )
            _cut(stream, is_events, last, _engine_gone(reason))
        else:
            stream.finish()

    def _answer_error(self, invocation: Invocation, error: WireError) -> None:
        headers = [(name.decode(), value.decode()) for name, value in error.headers]
        stream = self._api.stream(invocation)
        stream.write(make_prelude(error.status, [("content-type", "application/json"), *headers]))
        stream.write(error.encode())
        stream.finish()


def _cut(stream: ResponseStream, is_events: bool, last: bytes, error: WireError) -> None:
    """End an answer that has begun."""
    if is_events:
        stream.write((b"" if last == b"\n\n" else b"\n\n") + encode_error_event(error))
    stream.finish(Fault(f"Thrifty.{error.code}", error.message))


def _find_left_s(invocation: Invocation) -> float:
    return max(0.05, invocation.deadline_s - time.time() - _END_MARGIN_S)


def _out_of_time() -> WireError:
    message = (
        "the function's time ran out before the answer was whole; ask for fewer tokens, or give the "
        "function more time (--set timeout=)"
    )
    return WireError(504, message, type=SERVER, code="deadline_exceeded")


def _engine_gone(reason: str) -> WireError:
    return WireError(502, reason, type=SERVER, code="replica_lost")
