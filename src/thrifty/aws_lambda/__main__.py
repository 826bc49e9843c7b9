"""`python -m thrifty.aws_lambda`: the entry point of the function's image.

Lambda's first phase ends when the first event is asked for, and is cut after 10 s; what it did is
then done again at the caller's cost. So the runtime waits for the model for less than that, and
answers whoever comes before it as soon as the model is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from thrifty.aws_lambda.access import read_access
from thrifty.aws_lambda.baked import read_baked
from thrifty.aws_lambda.engine_process import EngineProcess, start_engine
from thrifty.aws_lambda.runtime import Runtime, Stopped
from thrifty.aws_lambda.runtime_api import Fault, RuntimeApi, RuntimeApiError
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.http.process import read_log_formatter, read_log_level, report_error

API_VARIABLE = "AWS_LAMBDA_RUNTIME_API"
_INIT_S = 8.5


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Serve until SIGTERM, or until the engine ends; returns the exit status."""
    until_s = time.monotonic() + _INIT_S
    address = environment.get(API_VARIABLE)
    if not address:
        report_error(
            f"{API_VARIABLE} is not set: this is the entry point of a function in AWS Lambda; to "
            "serve here, use `thrifty up`"
        )
        return 1
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    api, engine = RuntimeApi(address), None
    try:
        handler = logging.StreamHandler()
        handler.setFormatter(read_log_formatter())
        logging.basicConfig(level=read_log_level(), handlers=[handler])
        access = read_access(environment)
        engine = _start(until_s)
        reason = Runtime(api, engine, access).serve()
        report_error(reason)
        return 1
    except Stopped:
        return 0
    except RuntimeApiError as error:
        report_error(str(error))
        return 1
    except ThriftyError as error:
        report_error(str(error))
        with contextlib.suppress(RuntimeApiError):
            api.fail_init(Fault(f"Thrifty.{type(error).__name__}", str(error)))
        return error.exit_code
    finally:
        if engine is not None:
            engine.stop()


def _start(until_s: float) -> EngineProcess:
    """The engine, ready or still loading. Raises `ThriftyError` kinds."""
    home = find_home()
    engine = start_engine(read_baked(home.root), home.models)
    try:
        engine.wait_ready(until_s)
    except BaseException:
        engine.stop()
        raise
    return engine


def _stop(*_: object) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
