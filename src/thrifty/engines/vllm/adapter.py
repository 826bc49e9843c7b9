"""The vLLM engine's adapter."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.bases import find_base, load_base
from thrifty.artifacts.checkpoint import GGUF_DECODERS
from thrifty.artifacts.inspect import read_json
from thrifty.artifacts.look_only import NotMadeYet
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Launch,
    SchemeDefault,
    Served,
    Traits,
    Upstream,
    WeightScheme,
    check_options,
    parse_options,
)
from thrifty.engines.machine import Machine, available_memory_bytes
from thrifty.engines.plain_checkpoint import RECIPE as PLAIN
from thrifty.engines.probe import LOAD_PATH, park_server, probe_generation, read_server_load
from thrifty.engines.server import ENVIRONMENT
from thrifty.engines.server.narrowed import DECODER_FIELDS, NARROWED
from thrifty.engines.vllm.backend import Settings
from thrifty.engines.vllm.command_line import (
    LORA_RANKS,
    MODULE,
    build_arguments,
    build_environment,
)
from thrifty.engines.vllm.facts import (
    count_kv_bytes,
    find_kv_fault,
    read_ends,
    read_lora,
)
from thrifty.engines.vllm.options import CAPACITY, TUNABLE, VllmOptions
from thrifty.engines.vllm.packages import (
    ask_version,
    find_environment,
    find_given_python,
    find_platform_fault,
    find_version,
    has_gpu,
    read_known,
)
from thrifty.errors import EngineError, Problem, ThriftyError
from thrifty.home import find_home
from thrifty.spec import Spec
from thrifty.types import Family, Format, OnProgress
from thrifty.units import format_bytes

HONOURS = DECODER_FIELDS | {"cache_salt", "logit_bias"}
GPU_OPTIONS = ("memory_share", "quantization", "tensor_parallel", "sleep")
"""Options that need a GPU."""
RUNTIME_BYTES = 2_500_000_000
"""Memory of a replica on a processor beyond weights and KV cache: three processes with PyTorch."""
GPU_MEMORY_SHARE = 0.9


def _find_absence() -> str | None:
    """Why `auto` leaves it out: it takes gigabytes, which nobody asked for."""
    environment = find_environment(find_home())
    if environment.installed or find_given_python() is not None:
        return None
    return f"it is not installed: thrifty engines install vllm ({environment.say_size()})"


class VllmEngine:
    """Serves decoders by vLLM, on NVIDIA GPUs or on processors, in an environment of its own."""

    kind = "vllm"
    options = VllmOptions
    traits = Traits(
        formats=frozenset({Format.SAFETENSORS, Format.GGUF, Format.ADAPTER}),
        families=frozenset({Family.DECODER}),
        schemes={"none": WeightScheme(2.0)},
        auto_schemes=("none",),
        auto_rank=3,
        find_absence=_find_absence,
        adapters=True,
        speculation=frozenset({"prompt_lookup", "draft"}),
        tunable=TUNABLE,
        default_slots=VllmOptions().max_batch,
        honours=HONOURS,
        narrowed=NARROWED,
        salt_field="cache_salt",
        priority_field="priority",
        tokenizes=True,
        load_path=LOAD_PATH,
        accepts_response_id=True,
        parks=True,
        local_options=frozenset({"python", "lora", "draft_model"}),
        runtime_bytes=RUNTIME_BYTES,
        count_gpus=lambda options: int(options.get("tensor_parallel") or 1),
        package="vllm",
        pinned_version=read_known()["version"],
        find_environment=find_environment,
    )

    def find_features(self, machine: Machine) -> frozenset[str]:
        """All: vLLM finds out for itself what there is."""
        return machine.features

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """The weights stay as the checkpoint has them."""
        return SchemeDefault("none", "vLLM loads checkpoints as they are, quantized ones too")

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """Never any that is known before vLLM loads the model."""
        return None

    def capabilities(self, machine: Machine) -> list[Capability]:
        """What is installed, and what this machine lets it do."""
        fault = find_platform_fault(machine)
        if fault:
            return [Capability("every model", False, fault)]
        gpu = has_gpu()
        version = find_version(find_home())
        known = read_known()
        device = "NVIDIA GPUs" if gpu else "processors"
        size = find_environment(find_home()).say_size()
        installed = f"vLLM {version} for {device}" if version else (
            f"not installed: thrifty engines install vllm ({size}), or name an interpreter in "
            "engine.python"
        )  # fmt: skip
        needs = "right here" if gpu else "needs an NVIDIA GPU, and there is none"
        return [
            Capability("its environment", version is not None, installed),
            Capability(
                "decoders from safetensors", True,
                f"{len(known['architectures'])} architectures, quantized ones too",
            ),
            Capability("decoders from GGUF", True, "converted to 16 bits once"),
            Capability("LoRA adapters", True, f"beside their base, of a rank up to {LORA_RANKS[-1]}"),
            Capability("encoders and rerankers", False, "the engine 'openvino' serves them"),
            Capability("tensor parallelism", gpu, needs),
            Capability("sleep and wake", gpu, needs),
            Capability("rounding to fp8 when loaded", gpu, needs),
        ]  # fmt: skip

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Whether this model, with these options, can run here."""
        problems = check_options(self, spec)
        elsewhere = spec.engine.image is not None
        fault = None if elsewhere else find_platform_fault(machine)
        if fault:
            problems.append(Problem("engine", fault))
        if problems:
            return problems
        options: VllmOptions = parse_options(self, spec)
        problems = [] if elsewhere else _check_options(options)
        gpus = spec.replicas.gpus
        if gpus is not None and options.tensor_parallel > gpus:
            message = f"spreads each copy over more GPUs than 'replicas.gpus' gives it ({gpus})"
            problems.append(Problem("engine.tensor_parallel", message))
        if spec.replicas.standby == "parked" and not options.sleep:
            problems.append(
                Problem(
                    "replicas.standby",
                    "vLLM gives back memory only with 'engine.sleep: true', which needs an NVIDIA GPU; "
                    "without one, let the last copy be stopped",
                )
            )
        if artifact is None or problems:
            return problems
        fault = _find_model_fault(artifact, options)
        if fault:
            return [Problem("model", fault)]
        scheme = spec.compress.quantize.scheme
        if scheme not in ("auto", "none"):
            return [
                Problem(
                    "compress",
                    f"{scheme} is a form that vLLM does not make when it prepares a model; make one of "
                    "its own first (thrifty quantize MODEL --scheme vllm-w8a8), or leave 'compress' "
                    "out",
                )
            ]
        limit = artifact.description.context_length
        if options.context is not None and limit and options.context > limit:
            return [
                Problem(
                    "engine.context",
                    f"{options.context} tokens are asked for, and the model was made for at most "
                    f"{limit}; ask for no more than that",
                )
            ]
        return [] if elsewhere or has_gpu() else _check_memory(spec, options, artifact)

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Install vLLM where that is needed (an image holds it already), and convert a GGUF to a checkpoint, each once."""
        from thrifty.engines.plain_checkpoint import make_plain

        if model is None:
            raise EngineError("the engine 'vllm' needs a model")
        options: VllmOptions = parse_options(self, spec)
        version, artifact = model
        name = spec.name or version.name
        elsewhere = spec.engine.image is not None
        if options.python is not None and not elsewhere:
            ask_version(Path(options.python))
        elif find_given_python() is None and not elsewhere:
            find_environment(find_home()).install_for(store, on_progress)
        if artifact.description.format is Format.ADAPTER:
            read_lora(store.folder_of(artifact.id))
            make_plain(store, *find_base(store, artifact), on_progress)
        else:
            version, artifact = make_plain(store, version, artifact, on_progress)
        if not store.has(artifact.id):
            raise NotMadeYet(None)  # a plan for a model that is not fetched yet
        context = options.context or artifact.description.context_length or None
        draft = None
        if options.draft_model is not None:
            draft = _find_draft(store, options.draft_model, artifact, on_progress)
        # `draft_model` becomes an artifact's id: names may move to other versions.
        given = {**options.model_dump(), "context": context, "draft_model": draft}
        if options.speculation == "auto":
            given |= {"speculation": "none", "draft_model": None}
        relevant: dict[str, Any] = {k: v for k, v in given.items() if k not in CAPACITY}
        if options.lora is not None:
            relevant["lora"] = read_lora(Path(options.lora)).sha256
        text = json.dumps([artifact.id, self.kind, relevant], sort_keys=True)
        return Served(
            name=name,
            engine=self.kind,
            version=version.label,
            revision=hashlib.sha256(text.encode()).hexdigest()[:12],
            family=artifact.description.family.value,
            artifact=artifact.id,
            options=given,
            context_length=context,
            upstream=Upstream(
                salt_field=self.traits.salt_field, priority_field=self.traits.priority_field
            ),
        )

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """A checkpoint is its own, and so is an adapter."""
        own = (Format.SAFETENSORS, Format.ADAPTER)
        return artifact if artifact.description.format in own else None

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """`python -m thrifty.engines.vllm`. Raises `EngineError`."""
        assert served.artifact is not None
        options = VllmOptions.model_construct(**served.options)
        folder, lora = _find_folders(store, served.artifact, options)
        python = _find_python(options)
        draft = store.folder_of(options.draft_model) if options.draft_model else None
        kv_bytes, share = options.kv_cache, None
        if has_gpu():
            share = options.memory_share or GPU_MEMORY_SHARE * memory_share
        elif kv_bytes is None:
            free = available_memory_bytes() * memory_share
            kv_bytes = count_kv_bytes(folder, options.context or 0, free)
        arguments = build_arguments(
            options, folder, kv_bytes=kv_bytes, memory_share=share, draft=draft,
            lora=(lora, read_lora(lora).rank) if lora else None,
        )  # fmt: skip
        settings = Settings(
            command=(str(python), "-m", MODULE, *arguments),
            environment=build_environment(
                find_home().root / "engines" / "vllm" / "cache", cores, sleep=options.sleep
            ),
            eos_token_ids=read_ends(folder),
            adapter=lora is not None,
            sleeps=options.sleep,
        )
        given = {
            "name": served.name,
            "port": port,
            "tokenizer": str(folder),
            "vllm": msgspec.to_builtins(settings),
        }
        command = [sys.executable, "-m", "thrifty.engines.vllm", json.dumps(given)]
        return Launch(command, ENVIRONMENT)

    def find_slots(self, served: Served) -> int | None:
        """What its scheduler takes into one step."""
        return int(served.options["max_batch"])

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when it has generated a token."""
        return await probe_generation(url, served, deep=deep)

    async def park(self, url: str) -> None:
        """See `VllmBackend.park`."""
        await park_server(url)

    async def read_load(self, url: str) -> EngineLoad:
        """From the server's `/load`."""
        return await read_server_load(url)


