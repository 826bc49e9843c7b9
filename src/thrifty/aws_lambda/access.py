"""Who may use the function: whoever has its key, or whoever IAM lets through."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from thrifty.aws_lambda.events import HttpRequest
from thrifty.errors import ThriftyError
from thrifty.openai.errors import AUTHENTICATION, WireError

HASH_VARIABLE = "THRIFTY_LAMBDA_KEY_SHA256"
"""The SHA-256 of the API key, in hex: the function knows no secret."""
IAM_VARIABLE = "THRIFTY_LAMBDA_IAM"
"""`1` where the function's URL asks for IAM signatures; then there is no key."""


class Access:
    """Checks requests. `key_sha256` is None where IAM decides."""

    def __init__(self, key_sha256: str | None) -> None:
        self._key_sha256 = key_sha256

    def check(self, request: HttpRequest) -> None:
        """Raise a 401 for whoever may not use the function."""
        if self._key_sha256 is None:
            if not request.signed:
                raise _refuse("This function takes requests that are signed for IAM alone.")
            return
        given = hashlib.sha256(_find_key(request).encode("utf-8", "surrogatepass")).hexdigest()
        if not hmac.compare_digest(given, self._key_sha256):
            raise _refuse("This function needs its API key, as 'Authorization: Bearer KEY'.")


def read_access(environment: Mapping[str, str]) -> Access:
    """From the function's environment. Raises `ThriftyError`."""
    text = environment.get(HASH_VARIABLE, "")
    if environment.get(IAM_VARIABLE) == "1" and not text:
        return Access(None)
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ThriftyError(
            f"{HASH_VARIABLE} must hold the SHA-256 of the API key in hex (printf %s KEY | sha256sum), "
            f"or {IAM_VARIABLE} must be 1 where the URL asks for IAM signatures"
        )
    return Access(text)


def _find_key(request: HttpRequest) -> str:
    value = request.headers.get("authorization", "")
    if value[:7].lower() == "bearer ":
        return value[7:].strip()
    return request.headers.get("api-key") or request.headers.get("x-api-key") or ""


def _refuse(message: str) -> WireError:
    return WireError(401, message, type=AUTHENTICATION, code="invalid_api_key")
