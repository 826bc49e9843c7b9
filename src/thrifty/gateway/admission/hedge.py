"""A second replica is asked where the first has not begun to answer in time; the first of the two to
answer wins, and the other is cancelled.

It cuts the longest waits where a replica stalls now and then, and costs nothing where none does. A
hedge is paid from the retry budget, so that a slow fleet does not get twice its load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from thrifty.wire.client import Answer, TransportError

AnyReplica = TypeVar("AnyReplica")
OpenOn = Callable[[AnyReplica], Awaitable[Answer]]


async def open_hedged(
    open_on: OpenOn[AnyReplica],
    first: AnyReplica,
    choose_other: Callable[[], AnyReplica | None],
    after_s: float,
    is_good: Callable[[Answer], bool],
) -> tuple[Answer, AnyReplica]:
    """An answer that has begun, and the replica that gives it.

    `open_on` sends the request to a replica; it is called for `first`, and after `after_s` for what
    `choose_other` gives, if that is one. An answer that is not good wins only where the other
    request ends no better. Raises what the last request raised where none was answered.
    """
    running: dict[asyncio.Future[Answer], AnyReplica] = {}
    running[asyncio.ensure_future(open_on(first))] = first
    bad: tuple[Answer, AnyReplica] | None = None
    failure: TransportError | None = None
    timeout_s: float | None = after_s
    try:
        while running:
            done, _ = await asyncio.wait(
                running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                timeout_s = None
                other = choose_other()
                if other is not None:
                    running[asyncio.ensure_future(open_on(other))] = other
                continue
            # Where the first ends badly before its time, sending again is the caller's business.
            for task in done:
                replica = running.pop(task)
                try:
                    answer = task.result()
                except TransportError as error:
                    failure = error
                    continue
                if is_good(answer):
                    if bad is not None:
                        bad[0].abort()
                    return answer, replica
                if bad is not None:
                    bad[0].abort()
                bad = (answer, replica)
        if bad is not None:
            return bad
        assert failure is not None
        raise failure
    finally:
        for task in running:
            _give_up(task)


def _give_up(task: asyncio.Future[Answer]) -> None:
    """Cancel a request; where it has just been answered, give the answer up."""
    if task.cancel():
        return
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
