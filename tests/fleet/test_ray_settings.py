"""What replicas ask Ray for, and how it is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.base import Served
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.errors import SpecError
from thrifty.fleet.base import ReplicaSet
from thrifty.fleet.memory import ModelSize
from thrifty.fleet.ray_settings import (
    RaySettings,
    clamp_bundles,
    explain_waiting,
    make_bundle,
    make_fingerprint,
    make_options,
)
from thrifty.spec.load import parse_spec

FLEET = {"kind": "ray", "address": "10.0.0.5:6379"}


def test_settings_come_from_the_spec_as_plain_data() -> None:
    given = {**FLEET, "name": "two", "memory": "2GB", "resources": {"lathe": 1}, "max_replicas": 3}
    found = RaySettings.from_builtins(parse_spec({"fleet": given}).spec.fleet.describe())
    assert found == RaySettings(
        address="10.0.0.5:6379", name="two", memory_bytes=2_000_000_000, resources={"lathe": 1.0},
        max_replicas=3,
    )  # fmt: skip
    assert found.namespace == "thrifty-two"


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"kind": "ray"}, "needs 'address'"),
        ({**FLEET, "image": "r/t:1"}, "image, which ray does not take"),
        ({**FLEET, "models": "claim"}, "not the URL of a remote"),
        ({**FLEET, "address": "ray://head:10001"}, "address"),
        ({**FLEET, "resources": {"lathe": 0}}, "greater than 0"),
        ({"kind": "local", "address": "a:1"}, "write 'kind: ray'"),
        ({"kind": "kubernetes", "image": "r/t:1", "resources": {"x": 1}}, "does not take"),
    ],
)
def test_what_cannot_be_is_refused(fleet: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match="fleet") as error:
        parse_spec({"fleet": fleet})
    assert words in str(error.value)


def test_a_replica_asks_for_cores_memory_and_what_the_spec_names() -> None:
    served = Served("m", "echo", "a", "r", "decoder")
    settings = RaySettings(resources={"lathe": 2.0}, accelerator_type="L4")
    bundle = make_bundle(ReplicaSet(served, EchoEngine(), 1, cpus=3), settings, ModelSize())
    assert bundle == {"CPU": 3.0, "memory": 512 << 20, "lathe": 2.0, "accelerator_type:L4": 0.001}
    two = ReplicaSet(served, EchoEngine(), 1, cpus=3, gpus=2)
    assert make_options(make_bundle(two, RaySettings(), ModelSize()))["num_gpus"] == 2.0
    assert make_options(bundle) == {
        "num_cpus": 3.0, "memory": 512 << 20,
        "resources": {"lathe": 2.0, "accelerator_type:L4": 0.001},
    }  # fmt: skip


def test_why_there_is_no_place() -> None:
    nodes = [{"CPU": 2.0, "memory": 8e9}, {"CPU": 4.0, "memory": 8e9}]
    free = [{"CPU": 2.0, "memory": 8e9}, {"CPU": 1.0, "memory": 8e9}]
    assert explain_waiting({"CPU": 2.0}, nodes, free) is None
    assert "waits until" in str(explain_waiting({"CPU": 3.0}, nodes, free))
    text = str(explain_waiting({"CPU": 8.0, "memory": 1e9, "accelerator_type:L4": 0.001}, nodes))
    assert "no node of the Ray cluster has 8 CPU, 1.0 GB memory, a L4" in text
    assert "4 CPU, 8.0 GB memory, no L4" in text
    assert "replicas.cpus" in text


SIZES = st.integers(1, 6).map(float)


@given(
    bundles=st.lists(st.fixed_dictionaries({"CPU": SIZES}), max_size=8),
    groups=st.lists(
        st.tuples(st.fixed_dictionaries({"CPU": SIZES}), st.integers(0, 4)), max_size=3
    ),
)
def test_no_more_is_asked_for_than_there_can_be(
    bundles: list[dict[str, float]], groups: list[tuple[dict[str, float], int]]
) -> None:
    taken = clamp_bundles(bundles, groups)
    assert sum(one["CPU"] for one in taken) <= sum(node["CPU"] * count for node, count in groups)
    largest = max((node["CPU"] for node, count in groups if count), default=0.0)
    assert all(one["CPU"] <= largest for one in taken)
    # What fits is asked for: with room for each alone, none is left out.
    roomy = [({"CPU": 6.0}, len(bundles))]
    assert clamp_bundles(bundles, roomy) == bundles
    assert clamp_bundles(bundles, [({"CPU": 6.0}, -1)]) == bundles
    assert clamp_bundles(bundles, None) == bundles


def test_bundles_are_counted_by_whole_nodes() -> None:
    assert len(clamp_bundles([{"CPU": 3.0}] * 4, [({"CPU": 4.0}, 3)])) == 3


def test_a_fingerprint_tells_keys_apart_and_does_not_repeat() -> None:
    key = "k" * 40
    assert make_fingerprint(key, "m-0.1") == make_fingerprint(key, "m-0.1")
    assert make_fingerprint(key, "m-0.1") != make_fingerprint(key, "m-0.2")
    assert make_fingerprint("x" * 40, "m-0.1") != make_fingerprint(key, "m-0.1")
