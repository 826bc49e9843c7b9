"""`python -m thrifty.engines.echo SETTINGS`: one echo server; SETTINGS is JSON."""

from __future__ import annotations

import json
import sys

from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.main import serve_model


def main() -> int:
    """Serve until told to stop."""
    settings = json.loads(sys.argv[1])
    backend = EchoBackend(
        ttft_s=settings["ttft"],
        tpot_s=settings["tpot"],
        prefill_s=settings["prefill"],
        slots=settings["slots"],
        context_length=settings["context"],
        reply=settings["reply"],
        load_s=settings["load"],
        cache_tokens=settings["cache"],
    )
    server = ModelServer(
        settings["name"], backend, make_tokenizer(), engine="echo", honours=EchoEngine.honours
    )
    return serve_model(server, "127.0.0.1", settings["port"])


if __name__ == "__main__":
    sys.exit(main())