def _find_folders(store: Store, artifact_id: str, options: VllmOptions) -> tuple[Path, Path | None]:
    """The folders of the checkpoint, and of the adapter if answers are given with one."""
    artifact = store.load(artifact_id)
    if artifact.description.format is not Format.ADAPTER:
        return store.folder_of(artifact_id), Path(options.lora) if options.lora else None
    base = load_base(store, artifact)
    if base.description.format is not Format.SAFETENSORS:
        made = store.find_made(base.id, PLAIN)
        if made is None:
            raise EngineError(
                f"the checkpoint that was made of {base.id} is not in the store any more; prepare the "
                "model again (thrifty apply)"
            )
        base = made[1]
    return store.folder_of(base.id), store.folder_of(artifact.id)


def _find_python(options: VllmOptions) -> Path:
    """The interpreter that has vLLM. Raises `EngineError`."""
    given = options.python or find_given_python()
    if given is not None:
        return Path(given)
    environment = find_environment(find_home())
    if not environment.installed:
        raise EngineError(
            "vLLM is not installed (any more); install it: thrifty engines install vllm "
            f"({environment.say_size()}). In a container, take an image that holds it "
            "(docs/deploy/image.md)"
        )
    return environment.python


def _check_options(options: VllmOptions) -> list[Problem]:
    problems = []
    if options.python is not None:
        try:
            ask_version(Path(options.python))
        except EngineError as error:
            problems.append(Problem("engine.python", str(error).removeprefix("engine.python: ")))
    if not has_gpu():
        default = VllmOptions()
        for name in GPU_OPTIONS:
            if getattr(options, name) != getattr(default, name):
                problems.append(
                    Problem(f"engine.{name}", "needs an NVIDIA GPU, and this machine has none")
                )
    if options.lora is not None:
        try:
            read_lora(Path(options.lora))
        except ThriftyError as error:
            problems.append(Problem("engine.lora", str(error)))
    return problems


