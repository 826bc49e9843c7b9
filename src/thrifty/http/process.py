"""What all server processes have in common: logging, the event loop, and stopping on signals."""

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
from thrifty.untrusted_text import LOG_FORMAT_VARIABLE, make_log_formatter

Main = Callable[[asyncio.Event], Coroutine[Any, Any, int]]
"""A process's main coroutine. SIGTERM and SIGINT set its event; it returns the exit status."""

ADDRESS_IN_USE = 98
"""Exit status of a server that could not listen."""
KILLED_STATUS = 128
"""With a signal's number added: exit status of a server whose own process was killed by it."""
LOG_VARIABLE = "THRIFTY_LOG"


def run_process(main: Main) -> int:
    """Run `main`, on uvloop where it is installed; returns the process's exit status."""
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    try:
        handler = logging.StreamHandler()
        handler.setFormatter(read_log_formatter())
        logging.basicConfig(level=read_log_level(), handlers=[handler])
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_with_signals(main))
    except ThriftyError as error:
        report_error(str(error))
        return error.exit_code


def read_log_level() -> int:
    """The lowest level that is logged, from the environment. Raises `ThriftyError`."""
    name = os.environ.get(LOG_VARIABLE) or "info"
    level = logging.getLevelNamesMapping().get(name.upper())
    if level is None:
        raise ThriftyError(f"{LOG_VARIABLE} is {name!r}; set it to debug, info, warning or error")
    return level


def read_log_formatter() -> logging.Formatter:
    """How messages are written, from the environment. Raises `ThriftyError`."""
    try:
        return make_log_formatter(os.environ.get(LOG_FORMAT_VARIABLE))
    except ValueError as error:
        raise ThriftyError(str(error)) from None


def report_error(message: str) -> None:
    """Write the line that a supervisor shows as the reason why a process ended."""
    print(f"Error: {message}", file=sys.stderr, flush=True)  # noqa: T201


async def _with_signals(main: Main) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stopping.set)
    return await main(stopping)
