"""The echo engine's adapter."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence

from pydantic import Field

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Launch,
    SchemeDefault,
    Served,
    Traits,
    check_options,
    parse_options,
)
from thrifty.engines.machine import Machine
from thrifty.engines.probe import LOAD_PATH, park_server, probe_generation, read_server_load
from thrifty.engines.server import ENVIRONMENT
from thrifty.engines.server.narrowed import ENCODER_FIELDS, NARROWED, RERANKER_FIELDS
from thrifty.errors import Problem
from thrifty.spec import Spec
from thrifty.spec.section import Count, Duration, Section
from thrifty.types import Family, OnProgress

_HONOURS = (ENCODER_FIELDS | RERANKER_FIELDS) | frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "best_of", "chat_template_kwargs",
        "continue_final_message", "echo", "frequency_penalty", "ignore_eos", "logprobs", "max_completion_tokens", "max_tokens", "messages",
        "min_p", "min_tokens", "n", "parallel_tool_calls", "presence_penalty", "prompt",
        "repetition_penalty", "return_token_strs", "seed", "separate_reasoning", "stop",
        "stop_token_ids", "temperature", "top_k", "top_logprobs", "top_p",
        "truncate_prompt_tokens",
    }
)  # fmt: skip


class EchoOptions(Section):
    """How the echo engine behaves."""

    ttft: Duration = Field(0.0, description="Time to the first token.")
    tpot: Duration = Field(0.0, description="Time for each further token.")
    prefill: Duration = Field(0.0, description="Time for each token of the prompt.")
    slots: Count = Field(1024, ge=1, description="How many answers run at once; the rest wait.")
    context: Count = Field(131_072, ge=16, description="The longest prompt and answer together.")
    cache: Count = Field(
        0, description="How many tokens of the beginnings of prompts it remembers."
    )
    reply: str | None = Field(None, description="Answer this, whatever is asked.")
    load: Duration = Field(0.0, description="Time until a replica is ready.")
    family: Family = Field(
        Family.DECODER,
        description="The kind of model that it stands for: `decoder`, `encoder` or `reranker`.",
    )


class EchoEngine:
    """Answers with the prompt's last line; needs no model."""

    kind = "echo"
    options = EchoOptions
    traits = Traits(
        families=frozenset(Family),
        loads_model=False,
        default_slots=EchoOptions().slots,
        honours=_HONOURS,
        narrowed=NARROWED,
        tokenizes=True,
        load_path=LOAD_PATH,
        parks=True,
        accepts_response_id=True,
    )

    def find_features(self, machine: Machine) -> frozenset[str]:
        """None: it computes nothing."""
        return frozenset()

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """None to choose: it has no weights."""
        return SchemeDefault("none", "this engine loads no model")

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """Never any."""
        return None

    def capabilities(self, machine: Machine) -> list[Capability]:
        """It runs everywhere."""
        return [
            Capability("no model at all", True, "repeats what it is asked; for trying things out")
        ]

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Only its options can be wrong."""
        return check_options(self, spec)

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Nothing to prepare."""
        options = parse_options(self, spec).model_dump(mode="json")
        revision = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
        return Served(
            name=spec.name or "echo",
            engine=self.kind,
            version="echo@v1",
            revision=revision,
            family=options["family"],
            options=options,
            context_length=options["context"],
        )

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """Never any: it loads no model."""
        return None

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """`python -m thrifty.engines.echo`."""
        settings = {"name": served.name, "port": port, "options": served.options}
        command = [sys.executable, "-m", "thrifty.engines.echo", json.dumps(settings)]
        return Launch(command, ENVIRONMENT)

    def find_slots(self, served: Served) -> int | None:
        """As many as it was told."""
        return int(served.options["slots"])

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when it answers."""
        return await probe_generation(url, served, deep=deep)

    async def read_load(self, url: str) -> EngineLoad:
        """From the server's `/load`."""
        return await read_server_load(url)

    async def park(self, url: str) -> None:
        """See `engines.server.memory`."""
        await park_server(url)
