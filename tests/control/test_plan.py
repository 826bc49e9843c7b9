"""Planning and preparing: what a spec comes to, what it would take, and that a plan writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.graphs.test_encoder import write as write_encoder
from thrifty.artifacts import Store
from thrifty.artifacts.look_only import LookOnlyStore
from thrifty.control.applied import read_applied
from thrifty.control.estimates import record_load_times
from thrifty.control.plan import Plan, World, make_plan
from thrifty.control.prepare import Prepared, prepare
from thrifty.control.replicas import Running
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.fleet import ReplicaRow
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.machine import detect_machine
from thrifty.errors import ControlError, SourceError, SpecError
from thrifty.fleet.base import ObservedReplica, SetKey
from thrifty.home import Home
from thrifty.model_maker import Compressor
from thrifty.spec import LoadedSpec, load_spec

MODEL = Llama(vocab=257, head_dim=32, kv_heads=2, heads=2, hidden=64, context=256, tied=False)


def write_model(folder: Path, model: Llama = MODEL) -> Path:
    """A checkpoint whose tokens are bytes."""
    model.write_safetensors(folder, eos_token_id=256)
    make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def load(folder: Path, **keys: Any) -> LoadedSpec:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "thrifty.yaml"
    path.write_text(json.dumps({"engine": "echo", **keys}, indent=1))
    return load_spec(path, environment={})


def make(home: Home, loaded: LoadedSpec, **options: Any) -> Prepared:
    store, machine = Store(home.models), detect_machine()
    return prepare(
        loaded, store, machine, maker=Compressor(home, store, machine), **options
    )  # fmt: skip


def plan(home: Home, loaded: LoadedSpec, world: World | None = None) -> Plan:
    store, machine = LookOnlyStore(home.models), detect_machine()
    maker = Compressor(home, store, machine)
    return make_plan(loaded, world or World(), store, machine, maker=maker)


def running(prepared: Prepared, workers: int = 1, *, alive: bool = True) -> World:
    """The world in which what was prepared was applied, and all of it runs."""
    rows = [
        ReplicaRow(
            f"{state.name}-{version.label}-{index}", state.name, version.engine, version.label,
            version.revision, version.artifact, "http://127.0.0.1:1", "ready",
        )
        for state in prepared.deployments.values()
        for version in state.versions
        for index in range(version.replicas.count)
    ]  # fmt: skip
    service = prepared.service
    return World(
        prepared.deployments, service, read_applied(service), Running(alive, tuple(rows), workers)
    )


def whats(items: Any) -> list[str]:
    return [item.what for item in items]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


TWO = [{"label": "a", "weight": 90}, {"label": "b", "weight": 10, "engine": {"reply": "hi"}}]


# What a spec comes to


def test_a_spec_of_one_version(home: Home, tmp_path: Path) -> None:
    loaded = load(
        tmp_path, name="chat", aliases=["gpt"], replicas={"count": 2, "slots": 7},
        prices={"input": 1, "output": 2}, limits={"waiting": 5}, gateway={"workers": 3},
    )  # fmt: skip
    prepared = make(home, loaded)
    (state,) = prepared.deployments.values()
    assert (state.name, state.family) == ("chat", "decoder")
    assert (state.settings.waiting, state.settings.aliases) == (5, ("gpt",))
    (version,) = state.versions
    assert (version.label, version.model, version.engine) == ("echo@v1", "echo@v1", "echo")
    assert (version.weight, version.shadow, version.replicas.count) == (1.0, 0.0, 2)
    assert (version.settings.slots, version.settings.price_output) == (7, 2.0)
    assert version.settings.honours is not None
    assert "temperature" in version.settings.honours
    assert prepared.service.gateway["workers"] == 3
    assert prepared.service.gateway["max_body_bytes"] == 8_000_000
    applied = read_applied(prepared.service)
    assert applied is not None
    assert applied.deployments == prepared.deployments
    assert applied.written["aliases"] == ["gpt"]


def test_several_versions_differ_in_what_they_say(home: Home, tmp_path: Path) -> None:
    state = make(home, load(tmp_path, name="chat", versions=TWO)).deployments["chat"]
    a, b = state.versions
    assert [(v.label, v.weight) for v in state.versions] == [("a", 90.0), ("b", 10.0)]
    assert a.revision != b.revision
    assert b.options["reply"] == "hi"


def test_servers_of_others_are_named(home: Home, tmp_path: Path) -> None:
    engine = {"kind": "remote", "urls": ["http://127.0.0.1:1/v1", "http://127.0.0.1:2"]}
    state = make(home, load(tmp_path, name="far", model="big", engine=engine)).deployments["far"]
    (version,) = state.versions
    assert version.urls == ("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert (version.model, version.settings.upstream_model) == ("big", "big")
    assert version.label.startswith("remote@")


def test_no_secret_is_kept_of_what_was_applied(home: Home, tmp_path: Path) -> None:
    loaded = load(
        tmp_path, database="postgresql://ann:hunter2@host/db", redis="redis://:hunter3@host"
    )
    prepared = make(home, loaded)
    assert "hunter" not in json.dumps(dict(prepared.service.spec))
    # Its workers need the URL of Redis; nothing shows it.
    world = running(make(home, load(tmp_path, name="echo")))
    made = plan(home, load(tmp_path, name="echo", redis="redis://:hunter3@host"), world)
    assert whats(made.change) == ["gateway: redis_url"]


def test_default_labels_that_collide_are_an_error_with_what_to_write(
    home: Home, tmp_path: Path
) -> None:
    loaded = load(tmp_path, versions=[{"weight": 1}, {"weight": 2, "engine": {"reply": "x"}}])
    for act in (make, plan):
        with pytest.raises(SpecError) as caught:
            act(home, loaded)
        (problem,) = caught.value.problems
        assert problem.line == 7
        assert str(problem) == (
            "line 7, versions.1: is called 'echo@v1' by default, as versions.0 is; give it a label "
            "of its own, such as: label: echo@v1-2"
        )
    mixed = load(tmp_path, versions=[{"label": "echo@v1"}, {"weight": 2}])
    with pytest.raises(SpecError, match=r"versions\.1: is called 'echo@v1' by default"):
        make(home, mixed)


@pytest.mark.engine
def test_a_model_is_the_default_label(home: Home, tmp_path: Path) -> None:
    long = "a" * 70
    path = write_model(tmp_path / long)
    loaded = load(tmp_path, model=str(path), engine="openvino", name="chat")
    (item,) = plan(home, loaded).start[:1]
    (version,) = make(home, loaded).deployments["chat"].versions
    assert version.label == "a" * 60 + "@v1", "cut to 63 characters"
    assert version.model == f"{long}-int8-openvino@v1"
    assert item.what.startswith(f"chat/{version.label}: 1 replica")


def test_versions_of_two_families_are_refused(home: Home, tmp_path: Path) -> None:
    decoder = write_model(tmp_path / "tiny")
    (tmp_path / "encoder").mkdir()
    encoder = write_encoder(tmp_path / "encoder")
    loaded = load(
        tmp_path, name="chat", engine="openvino",
        versions=[{"label": "a", "model": str(decoder)}, {"label": "b", "model": str(encoder)}],
    )  # fmt: skip
    for act in (make, plan):
        with pytest.raises(
            SpecError, match=r"versions\.1\.model: is a model of the family encoder"
        ):
            act(home, loaded)


# What it would take


def test_a_plan_in_an_empty_home_writes_nothing(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path / "spec", name="chat", versions=TWO, gateway={"workers": 2, "port": 81})
    made = plan(home, loaded)
    assert not home.root.exists()
    assert (made.fetch, made.prepare, made.stop, made.change) == ((), (), (), ())
    assert whats(made.start) == [
        "chat/a: 1 replica of echo@v1 (echo)", "chat/b: 1 replica of echo@v1 (echo)",
        "gateway: 2 workers at 127.0.0.1:81",
    ]  # fmt: skip
    shown = made.to_builtins()
    assert list(shown) == ["fetch", "choose", "prepare", "start", "stop", "change"]
    assert set(shown["start"][0]) == {"what", "size_bytes", "seconds", "why"}


@pytest.mark.engine
def test_a_plan_says_what_auto_will_measure_and_what_it_took(home: Home, tmp_path: Path) -> None:
    from thrifty.engines.choice import CHOICE, Candidate, Choice, describe_choice, list_candidates

    keys: dict[str, Any] = {
        "name": "chat", "engine": "auto", "compress": "int8", "load": 8, "benchmark": "30s",
        "model": str(write_model(tmp_path / "tiny")),
    }  # fmt: skip
    make(home, load(tmp_path, **{**keys, "benchmark": 0}))
    loaded = load(tmp_path, **keys)
    (item,) = plan(home, loaded).choose
    assert (item.what, item.seconds) == ("chat: the fastest", 30.0)
    assert "not measured here for this load: openvino int8, llamacpp int8" in item.why
    # Beside a running service nothing is measured.
    running_now = running(make(home, load(tmp_path, **{**keys, "benchmark": 0})))
    (item,) = plan(home, loaded, running_now).choose
    assert item.seconds is None
    assert "nor while a service runs: the first by rank" in item.why

    store, machine = Store(home.models), detect_machine()
    artifact = store.find("tiny")[1]
    able = list_candidates(loaded.spec, artifact, machine).able
    choice = Choice(Candidate("openvino", "int8"), "measured here: 9 tokens/s at 8 streams")
    conditions = describe_choice(loaded.spec, machine, able)
    store.record_measurement(artifact.id, CHOICE, conditions, choice.to_builtins())
    decided = plan(home, loaded)
    (item,) = decided.choose
    assert (item.what, item.why) == ("chat: openvino int8", choice.reason)
    assert decided.prepare == ()
    (version,) = make(home, loaded).deployments["chat"].versions
    assert version.engine == "openvino"


@pytest.mark.engine
def test_a_prepared_model_is_not_compressed_again(home: Home, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"name": "chat", "engine": "openvino"}
    folder = str(write_model(tmp_path / "tiny"))
    (version,) = (
        make(home, load(tmp_path, **keys, model=folder, compress="int8"))
        .deployments["chat"]
        .versions
    )
    keys["model"] = version.model
    for act in (make, plan):
        with pytest.raises(
            SpecError, match=r"compress: asks for int4, and the model tiny-int8.*@v1 .* int8;"
        ):
            act(home, load(tmp_path, **keys, compress="int4"))
    for same in ("int8", "none", "auto"):
        (again,) = make(home, load(tmp_path, **keys, compress=same)).deployments["chat"].versions
        assert again.artifact == version.artifact


@pytest.mark.engine
def test_a_model_is_fetched_and_prepared_and_then_it_is_not(home: Home, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    loaded = load(
        tmp_path / "spec", model=str(path), engine="openvino", name="chat",
        versions=[{"label": "a"}, {"label": "b", "compress": "int4"}],
    )  # fmt: skip
    before = snapshot(tmp_path)
    first = plan(home, loaded)
    assert snapshot(tmp_path) == before
    (fetched,) = first.fetch
    assert (fetched.what, fetched.size_bytes) == (f"file:{path}", folder_bytes(path))
    assert whats(first.prepare) == ["chat/a for openvino", "chat/b for openvino"]
    for item in first.prepare:
        assert item.size_bytes is not None
        assert item.size_bytes > 1000
        assert item.seconds is None
        assert "nothing was prepared for openvino here" in item.why
    prepared = make(home, loaded)
    before = snapshot(tmp_path)
    then = plan(home, loaded)
    assert snapshot(tmp_path) == before
    assert (then.fetch, then.prepare) == ((), ())
    (start, *_) = then.start
    artifact = prepared.deployments["chat"].versions[0].artifact
    assert artifact is not None
    assert start.size_bytes == Store(home.models).load(artifact).size_bytes
    assert (start.seconds, "is not known" in start.why) == (None, True)
    row = ReplicaRow("r", "chat", "openvino", "a", "x", artifact, "http://x", "ready")
    ready = ObservedReplica(SetKey("chat", "a", "x", 1), row, ready_after_s=2.5)
    record_load_times(Store(home.models), detect_machine(), [ready, ready])
    again = plan(home, loaded)
    assert (again.start[0].seconds, again.start[0].why) == (
        2.5,
        "none of it runs; as measured here",
    )
    assert again.start[1].why.endswith("estimated by its size from 1 measured start here")
    # What was measured tells how long others take.
    other = write_model(tmp_path / "other", replaced(MODEL, seed=1))
    (item,) = plan(home, load(tmp_path / "x", model=str(other), engine="openvino")).prepare
    assert item.what == "other/other@v1 for openvino"
    assert item.seconds is not None
    assert item.seconds > 0
    assert "estimated by its size from 2 preparations here" in item.why
    assert plan(home, loaded, running(prepared)) == Plan()


def test_a_pipeline_is_told_until_it_was_applied(home: Home, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny")
    loaded = load(
        tmp_path / "spec", model=str(path), engine="openvino", name="chat",
        compress={"prune": 0.8, "quantize": "int4", "text": str(tmp_path / "spec/thrifty.yaml")},
    )  # fmt: skip
    (item,) = plan(home, loaded).prepare
    assert item.what == "chat/tiny@v1: prune, quantize to int4"
    assert item.seconds is None
    assert not home.models.exists()


def test_a_plan_of_what_runs_is_empty(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path, name="chat", versions=TWO)
    world = running(make(home, loaded))
    assert plan(home, loaded, world) == Plan()


def test_what_differs_is_started_stopped_and_changed(home: Home, tmp_path: Path) -> None:
    world = running(make(home, load(tmp_path, name="chat", versions=TWO, replicas=2)))
    changed = load(
        tmp_path, name="chat", limits={"waiting": 5}, gateway={"workers": 2, "read_timeout": "9s"},
        versions=[
            {"label": "a", "weight": 50, "replicas": 3},
            {"label": "b", "weight": 10, "engine": {"reply": "ho"}, "replicas": 2},
            {"label": "c", "weight": 0, "shadow": 0.5, "engine": {"reply": "c"}},
        ],
    )  # fmt: skip
    made = plan(home, changed, world)
    assert whats(made.start) == [
        "chat/a: 1 replica of echo@v1 (echo)", "chat/b: 2 replicas of echo@v1 (echo)",
        "chat/c: 1 replica of echo@v1 (echo)", "gateway: 1 worker",
    ]  # fmt: skip
    assert whats(made.stop) == ["chat/b: 2 replicas"]
    assert whats(made.change) == [
        "chat: waiting 1000 -> 5", "chat: weight of a 90 -> 50", "gateway: read_timeout_s 20 -> 9",
    ]  # fmt: skip
    assert made.fixed == ()
    less = plan(home, load(tmp_path, name="other"), world)
    assert whats(less.stop) == ["chat/a: 2 replicas", "chat/b: 2 replicas"]
    assert all("deployment is not wanted" in item.why for item in less.stop)


def test_settings_of_servers_of_others_change_in_place(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OLD_KEY", "NEW_KEY"):
        monkeypatch.setenv(name, "k")
    engine = {"kind": "remote", "urls": "http://127.0.0.1:1", "key_env": "OLD_KEY"}
    keys: dict[str, Any] = {"name": "far", "model": "big", "versions": [{"label": "a"}]}
    world = running(make(home, load(tmp_path, **keys, engine=engine)))
    engine |= {"key_env": "NEW_KEY", "salt_field": "cache_salt", "priority_field": "priority"}
    made = plan(home, load(tmp_path, **keys, engine=engine), world)
    assert whats(made.change) == [
        "far: key_env of a OLD_KEY -> NEW_KEY", "far: salt_field of a none -> cache_salt",
        "far: priority_field of a none -> priority",
    ]  # fmt: skip
    assert (made.start, made.stop) == ((), ())


def test_what_cannot_change_in_place_is_told(home: Home, tmp_path: Path) -> None:
    world = running(make(home, load(tmp_path, name="chat", gateway={"port": 8080})))
    moved = load(tmp_path, name="chat", gateway={"port": 9090, "host": "localhost"})
    made = plan(home, moved, world)
    assert whats(made.change) == ["gateway.host", "gateway.port"]
    assert [problem.path for problem in made.fixed] == ["gateway.host", "gateway.port"]
    assert all("thrifty down" in item.why for item in made.change)
    stopped = World(world.deployments, world.service, world.applied, Running())
    assert plan(home, moved, stopped).fixed == (), "a service that is not running can move"


def test_a_deployment_that_goes_while_nothing_runs_is_told(home: Home, tmp_path: Path) -> None:
    world = running(make(home, load(tmp_path, name="chat", versions=TWO)))
    stopped = World(world.deployments, world.service, world.applied, Running())
    made = plan(home, load(tmp_path, name="other"), stopped)
    assert whats(made.change) == ["chat: removed"]


def test_values_are_told_as_people_write_them(home: Home, tmp_path: Path) -> None:
    world = running(make(home, load(tmp_path, name="chat", aliases=["a"])))
    changed = load(
        tmp_path, name="chat", limits={"max_tokens": 5}, record={"prompts": True},
        gateway={"cors": ["https://a.example", "https://b.example"]}, batches={"reserve": 3},
    )  # fmt: skip
    told = whats(plan(home, changed, world).change)
    assert "chat: aliases a -> none" in told
    assert "chat: max_tokens none -> 5" in told
    assert "gateway: record_prompts false -> true" in told
    assert "gateway: cors none -> https://a.example, https://b.example" in told
    assert "gateway: batches.governor.reserve 0 -> 3" in told


def test_a_model_that_cannot_be_fetched_is_an_error(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path, engine="auto", model="pypi:no such thing")
    with pytest.raises(SourceError, match="the model pypi:no such thing cannot be fetched: "):
        plan(home, loaded)


def test_what_an_operator_holds_is_told(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path, name="chat", versions=TWO)
    world = running(make(home, loaded))
    (state,) = world.deployments.values()
    moved = DesiredDeployment(
        state.name, state.family, state.settings,
        tuple(replaced(v, weight=w) for v, w in zip(state.versions, (0.0, 1.0), strict=True)),
    )  # fmt: skip
    held = World({"chat": moved}, world.service, world.applied, world.running)
    made = plan(home, loaded, held)
    assert [one.what for one in made.held] == ["chat: weight of a", "chat: weight of b"]
    assert made == Plan(held=made.held)
    only = load(tmp_path, name="chat", versions=TWO[:1])
    with pytest.raises(ControlError, match="the spec drops 'b', which has all the traffic"):
        plan(home, only, held)


def replaced(version: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(version, **fields)


def test_faults_come_before_anything_is_looked_for(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path, versions=[{"label": "a"}, {"label": "b", "engine": {"kind": "ekko"}}])
    for act in (make, plan):
        with pytest.raises(SpecError, match=r"line 10, engine\.kind: 'ekko' is not an engine"):
            act(home, loaded)
    squeezed = load(tmp_path, versions=[{"label": "a", "compress": {"prune": 0.5}}])
    with pytest.raises(SpecError, match="the engine 'echo' loads no model"):
        plan(home, squeezed)


# Bounds


def test_a_plan_tells_the_bounds_and_what_they_are_for(home: Home, tmp_path: Path) -> None:
    loaded = load(
        tmp_path / "spec", replicas={"min": 2, "max": 5}, slo={"ttft_p95": "500ms"}, priority=3,
        capacity={"cpus": 6, "per_hour": 2.5}, price_per_hour=0.5,
    )  # fmt: skip
    (item,) = [one for one in plan(home, loaded).start if one.what.startswith("echo/")]
    assert "2 replicas" in item.what
    assert "the number follows the load from 2 to 5, to hold TTFT p95 0.5 s" in item.why
    prepared = make(home, loaded)
    state = prepared.deployments["echo"]
    (version,) = state.versions
    assert (version.replicas.count, version.replicas.bounds) == (2, (2, 5))
    assert (version.slo.ttft_p95_s, version.slo.tpot_p95_s) == (0.5, None)
    assert state.settings.priority == 3
    capacity = prepared.service.capacity
    assert (capacity.cpus, capacity.per_hour, capacity.price_per_hour) == (6, 2.5, 0.5)


def test_new_bounds_start_and_stop_nothing_by_themselves(home: Home, tmp_path: Path) -> None:
    before = make(home, load(tmp_path / "a", replicas={"min": 1, "max": 3}))
    found = plan(home, load(tmp_path / "b", replicas={"min": 1, "max": 4}), running(before))
    assert (found.start, found.stop) == ((), ())
    assert [(one.what, one.why) for one in found.change] == [
        ("echo: replicas.max_count of echo@v1 3 -> 4", "the autoscaler takes it up")
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"capacity": {"gpus": 2}}, "capacity.gpus: bounds GPUs, and no deployment takes any"),
        (
            {"capacity": {"cpus": 3}, "replicas": {"min": 2, "max": 4, "cpus": 2}},
            "capacity.cpus: is 3, and the fewest replicas need 4 cores",
        ),
        (
            {
                "engine": {"kind": "remote", "urls": "http://127.0.0.1:1/v1"},
                "replicas": {"min": 1, "max": 2},
            },
            "replicas: sets bounds, and the engine 'remote' starts no copies",
        ),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    home: Home, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    loaded = load(tmp_path / "spec", **keys)
    with pytest.raises(SpecError) as refused:
        plan(home, loaded)
    assert message in str(refused.value)
