"""`python -m thrifty.engines.openvino SETTINGS`: one replica; SETTINGS is JSON.

The worker is started first. It loads the model while this process imports what the server needs,
which takes half a second of a processor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from thrifty.engines.openvino.start_child import WORKER, StartedChild, start_child


def main() -> int:
    """Serve until told to stop."""
    given = json.loads(sys.argv[1])
    return _serve(given, start_child(WORKER, given["worker"]))


def _serve(given: dict[str, Any], worker: StartedChild) -> int:
    import msgspec

    from thrifty.engines.openvino.adapter import HONOURS, OpenVinoEngine
    from thrifty.engines.openvino.backend import OpenVinoBackend
    from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
    from thrifty.engines.openvino.worker_settings import Settings
    from thrifty.engines.server.app import ModelServer
    from thrifty.engines.server.main import serve_model
    from thrifty.text.tokenizer import TextTokenizer

    settings = msgspec.convert(given["worker"], Settings)
    context = settings.options.context
    assert context is not None
    if settings.kv_blocks:
        # What does not fit the KV cache could never be answered.
        context = min(context, settings.kv_blocks * BLOCK_TOKENS)
    server = ModelServer(
        given["name"], OpenVinoBackend(settings, context, worker),
        TextTokenizer.load(Path(settings.folder)), engine=OpenVinoEngine.kind, honours=HONOURS,
    )  # fmt: skip
    return serve_model(server, given["port"])


if __name__ == "__main__":
    sys.exit(main())
