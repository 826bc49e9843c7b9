"""What every server process does alike: logging, the event loop, and stopping on signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from thrifty.errors import ThriftyError

Main = Callable[[asyncio.Event], Coroutine[Any, Any, int]]
"""A process's life: it gets an event that is set by SIGTERM and SIGINT, and returns its status."""

ADDRESS_IN_USE = 98
"""Exit status of a server that could not listen."""


def run_process(main: Main) -> int:
    """Run `main` on uvloop where there is one; returns the process's exit status."""
    logging.basicConfig(
        level=os.environ.get("THRIFTY_LOG", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_with_signals(main))
    except ThriftyError as error:
        report_error(str(error))
        return error.exit_code


def report_error(message: str) -> None:
    """Write the line that a supervisor shows when it tells why a process ended."""
    print(f"Error: {message}", file=sys.stderr, flush=True)  # noqa: T201


async def _with_signals(main: Main) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stopping.set)
    return await main(stopping)
