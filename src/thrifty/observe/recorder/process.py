"""The recorder's process: takes lines at a socket, and writes what is left when told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket

from thrifty.background import step_back
from thrifty.http.process import run_process
from thrifty.observe.recorder.recorder import Recorder
from thrifty.observe.settings import RecorderSettings

log = logging.getLogger(__name__)

GC_THRESHOLD = 20_000
"""Rows are many objects for a short time, which reference counts free."""


def run_recorder(settings: RecorderSettings, descriptor: int) -> int:
    """Record until SIGTERM or SIGINT; `descriptor` is of a socket that listens. Returns the exit
    status.
    """
    step_back()

    async def main(stopping: asyncio.Event) -> int:
        secret = bytes.fromhex(os.environ.get(settings.id_secret_env, ""))
        recorder = Recorder(settings, os.environ[settings.database_url_env], secret)
        await recorder.start(socket.socket(fileno=descriptor))
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
        log.info("recording")
        await stopping.wait()
        await recorder.stop()
        return 0

    return run_process(main)
