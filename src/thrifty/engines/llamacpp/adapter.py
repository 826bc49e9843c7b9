"""The llama.cpp engine's adapter."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DECODERS, load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.inspect import find_ggufs, read_json
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Launch,
    SchemeDefault,
    Served,
    Traits,
    Upstream,
    check_options,
    parse_options,
)
from thrifty.engines.llamacpp import packages
from thrifty.engines.llamacpp.options import (
    AUTO_SCHEMES,
    CAPACITY,
    DEFAULT_CONTEXT,
    DEFAULT_SLOTS,
    KV_BYTES,
    LOSSY_SCHEMES,
    SCHEMES,
    TUNABLE,
    LlamaCppOptions,
    find_context_fault,
    resolve,
)
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.engines.machine import Machine, available_memory_bytes
from thrifty.engines.probe import LOAD_PATH, probe_generation, read_server_load
from thrifty.engines.scheme_choice import choose_scheme
from thrifty.engines.server import ENVIRONMENT
from thrifty.engines.server.narrowed import (
    DECODER_FIELDS,
    ENCODER_FIELDS,
    NARROWED,
    RERANKER_FIELDS,
)
from thrifty.errors import EngineError, Problem
from thrifty.home import Home, find_home
from thrifty.spec import Spec
from thrifty.types import Family, Format, OnProgress
from thrifty.units import format_bytes

HONOURS = DECODER_FIELDS | ENCODER_FIELDS | RERANKER_FIELDS | {"logit_bias"}
NOTE = "llamacpp.json"
RUNTIME_BYTES = 250_000_000
"""Memory of a replica beyond weights and KV cache: two processes, libraries and buffers."""
_ADVICE = (
    "ask for fewer slots (engine.slots), shorter ones (engine.context) or smaller ones "
    "(engine.kv_precision: q8_0)"
)
QUANTIZED = ("q2", "q3", "q4", "q5", "q6", "iq", "tq", "mxfp4", "nvfp4", "q1")
"""How the names of GGUF's types with fewer than 8 bits begin."""


def _find_install() -> str | None:
    """What `prepare` installs first."""
    home = find_home()
    if packages.find_python(home) is not None:
        return None
    size = packages.find_environment(home).say_size()
    return f"llama.cpp is installed first ({size}); where that fails, the rest is measured"


def _find_kv_bytes(options: Mapping[str, Any], artifact: Artifact, store: Store) -> int | None:
    """See `Traits.find_kv_bytes`: each slot reserves the whole of its context, and prompts are saved."""
    values = _find_kv_values(artifact, store)
    if values is None:
        return None
    given = LlamaCppOptions.model_construct(**options)
    limit = artifact.description.context_length or DEFAULT_CONTEXT
    context = given.context or min(limit, DEFAULT_CONTEXT)
    note = {"kv_values_per_token": values}
    slots = given.model_copy(update={"context": context})
    return _count_kv_bytes(slots, note) + int(given.saved_prompts)


def _find_kv_values(artifact: Artifact, store: Store) -> int | None:
    """How many numbers a token takes in the KV cache, by the model's files; None where that is not
    known.
    """
    if not store.has(artifact.id) or artifact.description.family is not Family.DECODER:
        return None
    folder = store.folder_of(artifact.id)
    if _is_prepared(artifact):
        return int(read_json(folder / NOTE)["kv_values_per_token"])
    if artifact.description.format is Format.GGUF:
        from thrifty.engines.llamacpp.prepare import count_kv_values

        return count_kv_values(GgufFile(find_ggufs(folder)[0]))
    if artifact.description.format in (Format.SAFETENSORS, Format.ADAPTER):
        return load_decoder(folder).shape.kv_values_per_token
    return None


