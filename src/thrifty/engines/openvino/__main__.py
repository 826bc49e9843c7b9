"""`python -m thrifty.engines.openvino SETTINGS`: one replica; SETTINGS is JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from thrifty.engines.openvino.adapter import HONOURS, read_note
from thrifty.engines.openvino.backend import OpenVinoBackend
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.main import serve_model
from thrifty.text.tokenizer import TextTokenizer


def main() -> int:
    """Serve until told to stop."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    note = read_note(folder)
    settings = Settings(
        folder=str(folder),
        family=given["family"],
        threads=given["threads"],
        kv_blocks=given["kv_blocks"],
        kv_precision=given["kv_precision"],
        max_batch=given["max_batch"],
        prefill_chunk=given["prefill_chunk"],
        prefix_cache=given["prefix_cache"],
        activation_group=given["activation_group"],
        eos_token_ids=tuple(note.get("eos_token_ids", ())),
    )
    context = given["context"]
    if settings.kv_blocks:
        # What does not fit the KV cache could never be answered.
        context = min(context, settings.kv_blocks * BLOCK_TOKENS)
    backend = OpenVinoBackend(settings, context)
    server = ModelServer(
        given["name"], backend, TextTokenizer.load(folder), engine="openvino", honours=HONOURS
    )
    return serve_model(server, "127.0.0.1", given["port"])


if __name__ == "__main__":
    sys.exit(main())
