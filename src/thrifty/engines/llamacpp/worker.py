"""llama.cpp's own server in this process: a script that runs where `xllamacpp` is installed.

It imports nothing of Thrifty, whose packages need not be there. Its settings come as one line of
JSON on stdin (`settings.WorkerSettings`); one line of JSON on stdout says on which port it listens,
or why it does not. It ends as soon as stdin is closed, so that it never outlives its parent.
llama.cpp's log goes to stderr.
"""

import contextlib
import json
import os
import sys
import threading
from typing import Any

SPECULATION = {
    "prompt_lookup": "COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE",
    "draft": "COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE",
}
"""llama.cpp's names of the ways to speculate."""
ERRORS = 1
"""llama.cpp's level of verbosity that leaves out what each request does, and remarks on it."""


def main() -> None:
    """Serve until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        import xllamacpp

        server = xllamacpp.Server(make_parameters(xllamacpp, settings))
        answer = {"url": server.listening_address}
    except BaseException as error:
        answer = {"error": str(error) or repr(error)}
    with contextlib.suppress(OSError):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if "error" in answer:
        os._exit(1)
    threading.Event().wait()


def end_with_parent() -> None:
    """End this process when stdin does."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def make_parameters(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    """llama.cpp's parameters."""
    given = xllamacpp.CommonParams()
    given.model.path = settings["model"]
    given.hostnames = ["127.0.0.1"]
    given.port = 0
    given.api_keys = [settings["key"]]
    given.n_parallel = settings["slots"]
    given.n_ctx = settings["slots"] * settings["context"]
    given.n_ubatch = settings["chunk"]
    given.n_batch = max(2048, settings["chunk"])
    given.cpuparams.n_threads = settings["threads"]
    given.cpuparams_batch.n_threads = settings["threads"]
    given.n_threads_http = settings["slots"] + 4
    given.cache_prompt = settings["prefix_cache"]
    given.cache_ram_mib = settings["saved_prompts_mb"] if settings["prefix_cache"] else 0
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings['kv_precision'].upper()}")
    given.cache_type_k = given.cache_type_v = kind
    given.ctx_shift = False
    given.fit_params = False
    given.n_gpu_layers = 0
    given.use_jinja = False
    given.chat_template = "chatml"  # prompts come as tokens: a broken template does not matter
    given.ui = False
    given.endpoint_slots = given.endpoint_props = False
    given.endpoint_metrics = True
    given.verbosity = ERRORS
    if settings["ranks"]:
        given.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if settings["embeds"] or settings["ranks"]:
        given.embedding = True
        # A text is computed in one step.
        given.n_ubatch = given.n_batch = max(settings["chunk"], settings["context"])
    if settings["speculation"] != "none":
        speculate(xllamacpp, given, settings)
    return given


def speculate(xllamacpp: Any, given: Any, settings: dict[str, Any]) -> None:
    """Turn speculation on."""
    kind = SPECULATION[settings["speculation"]]
    given.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    if settings["speculation"] == "prompt_lookup":
        given.speculative.ngram_simple.size_n = settings["lookup_match"]
        given.speculative.ngram_simple.size_m = settings["draft_tokens"]
    else:
        given.speculative.draft.mparams.path = settings["draft_model"]
        given.speculative.draft.n_max = settings["draft_tokens"]
        given.speculative.draft.cpuparams.n_threads = settings["threads"]
        given.speculative.draft.cpuparams_batch.n_threads = settings["threads"]


if __name__ == "__main__":
    main()
