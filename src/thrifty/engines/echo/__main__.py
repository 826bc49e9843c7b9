"""`python -m thrifty.engines.echo SETTINGS`: one echo server; SETTINGS is JSON."""

from __future__ import annotations

import json
import sys

from thrifty.engines.echo.adapter import EchoEngine, EchoOptions
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.main import serve_model


def main() -> int:
    """Serve until told to stop."""
    settings = json.loads(sys.argv[1])
    options = EchoOptions.model_validate(settings["options"])
    backend = EchoBackend(
        ttft_s=options.ttft,
        tpot_s=options.tpot,
        prefill_s=options.prefill,
        slots=options.slots,
        context_length=options.context,
        reply=options.reply,
        load_s=options.load,
        cache_tokens=options.cache,
        family=options.family,
    )
    honours = EchoEngine.traits.honours or frozenset()
    server = ModelServer(
        settings["name"], backend, make_tokenizer(), engine=EchoEngine.kind, honours=honours
    )
    return serve_model(server, settings["port"])


if __name__ == "__main__":
    sys.exit(main())
