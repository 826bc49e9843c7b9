"""`python -m thrifty.engines.llamacpp SETTINGS`: one replica; SETTINGS is JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from thrifty.engines.llamacpp.adapter import HONOURS, LlamaCppEngine
from thrifty.engines.llamacpp.backend import LlamaCppBackend
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.main import serve_model
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family


def main() -> int:
    """Serve until told to stop."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    tokenizer = TextTokenizer.load(folder)
    backend = LlamaCppBackend(
        Path(given["python"]), folder, msgspec.convert(given["worker"], WorkerSettings), tokenizer,
        family=Family(given["family"]), eos_token_ids=given["eos_token_ids"],
        kv_bytes=given["kv_bytes"],
    )  # fmt: skip
    server = ModelServer(
        given["name"], backend, tokenizer, engine=LlamaCppEngine.kind, honours=HONOURS
    )
    return serve_model(server, given["port"])


if __name__ == "__main__":
    sys.exit(main())
