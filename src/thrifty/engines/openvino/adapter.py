"""The OpenVINO engine's adapter."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DECODERS, ENCODERS, GGUF_DECODERS
from thrifty.artifacts.inspect import OPENVINO_NOTE, read_json
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Launch,
    Served,
    check_options,
    parse_options,
)
from thrifty.engines.machine import Machine, available_memory_bytes
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
from thrifty.engines.openvino.worker_settings import ACTIVATION_GROUP
from thrifty.engines.probe import probe_generation, read_server_load
from thrifty.errors import EngineError, Problem
from thrifty.spec import Spec
from thrifty.spec.section import Bytes, Count, Section
from thrifty.types import Family, Format, OnProgress
from thrifty.units import format_bytes

HONOURS = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "chat_template_kwargs", "dimensions", "echo",
        "encoding_format", "frequency_penalty", "ignore_eos", "input", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "min_p", "min_tokens", "n",
        "parallel_tool_calls", "presence_penalty", "priority", "prompt", "repetition_penalty",
        "response_format", "return_token_strs", "seed", "stop", "stop_token_ids", "temperature",
        "tool_choice", "tools", "top_k", "top_logprobs", "top_p",
    }
)  # fmt: skip

RUNTIME_BYTES = 350_000_000
"""What a replica takes beside weights and KV cache: libraries and buffers."""
AUTO_KV_SHARE = 0.2
"""`auto` gives the KV cache at most this share of the memory that is free."""
AUTO_KV_CONTEXTS = 16
"""... and no more than this many full contexts."""
BYTES_PER_WEIGHT = {"none": 2.0, "int8": 1.04, "w8a8": 1.5, "int4": 0.6}
"""By what is done to weights, with their scales. Beside matrices in 8 bits, `w8a8` has a table in 16, which in small
models is most of it.
"""


class OpenVinoOptions(Section):
    """Options of the OpenVINO engine."""

    kv_cache: Bytes | None = Field(
        None,
        description="Memory for the KV cache of each replica. Default: a share of what is free.",
    )
    kv_precision: Literal["u8", "f16"] = Field(
        "u8",
        description="How the KV cache is stored. `f16` takes twice the memory, and less time where streams are many.",
    )
    context: Count | None = Field(
        None, ge=64, description="The longest prompt and answer together. Default: the model's."
    )
    max_batch: Count = Field(128, ge=1, description="How many answers are generated at once.")
    prefill_chunk: Count = Field(
        256, ge=32, description="How many tokens are computed in one step. Longer prompts are cut "
        "into chunks of this length, so that running answers go on meanwhile."
    )  # fmt: skip
    prefix_cache: bool = Field(True, description="Reuse the KV cache of equal beginnings.")
    activation_group: Count | None = Field(
        None, ge=0, description="How many activations share a scale when they are multiplied with "
        "8-bit or 4-bit weights; larger is faster and a little less exact. 0 turns it off."
    )  # fmt: skip


class OpenVinoEngine:
    """Serves decoders and encoders on CPUs."""

    kind = "openvino"
    options = OpenVinoOptions
    honours = HONOURS
    salt_field = None
    external = False

    def capabilities(self, machine: Machine) -> list[Capability]:
        """Formats and speeds on this processor."""
        fault = _platform_fault(machine)
        if fault:
            return [Capability("every model", False, fault)]
        features = machine.features
        vnni = bool(features & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
        slow = "works, but this processor has no 8-bit dot products, so it is slower"
        return [
            Capability("decoders from GGUF", True, ", ".join(sorted(GGUF_DECODERS))),
            Capability("decoders from safetensors", True, ", ".join(DECODERS)),
            Capability("encoders from safetensors", True, ", ".join(sorted(ENCODERS))),
            Capability("weights in 8 bits", True, "fast here" if vnni else slow),
            Capability("weights in 4 bits", True, "fast here" if vnni else slow),
            Capability("weights in 16 bits", True, "computed in float32 or bfloat16"),
            Capability("KV cache in 8 bits", True, "the default"),
            Capability("pickle (.bin, .pt)", False, "it can run code when it is read"),
        ]

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Whether this model, in this form, with these options, can run here."""
        problems = check_options(self, spec)
        fault = _platform_fault(machine)
        if fault:
            problems.append(Problem("engine", fault))
        if artifact is None or problems:
            return problems
        fault = _format_fault(artifact)
        if fault:
            return [Problem("model", fault)]
        options: OpenVinoOptions = parse_options(self, spec)
        fault = _context_fault(options, artifact.description.context_length)
        if fault:
            return [Problem("engine.context", fault)]
        return self._check_memory(spec, artifact)

    def _check_memory(self, spec: Spec, artifact: Artifact) -> list[Problem]:
        options: OpenVinoOptions = parse_options(self, spec)
        free = available_memory_bytes()
        copies = spec.replicas.count
        scheme = _choose_scheme(spec, artifact)
        per_weight = BYTES_PER_WEIGHT.get(scheme, BYTES_PER_WEIGHT["none"])
        weights = round(artifact.description.parameters * per_weight)
        fixed = copies * (weights + RUNTIME_BYTES)
        if fixed > free:
            return [
                Problem(
                    "replicas.count",
                    f"{copies} copies need about {format_bytes(fixed)} for weights and libraries, "
                    f"and {format_bytes(free)} are free; use fewer copies or smaller weights "
                    "(compress: int4)",
                )
            ]
        wanted = (options.kv_cache or 0) * copies
        if fixed + wanted > free:
            return [
                Problem(
                    "engine.kv_cache",
                    f"{copies} x {format_bytes(options.kv_cache or 0)} of KV cache and "
                    f"{format_bytes(fixed)} for weights and libraries do not fit the "
                    f"{format_bytes(free)} that are free; ask for less",
                )
            ]
        return []

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Convert to OpenVINO IR, unless that was done before."""
        if model is None:
            raise EngineError("the engine 'openvino' needs a model")
        version, artifact = model
        name = spec.name or version.name
        if artifact.description.format is not Format.OPENVINO:
            from thrifty.engines.openvino.prepare import prepare_model

            scheme = _choose_scheme(spec, artifact)
            version, artifact = prepare_model(store, version, artifact, scheme, on_progress)
        folder = store.folder_of(artifact.id)
        note = read_json(folder / OPENVINO_NOTE)
        options = _resolve_options(parse_options(self, spec), note, spec)
        relevant = {k: v for k, v in options.items() if k not in ("kv_cache", "max_batch")}
        text = json.dumps([artifact.id, self.kind, relevant], sort_keys=True)
        return Served(
            name=name,
            engine=self.kind,
            version=version.label,
            revision=hashlib.sha256(text.encode()).hexdigest()[:12],
            family=artifact.description.family.value,
            folder=folder,
            artifact=artifact.id,
            options=options,
        )

    def launch(
        self, served: Served, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """`python -m thrifty.engines.openvino`."""
        assert served.folder is not None
        settings = {
            "name": served.name,
            "port": port,
            "folder": str(served.folder),
            "family": served.family,
            "threads": len(cores),
            **_size_kv_cache(served, memory_share),
            "context": served.options["context"],
            "kv_precision": served.options["kv_precision"],
            "max_batch": served.options["max_batch"],
            "prefill_chunk": served.options["prefill_chunk"],
            "prefix_cache": served.options["prefix_cache"],
            "activation_group": served.options["activation_group"],
        }
        return Launch([sys.executable, "-m", "thrifty.engines.openvino", json.dumps(settings)])

    def find_slots(self, served: Served) -> int | None:
        """What its scheduler takes into one step; encoders batch by themselves."""
        return None if served.family == Family.ENCODER else int(served.options["max_batch"])

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when a token was generated."""
        return await probe_generation(url, served, deep=deep)

    async def read_load(self, url: str) -> EngineLoad:
        """From the server's `/load`."""
        return await read_server_load(url)


