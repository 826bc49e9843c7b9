"""`python -m thrifty.engines.vllm SETTINGS`: one replica; SETTINGS is JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.main import serve_model
from thrifty.engines.vllm.adapter import HONOURS, VllmEngine
from thrifty.engines.vllm.backend import Settings, VllmBackend
from thrifty.text.tokenizer import TextTokenizer


def main() -> int:
    """Serve until told to stop."""
    given = json.loads(sys.argv[1])
    backend = VllmBackend(msgspec.convert(given["vllm"], Settings))
    tokenizer = TextTokenizer.load(Path(given["tokenizer"]))
    server = ModelServer(given["name"], backend, tokenizer, engine=VllmEngine.kind, honours=HONOURS)
    return serve_model(server, given["port"])


if __name__ == "__main__":
    sys.exit(main())
