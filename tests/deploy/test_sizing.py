"""How much memory a replica is given: what its engine keeps for tokens counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prepare import MODEL, put
from thrifty.artifacts import Artifact, Lineage, Store
from thrifty.deploy.service import DeployedVersion, make_service
from thrifty.deploy.sizing import find_need
from thrifty.engines.base import DEFAULT_KV_BYTES, count_kv_bytes
from thrifty.engines.registry import find_engine
from thrifty.spec.load import parse_spec

LONG = dataclasses.replace(MODEL, context=1 << 20)
PER_TOKEN = 2 * LONG.layers * LONG.kv_heads * LONG.head_dim * 2


REQUESTED = "hf:org/tiny"


def put_requested(store: Store) -> Artifact:
    """The model as if it had been fetched from the hub."""
    with store.stage("tiny") as stage:
        folder = LONG.write_safetensors(stage / "model")
        return store.add(folder, "tiny", Lineage(requested=REQUESTED))[1]


def make_version(model: str, **engine: Any) -> DeployedVersion:
    spec = {"name": "chat", "model": model, "engine": {"kind": "llamacpp", **engine}}
    return make_service(parse_spec(spec)).own_versions[0]


@pytest.mark.parametrize(("slots", "context"), [(4, 4096), (16, 1 << 20)])
def test_llamacpps_slots_reserve_their_contexts(tmp_path: Path, slots: int, context: int) -> None:
    store = Store(tmp_path)
    artifact = put_requested(store)
    needs = [
        find_need(make_version(REQUESTED, slots=n, context=context), store, None, 1)
        for n in (1, slots)
    ]
    more = (slots - 1) * context * PER_TOKEN
    found = needs[1].memory_bytes - needs[0].memory_bytes
    assert abs(found - more) <= 256 << 20, "by steps of 128 MiB"
    engine = find_engine("llamacpp")
    for precision, share in (("f16", 1.0), ("q8_0", 17 / 32), ("q4_0", 9 / 32)):
        options = {"slots": slots, "context": context, "kv_precision": precision}
        assert count_kv_bytes(engine, options, artifact, store) == round(
            slots * context * PER_TOKEN * share
        )


@pytest.mark.parametrize("kind", ["openvino", "vllm"])
def test_other_engines_take_what_is_said_or_what_is_left(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    _, artifact = put(store, LONG)
    engine = find_engine(kind)
    assert count_kv_bytes(engine, {"kv_cache": 1 << 30}, artifact, store) == 1 << 30
    assert count_kv_bytes(engine, {"kv_cache": None}, artifact, store) == DEFAULT_KV_BYTES
