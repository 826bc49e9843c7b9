"""Keeps streams alive that wait: for a replica to start, for a free slot, or for a long prompt.

Proxies and clients give up connections on which nothing moves. A comment of the event stream moves
something and means nothing: OpenAI's clients skip it. The status is sent with the first comment, so
that an error after it can only be an event of the stream; that is why deployments opt in
(`limits.keep_alive`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from thrifty.gateway.state.call import Call


async def keep_alive(call: Call, answering: Awaitable[None], every_s: float) -> None:
    """Wait for `answering`, and send the client a comment every `every_s` until its stream has
    begun.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def send() -> None:
        nonlocal timer
        exchange = call.exchange
        if not (exchange.started or exchange.disconnected):
            exchange.keep_waiting(call.header_lines())
            timer = loop.call_later(every_s, send)

    timer = loop.call_later(every_s, send)
    try:
        await answering
    finally:
        timer.cancel()
