"""Bounds, objectives and capacities: what is accepted, and what is refused with the next step."""

from __future__ import annotations

from typing import Any

import pytest

from thrifty.errors import SpecError
from thrifty.spec import parse_spec
from thrifty.spec.scaling import ReplicasSpec


def read(data: dict[str, Any]) -> Any:
    return parse_spec({"engine": "echo", **data}).spec


@pytest.mark.parametrize(
    ("replicas", "bounds", "fewest"),
    [
        (3, None, 3),
        ({"count": 2}, None, 2),
        ({"min": 1, "max": 4}, (1, 4), 1),
        ({"max": 4}, (1, 4), 1),
        ({"min": 3}, (3, 3), 3),
        ({"min": 0}, (0, 1), 0),
        ({"min": 0, "max": 4, "idle_after": "60s"}, (0, 4), 0),
    ],
)
def test_a_number_is_fixed_and_bounds_are_not(
    replicas: Any, bounds: tuple[int, int] | None, fewest: int
) -> None:
    spec = read({"replicas": replicas}).replicas
    assert (spec.bounds, spec.fewest) == (bounds, fewest)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"replicas": {"count": 2, "max": 4}}, "has both 'count' and 'max'; write 'count' for"),
        ({"replicas": {"min": 4, "max": 2}}, "has 'min' 4 above 'max' 2"),
        ({"replicas": {"min": 1, "max": 2, "idle_after": "1m"}}, "without 'min: 0'"),
        ({"replicas": {"min": -1}}, "replicas.min"),
        ({"replicas": {"max": 0}}, "replicas.max"),
        ({"replicas": {"min": 0, "idle_after": "0s"}}, "replicas.idle_after"),
        ({"slo": {"ttft_p95": "0s"}}, "slo.ttft_p95"),
        ({"slo": {"ttft_p95": "-1s"}}, "slo.ttft_p95"),
        ({"slo": {"tpot_p95": 0}}, "slo.tpot_p95"),
        ({"slo": {"tpot_p50": "1s"}}, "slo.tpot_p50: is not a known key"),
        ({"capacity": {"cpus": 0}}, "capacity.cpus"),
        ({"capacity": {"per_hour": 0}}, "capacity.per_hour"),
        ({"capacity": {"memory": 0}}, "capacity.memory"),
        ({"priority": 101}, "priority"),
    ],
)
def test_what_cannot_be_is_refused_when_the_spec_is_read(data: Any, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read(data)
    assert message in str(refused.value)


def test_a_deployments_own_kind_of_number_takes_the_place_of_the_common_one() -> None:
    loaded = parse_spec(
        {
            "engine": "echo",
            "replicas": {"count": 2, "cpus": 1},
            "deployments": [
                {"name": "fixed"},
                {"name": "scaled", "replicas": {"min": 0, "max": 3}},
            ],
        }
    )
    fixed, scaled = (one.spec.replicas for one in loaded.each())
    assert (fixed.bounds, fixed.fewest, fixed.cpus) == (None, 2, 1)
    assert (scaled.bounds, scaled.cpus) == ((0, 3), 1)


def test_a_versions_fixed_number_takes_the_place_of_common_bounds() -> None:
    loaded = parse_spec(
        {
            "engine": "echo",
            "slo": {"ttft_p95": "500ms"},
            "replicas": {"min": 0, "max": 3, "idle_after": "30s"},
            "versions": [{"label": "a"}, {"label": "b", "replicas": 2, "slo": {"tpot_p95": 0.1}}],
        }
    )
    one, other = (version.loaded.spec for version in loaded.versions())
    assert one.replicas.bounds == (0, 3)
    assert other.replicas.bounds is None
    assert (other.slo.ttft_p95, other.slo.tpot_p95) == (0.5, 0.1)


def test_no_number_is_one_copy() -> None:
    assert (ReplicasSpec().bounds, ReplicasSpec().fewest) == (None, 1)