def _find_model_fault(artifact: Artifact, options: VllmOptions) -> str | None:
    description = artifact.description
    name = description.architecture
    if description.family is not Family.DECODER:
        return f"it is {description.family.with_article}; the engine 'openvino' serves those"
    if description.format is Format.ADAPTER and options.lora is not None:
        return (
            "it is an adapter, and engine.lora names another one, and answers are given with one; "
            "leave engine.lora out"
        )
    if description.format is Format.OPENVINO:
        return (
            "it is prepared for OpenVINO already; name the checkpoint that it was made from "
            "(thrifty models)"
        )
    if description.format is Format.GGUF:
        if name in GGUF_DECODERS:
            return None
        return (
            f"GGUF files of the architecture {name!r} cannot be converted for vLLM; use the model's "
            "safetensors, or the engine 'llamacpp'"
        )
    known = read_known()
    # Another vLLM than the pinned one may know others.
    if options.python is None and name not in known["architectures"]:
        return f"vLLM {known['version']} does not know models of the architecture {name!r}"
    # A model that is not in the store yet has no files that are known.
    if artifact.files and not any(entry.path == "tokenizer.json" for entry in artifact.files):
        return "the checkpoint has no tokenizer.json; save its fast tokenizer with it"
    return None


def _check_memory(spec: Spec, options: VllmOptions, artifact: Artifact) -> list[Problem]:
    free, copies = available_memory_bytes(), spec.replicas.count
    description = artifact.description
    weights = artifact.size_bytes
    if description.format in (Format.GGUF, Format.ADAPTER):
        weights = 2 * description.parameters
    fixed = copies * (weights + RUNTIME_BYTES)
    if fixed > free:
        return [
            Problem(
                "replicas.count",
                f"{copies} copies of vLLM need about {format_bytes(fixed)} for weights and libraries, "
                f"and {format_bytes(free)} are free; use fewer copies or a smaller model",
            )
        ]
    fault = find_kv_fault(options.kv_cache, copies, free - fixed)
    return [Problem("engine.kv_cache", fault)] if fault else []


def _find_draft(store: Store, name: str, model: Artifact, on_progress: OnProgress) -> str:
    """The artifact of the checkpoint of the model that guesses for `model`. Raises `ThriftyError`."""
    from thrifty.engines.plain_checkpoint import make_plain

    version, artifact = store.find(name)
    _, plain = make_plain(store, version, artifact, on_progress)
    if _read_tokens(store, plain) != _read_tokens(store, model):
        raise EngineError(
            f"engine.draft_model: {name} has another vocabulary than the model; name one of the same "
            "family, and with as many tokens"
        )
    return plain.id


def _read_tokens(store: Store, artifact: Artifact) -> Any:
    """The vocabulary of a checkpoint, and the tokens that are added to it."""
    plan = read_json(store.folder_of(artifact.id) / "tokenizer.json")
    added = {one["content"]: one["id"] for one in plan.get("added_tokens") or ()}
    return plan["model"].get("vocab"), added
