"""What engines declare about themselves, and that nobody else decides by their names."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.artifacts import Store
from thrifty.engines.base import Served, Traits, Upstream
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.machine import FEATURES, detect_machine
from thrifty.engines.openvino.options import CAPACITY, OpenVinoOptions, resolve
from thrifty.engines.registry import choose_engine, engine_kinds, find_engine
from thrifty.engines.server.backend import ModelFacts
from thrifty.engines.server.request import parse_chat, parse_completion
from thrifty.engines.server.rerank import parse_rerank
from thrifty.errors import EngineError
from thrifty.graphs.arithmetic import LIMIT_VARIABLE
from thrifty.spec import load_spec
from thrifty.types import Family, Format, ignore_progress

SOURCE = Path(__file__).parents[2] / "src" / "thrifty"
OUTSIDE = sorted(p for p in SOURCE.rglob("*.py") if "engines" not in p.relative_to(SOURCE).parts)


@pytest.mark.parametrize("kind", engine_kinds())
def test_traits_are_plain_and_consistent(kind: str) -> None:
    engine = find_engine(kind)
    traits = engine.traits
    assert isinstance(traits, Traits)
    assert traits.families
    assert bool(traits.formats) == traits.loads_model
    assert not traits.adapters or Format.ADAPTER in traits.formats
    assert traits.loads_model or not traits.schemes
    for name in (traits.salt_field, traits.priority_field):
        assert name is None or traits.honours is None or name in traits.honours
    for scheme in traits.schemes.values():
        assert scheme.needs_one_of <= set(FEATURES)
        assert bool(scheme.needs_one_of) == bool(scheme.needs_reason)
        if scheme.fallback is not None:
            # Whatever takes the place of a scheme runs on every processor.
            assert not traits.schemes[scheme.fallback].needs_one_of
    assert engine.find_features(detect_machine()) <= detect_machine().features


@pytest.mark.parametrize(
    "kind", [one for one in engine_kinds() if find_engine(one).traits.loads_model]
)
def test_options_that_name_what_is_on_one_machine_are_marked(kind: str) -> None:
    engine = find_engine(kind)
    free = {
        name for name, field in engine.options.model_fields.items()
        if field.annotation in (str, str | None, Path, Path | None)
    }  # fmt: skip
    assert engine.traits.local_options == free


class _Read(dict[str, Any]):
    """A request's body that notes which of its fields are looked at."""

    def __init__(self, fields: dict[str, Any], seen: set[str]) -> None:
        super().__init__(fields)
        self._seen = seen

    def get(self, key: str, default: Any = None) -> Any:
        self._seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._seen.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("kind", [k for k in engine_kinds() if find_engine(k).traits.honours])
def test_engines_honour_no_field_that_nobody_reads(kind: str) -> None:
    seen: set[str] = set()
    tokenizer, facts = make_tokenizer(), ModelFacts(Family.DECODER, 1000, (256,))
    tool = {"type": "function", "function": {"name": "f"}}
    chat = {"messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    parse_chat(_Read(chat, seen), tokenizer, facts)
    parse_completion(_Read({"prompt": "x", "suffix": ""}, seen), tokenizer, facts)
    parse_rerank(_Read({"query": "x", "documents": ["x"]}, seen), tokenizer, facts, "m")
    elsewhere = {
        "input",
        "dimensions",
        "encoding_format",
        "add_special_tokens",
        "return_token_strs",
    }
    honours = find_engine(kind).traits.honours
    assert honours is not None
    assert honours - elsewhere <= seen


def test_auto_takes_only_what_offers_itself() -> None:
    assert choose_engine("auto", None).traits.auto_rank is not None
    assert find_engine("remote").traits.auto_rank is None
    with pytest.raises(EngineError, match="there is no engine 'nothing'"):
        choose_engine("nothing", None)


def test_what_is_served_survives_json() -> None:
    spec = load_spec(flags={"engine.kind": "echo", "engine.tpot": "2ms"}).spec
    served = find_engine("echo").prepare(
        spec, None, Store(Path("/none")), detect_machine(), ignore_progress
    )
    assert Served.from_json(served.to_json()) == served
    remote = Served("m", "remote", "v", "r", "decoder", upstream=Upstream(("http://x",), "y"))
    assert Served.from_json(remote.to_json()) == remote
    assert set(json.loads(remote.to_json())) == {f.name for f in dataclasses.fields(Served)}


def test_options_are_resolved_for_the_model() -> None:
    note = {"context_length": 2048, "activation_group": 32}
    found = resolve(OpenVinoOptions(), note)
    assert (found.context, found.activation_group) == (2048, 32)
    kept = resolve(OpenVinoOptions(context=512, activation_group=0), note)
    assert (kept.context, kept.activation_group) == (512, 0)
    with pytest.raises(EngineError, match="4096 tokens are asked for"):
        resolve(OpenVinoOptions(context=4096), note)
    assert set(CAPACITY) < set(OpenVinoOptions.model_fields)


def test_a_limit_of_instructions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(
        detect_machine(), features=frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8"})
    )
    engine = find_engine("openvino")
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert engine.find_features(machine) == machine.features
    for limit, left in (("AVX2", {"avx2"}), ("avx512_core", {"avx2", "avx512f"})):
        monkeypatch.setenv(LIMIT_VARIABLE, limit)
        assert engine.find_features(machine) == left


def test_w8a8_needs_exact_sums() -> None:
    scheme = find_engine("openvino").traits.schemes["w8a8"]
    assert not scheme.runs_on(frozenset({"avx2", "avx512f"}))
    assert scheme.runs_on(frozenset({"avx2", "avx_vnni"}))
    assert scheme.runs_on(frozenset({"asimd"}))
    assert all(
        one.runs_on(frozenset()) for name, one in find_engine("openvino").traits.schemes.items()
        if name != "w8a8"
    )  # fmt: skip


def names_an_engine(node: ast.Compare) -> bool:
    kinds = set(engine_kinds())
    for part in (node.left, *node.comparators):
        inner = part.elts if isinstance(part, ast.Tuple | ast.Set | ast.List) else [part]
        if {one.value for one in inner if isinstance(one, ast.Constant)} & kinds:
            return True
    return False


def test_nobody_outside_compares_with_an_engines_name() -> None:
    """Comparisons and sets of engine kinds belong into traits."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in OUTSIDE
        # It puts the steps of a recipe into words; a step that builds a graph is called as the
        # engine that it is for.
        if path.name != "lineage.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare) and names_an_engine(node)
    ]
    assert not found