def _platform_fault(machine: Machine) -> str | None:
    if machine.architecture in ("x86_64", "AMD64"):
        if machine.system == "Linux" and "avx2" not in machine.features:
            return f"the processor ({machine.processor}) has no AVX2, which OpenVINO needs"
        return None
    if machine.architecture in ("arm64", "aarch64"):
        return None
    return f"OpenVINO has no build for {machine.architecture}"


def _format_fault(artifact: Artifact) -> str | None:
    description = artifact.description
    name = description.architecture
    if description.format is Format.GGUF and name not in GGUF_DECODERS:
        return (
            f"GGUF files of the architecture {name!r} cannot be served by the engine 'openvino'; "
            f"these can: {', '.join(sorted(GGUF_DECODERS))}"
        )
    if description.format is Format.OPENVINO:
        if any(entry.path == OPENVINO_NOTE for entry in artifact.files):
            return None
        return (
            f"this OpenVINO model was not prepared by Thrifty (it has no {OPENVINO_NOTE}); name "
            "the checkpoint that it was made from, as safetensors or GGUF"
        )
    known = ENCODERS if description.family is Family.ENCODER else frozenset(DECODERS)
    if description.format is Format.SAFETENSORS and name not in known:
        return (
            f"models of the architecture {name!r} cannot be served by the engine 'openvino'; "
            f"these can: {', '.join(sorted(known))}"
        )
    return None


