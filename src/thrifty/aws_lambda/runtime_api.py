"""A client of the Lambda Runtime API, with streamed responses.

Source: docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html and .../runtimes-custom.html. Calls
block: Lambda gives an environment one invocation at a time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from dataclasses import dataclass

from thrifty.aws_lambda.events import PRELUDE_TYPE
from thrifty.errors import ThriftyError

_BASE = "/2018-06-01/runtime"
_CALL_TIMEOUT_S = 30.0
_ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"
_ERROR_BODY = "Lambda-Runtime-Function-Error-Body"
_MAX_MESSAGE = 2000


class RuntimeApiError(ThriftyError):
    """The Runtime API is away, or refused a call."""


@dataclass(frozen=True)
class Fault:
    """What went wrong, as Lambda reports it: a short type with a dot in it, and a sentence."""

    kind: str
    message: str

    def encode(self) -> bytes:
        """As the API takes it."""
        body = {
            "errorType": self.kind, "errorMessage": self.message[:_MAX_MESSAGE], "stackTrace": [],
        }  # fmt: skip
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Invocation:
    """One event, and until when it must be answered."""

    id: str
    deadline_s: float
    """In seconds since 1970: Lambda ends the function then, without a word."""
    event: bytes


class RuntimeApi:
    """The API at `address`, as `AWS_LAMBDA_RUNTIME_API` gives it: a host and a port."""

    def __init__(self, address: str) -> None:
        self._address = address

    def next(self) -> Invocation:
        """Wait for the next event, however long that takes. Raises `RuntimeApiError`."""
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request("GET", f"{_BASE}/invocation/next")
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise RuntimeApiError(f"the Runtime API gave status {answer.status} for an event")
            return Invocation(
                answer.headers["Lambda-Runtime-Aws-Request-Id"],
                int(answer.headers["Lambda-Runtime-Deadline-Ms"]) / 1000,
                data,
            )
        except (OSError, http.client.HTTPException, TypeError) as error:
            raise RuntimeApiError(f"the Runtime API at {self._address}: {error}") from error
        finally:
            connection.close()

    def stream(self, invocation: Invocation) -> ResponseStream:
        """Begin the response to an event. Raises `RuntimeApiError`."""
        connection = http.client.HTTPConnection(self._address, timeout=_CALL_TIMEOUT_S)
        return ResponseStream(connection, f"{_BASE}/invocation/{invocation.id}/response")

    def fail(self, invocation: Invocation, fault: Fault) -> None:
        """Report that an event was not answered. Raises `RuntimeApiError`."""
        self._report(f"{_BASE}/invocation/{invocation.id}/error", fault)

    def fail_init(self, fault: Fault) -> None:
        """Report that the function cannot start. Raises `RuntimeApiError`."""
        self._report(f"{_BASE}/init/error", fault)

    def _report(self, path: str, fault: Fault) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_CALL_TIMEOUT_S)
        headers = {"Content-Type": "application/json", _ERROR_TYPE: fault.kind}
        try:
            connection.request("POST", path, fault.encode(), headers)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise RuntimeApiError(f"the Runtime API at {self._address}: {error}") from error
        finally:
            connection.close()


class ResponseStream:
    """A response that is sent piece by piece. Every method raises `RuntimeApiError` where Lambda
    takes no more: the client is gone, or the answer is too long.
    """

    def __init__(self, connection: http.client.HTTPConnection, path: str) -> None:
        self._connection = connection
        try:
            connection.putrequest("POST", path, skip_accept_encoding=True)
            connection.putheader("Content-Type", PRELUDE_TYPE)
            connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("Trailer", f"{_ERROR_TYPE}, {_ERROR_BODY}")
            connection.endheaders()
        except OSError as error:
            self._give_up(error)

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self, fault: Fault | None = None) -> None:
        """End the response; `fault` says why it is not whole."""
        end = b"0\r\n"
        if fault is not None:
            body = base64.b64encode(fault.encode())
            end += f"{_ERROR_TYPE}: {fault.kind}\r\n{_ERROR_BODY}: ".encode() + body + b"\r\n"
        self._send(end + b"\r\n")
        try:
            answer = self._connection.getresponse()
            answer.read()
            if answer.status != 202:
                raise RuntimeApiError(f"the Runtime API gave status {answer.status} for a response")
        except (OSError, http.client.HTTPException) as error:
            self._give_up(error)
        finally:
            self._connection.close()

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()
        raise RuntimeApiError(f"the response was not taken: {error}") from error