class LlamaCppEngine:
    """Serves decoders, and encoders and rerankers from GGUF, on CPUs."""

    kind = "llamacpp"
    options = LlamaCppOptions
    traits = Traits(
        formats=frozenset({Format.GGUF, Format.SAFETENSORS, Format.ADAPTER}),
        families=frozenset(Family),
        schemes=SCHEMES,
        auto_schemes=AUTO_SCHEMES,
        lossy_schemes=LOSSY_SCHEMES,
        auto_rank=2,
        find_install=_find_install,
        speculation=frozenset({"prompt_lookup", "draft"}),
        tunable=TUNABLE,
        default_slots=DEFAULT_SLOTS,
        honours=HONOURS,
        priority_field="priority",
        narrowed=NARROWED,
        tokenizes=True,
        load_path=LOAD_PATH,
        accepts_response_id=True,
        find_kv_bytes=_find_kv_bytes,
        local_options=frozenset({"draft_model"}),
        runtime_bytes=RUNTIME_BYTES,
        package=packages.PACKAGE,
        pinned_version=packages.VERSION,
        find_environment=packages.find_environment,
    )

    def find_features(self, machine: Machine) -> frozenset[str]:
        """llama.cpp's wheel uses AVX2 or NEON, and nothing newer."""
        return machine.features & {"avx2", "asimd"}

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """8 bits: half the memory, and faster with few streams."""
        return SchemeDefault("int8", "not measured here; usually faster than 16 bits")

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """Its weights are computed alike on every processor that it runs on."""
        return None

    def capabilities(self, machine: Machine) -> list[Capability]:
        """What it loads, and whether llama.cpp is installed."""
        fault = _platform_fault(machine)
        if fault:
            return [Capability("every model", False, fault)]
        home = find_home()
        environment = packages.find_environment(home)
        there = packages.find_python(home) is not None
        state = f"xllamacpp {packages.VERSION}"
        if not there:
            state += f", installed on first use: {environment.say_size()}"
        return [
            Capability("llama.cpp", True, state),
            Capability("decoders from GGUF", True, "every architecture that llama.cpp has"),
            Capability("decoders from safetensors", True, ", ".join(DECODERS)),
            Capability("weights in 8 bits", True, "Q8_0"),
            Capability("weights in 4 bits", True, "Q4_0"),
            Capability("speculation", True, "prompt look-up, or a draft model"),
            Capability("encoders from GGUF", True, "those that pool the tokens of a text"),
            Capability("rerankers from GGUF", True, "those without kinds of segments"),
            Capability(
                "encoders and rerankers from safetensors", False, "served by the engine 'openvino'"
            ),
        ]

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Whether this model, in this form, with these options, can run here."""
        problems = check_options(self, spec)
        fault = _platform_fault(machine)
        if fault:
            problems.append(Problem("engine", fault))
        if problems:
            return problems
        options: LlamaCppOptions = parse_options(self, spec)
        if options.speculation != "auto" and (options.speculation == "draft") != (
            options.draft_model is not None
        ):
            return [
                Problem(
                    "engine.draft_model",
                    "belongs to speculation: draft; give both of them or neither",
                )
            ]
        if artifact is None:
            return []
        family = artifact.description.family
        if family is not Family.DECODER and options.speculation not in ("none", "auto"):
            message = f"guesses tokens, and {family.with_article} generates none; leave it out"
            return [Problem("engine.speculation", message)]
        fault = _find_model_fault(artifact)
        if fault:
            return [Problem("model", fault)]
        fault = _find_compress_fault(spec, artifact)
        if fault:
            return [Problem("compress", fault)]
        fault = find_context_fault(options, artifact.description.context_length)
        if fault:
            return [Problem("engine.context", fault)]
        return _check_memory(spec, artifact)

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Install llama.cpp if it is missing, and make the model ready, unless that was done before."""
        if model is None:
            raise EngineError("the engine 'llamacpp' needs a model")
        from thrifty.engines.llamacpp.prepare import prepare_model

        version, artifact = model
        name = spec.name or version.name
        options: LlamaCppOptions = parse_options(self, spec)
        home = _home_of(store)
        python = packages.install(home, store, on_progress)
        if not packages.knows_architecture(home, _gguf_architecture(artifact)):
            raise EngineError(
                f"llama.cpp (xllamacpp {packages.VERSION}) has no models of the architecture "
                f"{artifact.description.architecture!r}; {version.label} may need a newer Thrifty"
            )
        if not _is_prepared(artifact):
            scheme = _choose_scheme(spec, artifact)
            if scheme == "auto":
                scheme = choose_scheme(self, store, artifact, machine).scheme
            version, artifact = prepare_model(
                store, version, artifact, scheme, python, machine.core_count, on_progress
            )
        note = read_json(store.folder_of(artifact.id) / NOTE)
        values = resolve(options, int(note["context_length"])).model_dump()
        _check_kv_cache(LlamaCppOptions.model_construct(**values), note, spec, machine)
        if options.draft_model is not None:
            values["draft_model"] = _find_draft(options.draft_model, artifact, store)
        relevant = {k: v for k, v in values.items() if k not in CAPACITY}
        text = json.dumps([artifact.id, self.kind, packages.VERSION, relevant], sort_keys=True)
        return Served(
            name=name,
            engine=self.kind,
            version=version.label,
            revision=hashlib.sha256(text.encode()).hexdigest()[:12],
            family=artifact.description.family.value,
            artifact=artifact.id,
            options=values,
            context_length=values["context"],
            upstream=Upstream(priority_field=self.traits.priority_field),
        )

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """What was made of a checkpoint; what is prepared is its own."""
        from thrifty.engines.llamacpp.prepare import make_recipe

        if _is_prepared(artifact):
            return artifact
        made = store.find_made(artifact.id, make_recipe(scheme))
        return made[1] if made is not None else None

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """`python -m thrifty.engines.llamacpp`. Raises `EngineError`."""
        assert served.artifact is not None
        home = _home_of(store)
        python = packages.find_python(home)
        if python is None:
            environment = packages.find_environment(home)
            raise EngineError(
                f"llama.cpp is not installed in {environment.folder}; prepare the model again "
                "(thrifty apply), which installs it. In a container, take an image that holds it "
                "(docs/deploy/image.md)"
            )
        folder = store.folder_of(served.artifact)
        options = LlamaCppOptions.model_construct(**served.options)
        assert options.context is not None
        note = read_json(folder / NOTE)
        kv_bytes, free = _count_kv_bytes(options, note), available_memory_bytes()
        if kv_bytes > free:
            raise EngineError(
                f"{options.slots} slots of {options.context} tokens need {format_bytes(kv_bytes)} of KV "
                f"cache, and {format_bytes(free)} are free; {_ADVICE}"
            )
        draft = options.draft_model
        worker = WorkerSettings(
            model=str(find_ggufs(folder)[0]),
            threads=len(cores),
            slots=options.slots,
            context=options.context,
            chunk=options.prefill_chunk,
            kv_precision=options.kv_precision,
            prefix_cache=options.prefix_cache,
            saved_prompts_mb=int(options.saved_prompts // 1_000_000),
            speculation=options.speculation,
            lookup_match=options.lookup_match,
            draft_tokens=options.draft_tokens,
            draft_model=str(find_ggufs(store.folder_of(draft))[0]) if draft else "",
            embeds=served.family == Family.ENCODER,
            ranks=served.family == Family.RERANKER,
        )
        settings = {
            "name": served.name,
            "port": port,
            "python": str(python),
            "folder": str(folder),
            "family": served.family,
            "eos_token_ids": note["eos_token_ids"],
            "kv_bytes": kv_bytes,
            "worker": msgspec.to_builtins(worker),
        }
        command = [sys.executable, "-m", "thrifty.engines.llamacpp", json.dumps(settings)]
        return Launch(command, ENVIRONMENT)

    def find_slots(self, served: Served) -> int | None:
        """llama.cpp's slots; texts to embed or to rank are batched without a bound."""
        return int(served.options["slots"]) if served.family == Family.DECODER else None

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when it has generated a token."""
        return await probe_generation(url, served, deep=deep)

    async def read_load(self, url: str) -> EngineLoad:
        """From the server's `/load`."""
        return await read_server_load(url)


def _home_of(store: Store) -> Home:
    """The home that a store is in: engines are installed beside it."""
    return Home(store.root.parent)


def _platform_fault(machine: Machine) -> str | None:
    if machine.system not in ("Linux", "Darwin"):
        return f"there is no wheel of llama.cpp for {machine.system} that Thrifty can start"
    if machine.architecture in ("x86_64", "AMD64"):
        if machine.system == "Linux" and "avx2" not in machine.features:
            return f"the processor ({machine.processor}) has no AVX2, which llama.cpp's wheel needs"
        return None
    if machine.architecture in ("arm64", "aarch64"):
        return None
    return f"there is no wheel of llama.cpp for {machine.architecture}"


def _is_prepared(artifact: Artifact) -> bool:
    return any(entry.path == NOTE for entry in artifact.files)


def _gguf_architecture(artifact: Artifact) -> str:
    name = artifact.description.architecture
    return DECODERS.get(name, name)


def _find_model_fault(artifact: Artifact) -> str | None:
    description = artifact.description
    if description.format is Format.OPENVINO:
        return (
            "this model was prepared for the engine 'openvino'; name the checkpoint that it was made "
            "from (thrifty models), or use that engine"
        )
    if description.family is not Family.DECODER and description.format is Format.SAFETENSORS:
        return (
            f"the engine 'llamacpp' serves {description.family}s from GGUF alone; those from safetensors "
            "are served by the engine 'openvino'"
        )
    if description.format is not Format.GGUF and description.architecture not in DECODERS:
        return (
            f"safetensors of the architecture {description.architecture!r} cannot be written as GGUF; "
            f"these can: {', '.join(sorted(DECODERS))}. Name a GGUF of the model instead"
        )
    return None


def _is_quantized(artifact: Artifact) -> bool:
    """Whether it is a GGUF with fewer than 8 bits a weight."""
    found = artifact.description
    return found.format is Format.GGUF and found.weights.startswith(QUANTIZED)


def _find_compress_fault(spec: Spec, artifact: Artifact) -> str | None:
    """Why the weights cannot have the form that the spec asks for."""
    wanted, there = spec.compress.quantize.scheme, artifact.description.weights
    if wanted in ("auto", "none"):
        return None
    if wanted not in SCHEMES:
        return None  # another check's business
    if _is_prepared(artifact):
        if there == {"int8": "q8_0", "int4": "q4_0"}[wanted]:
            return None
        return (
            f"asks for {wanted}, and the model {spec.model} is already prepared, with weights in "
            f"{there}; name the checkpoint that it was made from (thrifty models), or leave "
            "'compress' out"
        )
    if wanted == "int4" and _is_quantized(artifact):
        return (
            f"asks for int4, and the weights of {spec.model} are already in {there}, so that they "
            "would be rounded twice; serve them as they are (compress: none), or name the model's "
            "checkpoint in 16 bits"
        )
    return None


def _choose_scheme(spec: Spec, artifact: Artifact) -> str:
    """The form in which the weights will be prepared, or `auto` where measurements decide."""
    wanted: str = spec.compress.quantize.scheme
    there = artifact.description.weights
    if wanted == "auto" and (_is_quantized(artifact) or there == "q8_0"):
        return "none"
    if artifact.description.format is Format.GGUF and (wanted, there) == ("int8", "q8_0"):
        return "none"
    return wanted


def _check_memory(spec: Spec, artifact: Artifact) -> list[Problem]:
    """Whether weights and slots fit; the KV cache only where its size is known by now."""
    scheme = _choose_scheme(spec, artifact)
    weights = round(artifact.description.parameters * SCHEMES["int8"].bytes_per_weight)
    if scheme in SCHEMES:
        weights = round(artifact.description.parameters * SCHEMES[scheme].bytes_per_weight)
    if scheme == "none" and artifact.description.format is Format.GGUF:
        weights = artifact.size_bytes
    copies, free = spec.replicas.count, available_memory_bytes()
    fixed = copies * (weights + RUNTIME_BYTES)
    if fixed <= free:
        return []
    return [
        Problem(
            "replicas.count",
            f"{copies} copies need about {format_bytes(fixed)} for weights and libraries, and "
            f"{format_bytes(free)} are free; use fewer copies or smaller weights (compress: int4)",
        )
    ]


def _count_kv_bytes(options: LlamaCppOptions, note: dict[str, Any]) -> int:
    """The size of a replica's KV cache, by the note of its model."""
    assert options.context is not None
    per_token = int(note["kv_values_per_token"]) * KV_BYTES[options.kv_precision]
    return round(options.slots * options.context * per_token)


def _check_kv_cache(
    options: LlamaCppOptions, note: dict[str, Any], spec: Spec, machine: Machine
) -> None:
    """Raise `EngineError` where the KV caches of all replicas are larger than the memory."""
    size, copies = _count_kv_bytes(options, note), spec.replicas.count
    if copies * size > machine.memory_bytes:
        raise EngineError(
            f"{copies} x {options.slots} slots of {options.context} tokens need "
            f"{format_bytes(copies * size)} of KV cache, and this machine has "
            f"{format_bytes(machine.memory_bytes)} of memory; {_ADVICE}"
        )


def _find_draft(label: str, artifact: Artifact, store: Store) -> str:
    """The artifact of the draft model. Raises `EngineError`, `ArtifactError`."""
    _, draft = store.find(label)
    if draft.description.format is not Format.GGUF:
        raise EngineError(
            f"engine.draft_model: {label} is no GGUF but {draft.description.format}; name one that is"
        )
    tokens = [_read_tokens(store, one) for one in (artifact, draft)]
    if tokens[0] != tokens[1]:
        raise EngineError(
            f"engine.draft_model: {label} has another vocabulary than the model; name one of the same "
            "family, and with as many tokens"
        )
    return draft.id


def _read_tokens(store: Store, artifact: Artifact) -> list[str]:
    """The vocabulary of a GGUF."""
    file = GgufFile(find_ggufs(store.folder_of(artifact.id))[0])
    return list(file.metadata.get("tokenizer.ggml.tokens", ()))