def _context_fault(options: OpenVinoOptions, limit: int) -> str | None:
    """Why the context that is asked for is not possible. A `limit` of 0 is not known."""
    if options.context is None or not limit or options.context <= limit:
        return None
    return (
        f"{options.context} tokens are asked for, and the model was made for at most {limit}; "
        "ask for no more than that"
    )


def _choose_scheme(spec: Spec, artifact: Artifact) -> str:
    """What is done to the weights, or was: `none`, `int8`, `w8a8` or `int4`."""
    if artifact.description.format is Format.OPENVINO:
        return artifact.description.weights or "none"
    wanted = spec.compress.quantize.scheme
    return "int8" if wanted == "auto" else wanted


def _resolve_options(options: OpenVinoOptions, note: dict[str, Any], spec: Spec) -> dict[str, Any]:
    limit = int(note["context_length"])
    fault = _context_fault(options, limit)
    if fault:
        raise EngineError(f"engine.context: {fault}")
    context = options.context or limit
    group = options.activation_group
    if group is None:
        group = int(note.get("activation_group", ACTIVATION_GROUP))
    return {
        "kv_cache": options.kv_cache,
        "kv_precision": options.kv_precision,
        "context": context,
        "max_batch": options.max_batch,
        "prefill_chunk": options.prefill_chunk,
        "prefix_cache": options.prefix_cache,
        "activation_group": group,
        "kv_bytes_per_token": int(note.get("kv_bytes_per_token", 0)),
        "eos_token_ids": list(note.get("eos_token_ids", [])),
    }


def _size_kv_cache(served: Served, memory_share: float) -> dict[str, int]:
    """How many blocks of KV cache a replica gets. Raises `EngineError` where one context is not
    possible.
    """
    per_token = served.options["kv_bytes_per_token"]
    if served.family == Family.ENCODER or not per_token:
        return {"kv_blocks": 0}
    if served.options["kv_precision"] != "u8":
        per_token = round(per_token * 1.7)
    block_bytes = per_token * BLOCK_TOKENS
    context = served.options["context"]
    asked = served.options["kv_cache"]
    if asked is None:
        free = available_memory_bytes() * memory_share
        asked = min(free * AUTO_KV_SHARE, AUTO_KV_CONTEXTS * context * per_token)
        asked = max(asked, min(context * per_token, free * 0.8))
    blocks = int(asked // block_bytes)
    if blocks * BLOCK_TOKENS < min(context, 512):
        raise EngineError(
            f"a KV cache of {format_bytes(asked)} holds {blocks * BLOCK_TOKENS} tokens of this "
            f"model, too few to work with; give it at least {format_bytes(512 * per_token)} "
            "(engine.kv_cache), or a shorter engine.context"
        )
    return {"kv_blocks": blocks}


def read_note(folder: Path) -> dict[str, Any]:
    """What preparation wrote of a model."""
    return read_json(folder / OPENVINO_NOTE)
