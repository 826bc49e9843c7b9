"""Servers that others run: one or more URLs that speak the OpenAI dialect."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.base import (
    Capability,
    EngineLoad,
    Examined,
    Launch,
    SchemeDefault,
    Served,
    Traits,
    Upstream,
    check_options,
    parse_options,
)
from thrifty.engines.machine import Machine
from thrifty.errors import EngineError, Problem
from thrifty.http.client import HttpClient, TransportError
from thrifty.http.origin import parse_origin
from thrifty.openai.base_urls import complete_url, shorten_url
from thrifty.spec import Spec
from thrifty.spec.section import Section
from thrifty.types import Family, OnProgress

PROBE_TIMEOUT_S = 10.0


class RemoteOptions(Section):
    """Options of the remote engine."""

    urls: tuple[str, ...] = Field(
        min_length=1,
        description="Base URLs: what stands before `/chat/completions`, such as "
        "`http://127.0.0.1:9001/v1` or `https://host/v3`. A URL without a path gets `/v1`.",
    )
    model: str | None = Field(
        None, description="What the servers call the model. Default: the spec's `model`."
    )
    key_env: str | None = Field(
        None,
        description="The environment variable that holds the servers' API key, where the service was "
        "started.",
    )
    salt_field: str | None = Field(
        None,
        pattern=r"^[a-z_]{1,64}$",
        description="The request field that keeps tenants apart in the servers' prefix cache: "
        "`cache_salt` for vLLM. Default: none is sent.",
    )
    priority_field: str | None = Field(
        None,
        pattern=r"^[a-z_]{1,64}$",
        description="The request field by which lines of batches are told to wait for others: "
        "`priority` for vLLM with `--scheduling-policy priority`. Default: none is sent.",
    )
    stream_options: bool = Field(
        True,
        description="Whether token counts are requested for every stream, with `stream_options`. A "
        "server that refuses them is sent none from then on. Token counts are estimated without.",
    )

    on_demand: bool = Field(
        False,
        description="Others start the servers when requests wait, such as a cluster's autoscaler: "
        "where nobody listens, requests wait for `limits.wake_timeout`.",
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parse_origin(url)
        return tuple(shorten_url(url) for url in value)


class RemoteEngine:
    """Uses servers that others run; starts and stops none."""

    kind = "remote"
    options = RemoteOptions
    traits = Traits(families=frozenset(Family), loads_model=False, external=True, load_path="/load")

    def find_features(self, machine: Machine) -> frozenset[str]:
        """None of this machine's."""
        return frozenset()

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """None to choose: it has no weights."""
        return SchemeDefault("none", "this engine loads no model")

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """Never any."""
        return None

    def capabilities(self, machine: Machine) -> list[Capability]:
        """It needs nothing of this machine."""
        return [Capability("any OpenAI-compatible URL", True, "what it can do is up to the server")]

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Its options, and that the key is there."""
        problems = check_options(self, spec)
        if not problems:
            options: RemoteOptions = parse_options(self, spec)
            if options.key_env and not os.environ.get(options.key_env):
                problems.append(
                    Problem(
                        "engine.key_env",
                        f"the environment variable {options.key_env} is not set; put the key in it",
                    )
                )
        return problems

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Nothing to prepare."""
        options: RemoteOptions = parse_options(self, spec)
        upstream = options.model or spec.model
        text = json.dumps([list(options.urls), upstream])
        revision = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Served(
            name=spec.name or upstream.rpartition("/")[2],
            engine=self.kind,
            version=f"remote@{revision[:8]}",
            revision=revision,
            family=Family.DECODER.value,
            upstream=Upstream(
                options.urls,
                upstream,
                options.key_env,
                options.salt_field,
                options.priority_field,
                options.stream_options,
                options.on_demand,
            ),
        )

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """Never any: the servers have their own model."""
        return None

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """Never called: others start these servers. Raises `EngineError`."""
        raise EngineError("remote servers are not started by Thrifty")

    def find_slots(self, served: Served) -> int | None:
        """Not known: others may use the servers too."""
        return None

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Ready when it lists its models, or at least answers."""
        return (await self.examine(url, served)).fault

    async def examine(self, url: str, served: Served) -> Examined:
        """Why a server is not ready, or what its operator should know of it."""
        headers = b""
        key_env = served.upstream.key_env
        if key_env:
            key = os.environ.get(key_env)
            if not key:
                return Examined(
                    fault=f"the environment variable {key_env} is not set where the service runs; "
                    "restart it with the variable: thrifty down, then thrifty up SPEC"
                )
            headers = f"authorization: Bearer {key}\r\n".encode()
        client = HttpClient()
        list_url = f"{complete_url(url)}/models"
        try:
            status, _ = await client.fetch(list_url, headers=headers, timeout_s=PROBE_TIMEOUT_S)
        except TransportError as error:
            return Examined(fault=str(error))
        finally:
            client.close()
        if status in (401, 403):
            return Examined(fault=f"{url} refuses the key ({status}); set engine.key_env")
        if status >= 500:
            return Examined(fault=f"{list_url} answers {status}")
        if status != 200:
            return Examined(
                remark=f"{list_url} answers {status}, no list of models: is the base URL right?"
            )
        return Examined()

    async def read_load(self, url: str) -> EngineLoad:
        """Unknown: there is no common way to ask."""
        return EngineLoad()
