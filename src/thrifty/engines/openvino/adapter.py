"""The OpenVINO engine's adapter."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.bases import load_base
from thrifty.artifacts.checkpoint import DECODERS, GGUF_DECODERS
from thrifty.artifacts.encoder_checkpoint import ENCODERS, RERANKERS
from thrifty.artifacts.inspect import ADAPTER_WEIGHTS, OPENVINO_NOTE, read_json
from thrifty.artifacts.lora import ADAPTER_FOLDER, read_config
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Launch,
    SchemeDefault,
    Served,
    Traits,
    Upstream,
    check_options,
    choose_runnable,
    find_scheme_fault,
    parse_options,
)
from thrifty.engines.machine import Machine, available_memory_bytes, detect_machine
from thrifty.engines.openvino.options import (
    CAPACITY,
    TUNABLE,
    OpenVinoOptions,
    find_context_fault,
    find_speculation_fault,
    resolve,
)
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS
from thrifty.engines.openvino.processor import (
    AUTO_SCHEMES,
    LOSSY_SCHEMES,
    SCHEMES,
    describe_speed,
    find_default_scheme,
    find_features,
    find_processor_fault,
)
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.probe import LOAD_PATH, park_server, probe_generation, read_server_load
from thrifty.engines.scheme_choice import choose_scheme
from thrifty.engines.server import ENVIRONMENT
from thrifty.engines.server.narrowed import (
    DECODER_FIELDS,
    ENCODER_FIELDS,
    NARROWED,
    RERANKER_FIELDS,
)
from thrifty.errors import EngineError, Problem
from thrifty.spec import Spec
from thrifty.types import Family, Format, OnProgress
from thrifty.units import format_bytes

HONOURS = DECODER_FIELDS | ENCODER_FIELDS | RERANKER_FIELDS

KNOWN: dict[Family, frozenset[str]] = {
    Family.DECODER: frozenset(DECODERS), Family.ENCODER: ENCODERS, Family.RERANKER: RERANKERS,
}  # fmt: skip
"""The architectures of safetensors that it serves."""
RUNTIME_BYTES = 350_000_000
"""Memory of a replica beyond weights and KV cache: libraries and buffers."""
AUTO_KV_SHARE = 0.2
"""By default the KV cache gets at most this share of the free memory..."""
AUTO_KV_CONTEXTS = 16
"""... and at most this many full contexts."""


class OpenVinoEngine:
    """Serves decoders, encoders and rerankers on CPUs."""

    kind = "openvino"
    options = OpenVinoOptions
    traits = Traits(
        formats=frozenset(Format),
        families=frozenset(Family),
        schemes=SCHEMES,
        auto_schemes=AUTO_SCHEMES,
        lossy_schemes=LOSSY_SCHEMES,
        tunable=TUNABLE,
        auto_rank=1,
        default_slots=OpenVinoOptions().max_batch,
        honours=HONOURS,
        priority_field="priority",
        narrowed=NARROWED,
        tokenizes=True,
        load_path=LOAD_PATH,
        parks=True,
        adapters=True,
        accepts_response_id=True,
        runtime_bytes=RUNTIME_BYTES,
        speculation=frozenset({"prompt_lookup"}),
        package="openvino-genai",
    )

    def find_features(self, machine: Machine) -> frozenset[str]:
        """Those of the processor that `ONEDNN_MAX_CPU_ISA` leaves."""
        return find_features(machine)

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """See `processor.find_default_scheme`."""
        return find_default_scheme(machine)

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """See `processor.find_processor_fault`."""
        return find_processor_fault(artifact, machine)

    def capabilities(self, machine: Machine) -> list[Capability]:
        """Formats and speeds on this processor."""
        fault = _platform_fault(machine)
        if fault:
            return [Capability("every model", False, fault)]
        speed = describe_speed(machine)
        static = find_scheme_fault(SCHEMES, "w8a8", find_features(machine))
        return [
            Capability("decoders from GGUF", True, ", ".join(sorted(GGUF_DECODERS))),
            Capability("decoders from safetensors", True, ", ".join(DECODERS)),
            Capability("encoders from safetensors", True, ", ".join(sorted(ENCODERS))),
            Capability("rerankers from safetensors", True, ", ".join(sorted(RERANKERS))),
            Capability("weights in 8 bits", True, speed),
            Capability("weights in 4 bits", True, speed),
            Capability("weights in 16 bits", True, "computed in float32 or bfloat16"),
            Capability("LoRA adapters", True, "beside a base in 16, 8 or 4 bits"),
            Capability("static 8-bit activations (w8a8)", not static, static or "right here"),
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
        fault = _format_fault(artifact) or find_processor_fault(artifact, machine)
        if fault:
            return [Problem("model", fault)]
        fault = _find_compress_fault(spec, artifact)
        if fault:
            return [Problem("compress", fault)]
        options: OpenVinoOptions = parse_options(self, spec)
        fault = find_context_fault(options, artifact.description.context_length)
        if fault:
            return [Problem("engine.context", fault)]
        fault = find_speculation_fault(options)
        if fault:
            return [Problem("engine.prefix_cache", fault)]
        return self._check_memory(spec, artifact, machine)

    def _check_memory(self, spec: Spec, artifact: Artifact, machine: Machine) -> list[Problem]:
        options: OpenVinoOptions = parse_options(self, spec)
        free = available_memory_bytes()
        copies = spec.replicas.count
        scheme = _choose_scheme(spec, artifact, machine)
        per_weight = SCHEMES.get(scheme, SCHEMES["none"]).bytes_per_weight
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

            scheme = _choose_scheme(spec, artifact, machine)
            if spec.compress.quantize.scheme == "auto":
                # An adapter shares the prepared base with it, so it takes what the base takes.
                adapted = artifact.description.format is Format.ADAPTER
                measured = load_base(store, artifact) if adapted else artifact
                scheme = choose_scheme(self, store, measured, machine).scheme
            version, artifact = prepare_model(store, version, artifact, scheme, on_progress)
        note = read_note(store.folder_of(artifact.id))
        options = resolve(parse_options(self, spec), note).model_dump()
        relevant = {k: v for k, v in options.items() if k not in CAPACITY}
        text = json.dumps([artifact.id, self.kind, relevant], sort_keys=True)
        return Served(
            name=name,
            engine=self.kind,
            version=version.label,
            revision=hashlib.sha256(text.encode()).hexdigest()[:12],
            family=artifact.description.family.value,
            artifact=artifact.id,
            options=options,
            context_length=options["context"],
            upstream=Upstream(priority_field=self.traits.priority_field),
        )

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """The graph of a checkpoint, if it was built; a graph is its own."""
        from thrifty.engines.openvino.prepare import make_recipe

        if artifact.description.format is Format.OPENVINO:
            return artifact
        made = store.find_made(artifact.id, make_recipe(scheme))
        return made[1] if made is not None else None

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """`python -m thrifty.engines.openvino`. Raises `EngineError`."""
        assert served.artifact is not None
        artifact = store.load(served.artifact)
        weights = artifact.description.weights or "none"
        fault = find_processor_fault(artifact, detect_machine())
        if fault:
            raise EngineError(fault)
        folder = store.folder_of(served.artifact)
        note = read_note(folder)
        # Resolved values are not held to the bounds of what users may write: a small model has a
        # shorter context.
        options = OpenVinoOptions.model_construct(**served.options)
        settings = Settings(
            folder=str(folder),
            family=served.family,
            threads=len(cores),
            values=dict(served.options),
            kv_blocks=_count_kv_blocks(served.family, options, note, memory_share),
            eos_token_ids=tuple(note.get("eos_token_ids", ())),
            smaller_sizes=tuple(note.get("smaller_sizes", ())),
            lora=find_lora(folder),
            needs_exact_sums=bool(SCHEMES.get(weights, SCHEMES["none"]).needs_one_of),
        )
        text = json.dumps(
            {"name": served.name, "port": port, "worker": msgspec.to_builtins(settings)}
        )
        return Launch([sys.executable, "-m", "thrifty.engines.openvino", text], ENVIRONMENT)

    def find_slots(self, served: Served) -> int | None:
        """What its scheduler takes into one step; models that generate nothing have no such limit."""
        return int(served.options["max_batch"]) if served.family == Family.DECODER else None

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when it has generated a token."""
        return await probe_generation(url, served, deep=deep)

    async def read_load(self, url: str) -> EngineLoad:
        """From the server's `/load`."""
        return await read_server_load(url)

    async def park(self, url: str) -> None:
        """See `engines.server.memory`."""
        await park_server(url)


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
    if sum(entry.path.endswith(".gguf") for entry in artifact.files) > 1:
        return (
            "GGUF files in several parts are served by the engine 'llamacpp'; use that engine, or join "
            "them (llama-gguf-split --merge)"
        )
    if description.format is Format.OPENVINO:
        if any(entry.path == OPENVINO_NOTE for entry in artifact.files):
            return None
        return (
            f"this OpenVINO model was not prepared by Thrifty (it has no {OPENVINO_NOTE}); name "
            "the checkpoint that it was made from, as safetensors or GGUF"
        )
    known = KNOWN[description.family]
    if description.format in (Format.SAFETENSORS, Format.ADAPTER) and name not in known:
        return (
            f"models of the architecture {name!r} cannot be served by the engine 'openvino'; "
            f"these can: {', '.join(sorted(known))}"
        )
    return None


