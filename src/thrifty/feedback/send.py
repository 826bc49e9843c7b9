"""Sends feedback from Python programs: `thrifty.send_feedback(url, completion.id, thumbs="down")`."""

from __future__ import annotations

import time
from typing import Any

import requests

from thrifty.errors import ThriftyError
from thrifty.openai.conversations import PREFIX

TRIES = 3
TIMEOUT_S = 10.0


class FeedbackError(ThriftyError):
    """The service refuses feedback, or cannot be reached. `status` is 0 if it cannot be reached."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def send_feedback(
    url: str, about: str, *, key: str | None = None, token: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Give feedback on a response (its id, with or without `chatcmpl-`) or a conversation (the
    header `x-thrifty-conversation`); returns the service's answer.

    `url` is the service's address, with or without `/v1`. `key` is an API key, `token` the header
    `x-thrifty-feedback-token` of the answer in its place. `fields` are those of `POST /v1/feedback`:
    `thumbs`, `rating`, `category`, `comment`, `correction`, `event`, `name` with `value`, `tags`,
    `user`, `id`. While the service is busy it is sent again, which is safe: the same feedback counts
    once. Blocks for at most 30 s. Raises `FeedbackError`.
    """
    target = "conversation_id" if about.startswith(PREFIX) else "response_id"
    headers = {}
    if token is not None:
        headers["x-thrifty-feedback-token"] = token
    elif key is not None:
        headers["authorization"] = f"Bearer {key}"
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/feedback"
    body = {name: value for name, value in fields.items() if value is not None}
    failure = FeedbackError(0, None, "not sent")
    for turn in range(TRIES):
        try:
            answer = requests.post(
                address, json={**body, target: about}, headers=headers, timeout=TIMEOUT_S
            )
            found = answer.json()
        except (requests.ConnectionError, requests.Timeout, ValueError) as error:
            failure = FeedbackError(0, None, f"{address} does not answer: {error}")
        else:
            if answer.status_code in (200, 201):
                return dict(found)
            fault = found.get("error", {})
            failure = FeedbackError(
                answer.status_code, fault.get("code"), fault.get("message", answer.reason)
            )
            if answer.status_code != 503:
                raise failure
        if turn < TRIES - 1:
            time.sleep(1.0 * (turn + 1))
    raise failure