def _find_compress_fault(spec: Spec, artifact: Artifact) -> str | None:
    """Why a model that was prepared before cannot have the weights that the spec asks for. `auto` and
    `none` ask for nothing of it.
    """
    wanted, there = spec.compress.quantize.scheme, artifact.description.weights or "f16"
    if artifact.description.format is not Format.OPENVINO or wanted in ("auto", "none", there):
        return None
    return (
        f"asks for {wanted}, and the model {spec.model} is already prepared, with weights in {there}; "
        "name the checkpoint that it was made from (thrifty models), or leave 'compress' out"
    )


def _choose_scheme(spec: Spec, artifact: Artifact, machine: Machine) -> str:
    """The scheme of a prepared model's weights, or that in which they will be prepared here."""
    if artifact.description.format is Format.OPENVINO:
        return artifact.description.weights or "none"
    wanted: str = spec.compress.quantize.scheme
    if wanted == "auto":
        wanted = find_default_scheme(machine).scheme
    return choose_runnable(SCHEMES, wanted, find_features(machine))


def _count_kv_blocks(
    family: str, options: OpenVinoOptions, note: dict[str, Any], memory_share: float
) -> int:
    """How many blocks of KV cache a replica gets. Raises `EngineError` where they hold too little
    to work with.
    """
    per_token = int(note.get("kv_bytes_per_token", 0))
    if family != Family.DECODER or not per_token:
        return 0
    if options.kv_precision != "u8":
        per_token = round(per_token * 1.7)
    assert options.context is not None
    context_bytes = options.context * per_token
    given = float(options.kv_cache or 0)
    if options.kv_cache is None:
        free = available_memory_bytes() * memory_share
        given = min(free * AUTO_KV_SHARE, AUTO_KV_CONTEXTS * context_bytes)
        given = max(given, min(context_bytes, free * 0.8))
    blocks = int(given // (per_token * BLOCK_TOKENS))
    if blocks * BLOCK_TOKENS < min(options.context, 512):
        raise EngineError(
            f"a KV cache of {format_bytes(given)} holds {blocks * BLOCK_TOKENS} tokens of this "
            f"model, too few to work with; give it at least {format_bytes(512 * per_token)} "
            "(engine.kv_cache), or a shorter engine.context"
        )
    return blocks


def find_lora(folder: Path) -> tuple[str, float] | None:
    """The file of the adapter that the model in `folder` is served with, and its scale."""
    own = folder / ADAPTER_FOLDER
    return (str(own / ADAPTER_WEIGHTS), read_config(own)[1]) if own.is_dir() else None


def read_note(folder: Path) -> dict[str, Any]:
    """What preparation recorded about the model in `folder`."""
    return read_json(folder / OPENVINO_NOTE)
