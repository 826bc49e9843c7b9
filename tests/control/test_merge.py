"""The three-way merge: who owns what, and that nothing changes that nobody changed."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.control.merge import Held, find_fixed, merge
from thrifty.db.desired_state import DesiredDeployment, DesiredReplicas, DesiredVersion
from thrifty.db.fleet import DeploymentSettings, VersionSettings
from thrifty.errors import ControlError

State = dict[str, DesiredDeployment]


def version(label: str, build: int = 1, **fields: Any) -> DesiredVersion:
    count = fields.pop("count", 1)
    price = fields.pop("price", 0.0)
    return DesiredVersion(
        label, f"m@v{build}", "echo", f"r{build}", None, {"n": build},
        settings=VersionSettings(price_input=price), replicas=DesiredReplicas(count), **fields,
    )  # fmt: skip


def deployment(*versions: DesiredVersion, name: str = "chat", **settings: Any) -> DesiredDeployment:
    return DesiredDeployment(name, "decoder", DeploymentSettings(**settings), versions)


def state(*deployments: DesiredDeployment) -> State:
    return {one.name: one for one in deployments}


TWO = deployment(version("a", weight=90.0), version("b", 2, weight=10.0), created_s=5.0)

# Any states, of few names and values, so that they often meet

VERSIONS = st.lists(
    st.builds(
        version,
        st.sampled_from("abc"),
        st.integers(1, 2),
        weight=st.sampled_from([0.0, 1.0, 9.0]),
        shadow=st.sampled_from([0.0, 0.5]),
        count=st.integers(1, 2),
        price=st.sampled_from([0.0, 1.0]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.label,
).filter(lambda versions: any(one.weight for one in versions))
STATES = st.lists(
    st.builds(
        lambda name, versions, waiting, age: deployment(
            *versions, name=name, waiting=waiting, created_s=age
        ),
        st.sampled_from(["x", "y"]),
        VERSIONS,
        st.integers(1, 2),
        st.sampled_from([1.0, 2.0]),
    ),
    max_size=2,
    unique_by=lambda one: one.name,
).map(lambda many: state(*many))


def try_merge(base: State, new: State, current: State) -> State | None:
    """What follows; None where no version would get traffic."""
    try:
        return merge(base, new, current).deployments
    except ControlError:
        return None


def aged(wanted: State, current: State) -> State:
    """`wanted` with the ages of `current`, which a merge keeps."""
    return {
        name: replace(
            one, settings=replace(one.settings, created_s=current[name].settings.created_s)
        )
        if name in current
        else one
        for name, one in wanted.items()
    }


def leaves(deployments: State) -> dict[tuple[str, ...], Any]:
    """Every value by its path, and what there is."""
    found: dict[tuple[str, ...], Any] = {}
    for name, one in deployments.items():
        found[name,] = True
        for key, value in asdict(one.settings).items():
            if key != "created_s":
                found[name, "settings", key] = value
        for v in one.versions:
            found[name, v.label] = True
            fields = asdict(v)
            settings, replicas = fields.pop("settings"), fields.pop("replicas")
            fields.pop("label")
            fields |= {f"settings.{k}": x for k, x in settings.items()}
            fields |= {f"replicas.{k}": x for k, x in replicas.items()}
            for key, value in fields.items():
                found[name, v.label, key] = str(value)
    return found


@settings(max_examples=60)
@given(STATES, STATES)
def test_the_same_spec_again_changes_nothing(spec: State, current: State) -> None:
    merged = try_merge(spec, spec, current)
    assert merged is None or merged == current


@settings(max_examples=60)
@given(STATES, STATES)
def test_where_nobody_else_changed_anything_the_spec_is_what_is(base: State, new: State) -> None:
    assert merge(base, new, base).deployments == aged(new, base)
    assert merge(base, new, base).held == ()


@settings(max_examples=60)
@given(STATES, STATES, STATES)
def test_a_reset_takes_everything_back(base: State, new: State, current: State) -> None:
    merged = merge(base, new, current, reset=True)
    assert merged.deployments == aged(new, current)
    again = merge(new, new, merged.deployments)
    assert (again.deployments, again.held) == (merged.deployments, ())


@settings(max_examples=60)
@given(STATES, STATES, STATES)
def test_only_what_differs_from_the_previous_spec_changes(
    base: State, new: State, current: State
) -> None:
    merged = try_merge(base, new, current)
    if merged is None:
        return
    was, asked, now, then = leaves(base), leaves(new), leaves(current), leaves(merged)
    for path in was.keys() | asked.keys() | now.keys() | then.keys():
        got = then.get(path)
        assert got in (now.get(path), asked.get(path)), path
        parents = [path[:n] for n in range(1, len(path))]
        if not all(p in was and p in asked and p in now for p in parents):
            continue
        if got is True and path not in now:
            # What an operator removed comes back where the spec has changed anything of it.
            assert [was[p] for p in was if p[: len(path)] == path] != [
                asked[p] for p in asked if p[: len(path)] == path
            ]
        elif was.get(path) == asked.get(path):
            assert got == now.get(path), path


@settings(max_examples=60)
@given(STATES, STATES, STATES)
def test_what_is_held_is_what_differs_from_the_spec(
    base: State, new: State, current: State
) -> None:
    if (merged := try_merge(base, new, current)) is None:
        return
    assert (merge(base, new, current).held == ()) == (merged == aged(new, current))


@settings(max_examples=60)
@given(STATES, STATES, STATES)
def test_merging_twice_is_merging_once(base: State, new: State, current: State) -> None:
    merged = try_merge(base, new, current)
    if merged is not None:
        assert try_merge(new, new, merged) in (merged, None)


# The rules, one by one


def test_weights_that_an_operator_set_stay_and_are_named() -> None:
    moved = deployment(version("a", weight=50.0), version("b", 2, weight=50.0), created_s=5.0)
    more = deployment(
        version("a", weight=90.0, count=3), version("b", 2, weight=20.0), created_s=9.0
    )
    merged = merge(state(TWO), state(more), state(moved))
    a, b = merged.deployments["chat"].versions
    assert (a.weight, a.replicas.count, b.weight) == (50.0, 3, 50.0)
    assert merged.held == (
        Held("chat", "weight", "a", 50.0, 90.0),
        Held("chat", "weight", "b", 50.0, 20.0),
    )
    assert [held.what for held in merged.held] == ["chat: weight of a", "chat: weight of b"]
    assert merged.deployments["chat"].settings.created_s == 5.0


def test_an_image_follows_the_spec() -> None:
    new = deployment(version("a", weight=90.0, image="r/vllm:2"), version("b", 2, weight=10.0))
    merged = merge(state(TWO), state(new), state(TWO))
    assert [v.image for v in merged.deployments["chat"].versions] == ["r/vllm:2", None]
    assert merged.held == ()


def test_a_version_more_and_one_less() -> None:
    new = deployment(version("b", 2, weight=10.0), version("c", 3, weight=5.0))
    merged = merge(state(TWO), state(new), state(TWO))
    assert [v.label for v in merged.deployments["chat"].versions] == ["b", "c"]
    assert merged.held == ()


def test_an_option_that_a_rollback_took_back_is_held_until_the_spec_changes_it() -> None:
    old = deployment(version("a", 1))
    new = deployment(version("a", 2))
    newer = deployment(version("a", 3))
    again = merge(state(new), state(new), state(old))
    assert again.deployments == state(old)
    (held,) = again.held
    assert (held.field, held.current, held.spec) == ("build", "m@v1", "m@v2")
    assert held.what == "chat: build of a"
    assert merge(state(new), state(newer), state(old)).deployments == state(newer)


def test_a_deployment_that_only_an_operator_has_stays() -> None:
    other = deployment(version("a"), name="other")
    merged = merge(state(TWO), state(TWO), state(TWO, other))
    assert list(merged.deployments) == ["chat", "other"]
    assert merged.held == (Held("other", "deployment", None, other, None),)
    assert list(merge(state(TWO, other), state(TWO), state(TWO, other)).deployments) == ["chat"]


def test_a_version_without_traffic_cannot_be_the_only_one() -> None:
    moved = deployment(version("a", weight=0.0), version("b", 2, weight=1.0))
    only = deployment(version("a", weight=90.0))
    with pytest.raises(ControlError) as caught:
        merge(state(TWO), state(only), state(moved))
    assert str(caught.value) == (
        "the spec drops 'b', which has all the traffic of 'chat'; move the traffic first "
        "(thrifty traffic chat a=1), or take the weights of the spec (apply or up SPEC with "
        "--reset)"
    )
    assert merge(state(TWO), state(only), state(moved), reset=True).deployments == state(only)


def test_a_held_value_is_found_in_other_states() -> None:
    held = Held("chat", "weight", "b", 50.0, 10.0)
    assert held.find_value(TWO) == 10.0
    assert held.find_value(None) is None
    assert Held("chat", "version", "b", True, None).find_value(TWO) is True
    assert Held("chat", "version", "z", True, None).find_value(TWO) is None
    assert Held("chat", "waiting", None, 5, 1000).find_value(TWO) == 1000


def test_what_cannot_change_in_place_is_named_with_the_command() -> None:
    encoder = replace(TWO, family="encoder")
    problems = find_fixed(
        {"gateway.port": "8080", "gateway.host": "127.0.0.1", "database": "abc"},
        {"gateway.port": "9090", "gateway.host": "127.0.0.1", "database": "abd"},
        state(encoder),
        state(TWO),
    )
    assert [problem.path for problem in problems] == ["gateway.port", "database", "model"]
    assert all("thrifty down, then thrifty up SPEC" in problem.message for problem in problems)
    assert "(8080 now)" in problems[0].message
    assert "abc" not in problems[1].message
    assert "'chat'" in problems[2].message
    assert find_fixed({}, {"gateway.port": "9090"}, state(TWO), {}) == []


# The autoscaler's counts


def scaled(count: int, fewest: int = 1, most: int = 4) -> DesiredDeployment:
    replicas = DesiredReplicas(count, fewest, most)
    return deployment(replace(version("a"), replicas=replicas))


def count_of(merged: State) -> int:
    return merged["chat"].versions[0].replicas.count


@pytest.mark.parametrize("reset", [False, True])
def test_the_same_spec_again_keeps_the_autoscalers_count(reset: bool) -> None:
    spec = state(scaled(1))
    merged = merge(spec, spec, state(scaled(3)), reset=reset)
    assert count_of(merged.deployments) == 3
    assert not merged.held


@pytest.mark.parametrize(("fewest", "most", "count"), [(0, 2, 2), (1, 9, 3), (4, 9, 4)])
def test_new_bounds_take_the_count_with_them(fewest: int, most: int, count: int) -> None:
    base, new = state(scaled(1)), state(scaled(fewest, fewest, most))
    merged = merge(base, new, state(scaled(3)))
    assert count_of(merged.deployments) == count
    assert not merged.held


def test_a_fixed_number_takes_the_count_back() -> None:
    new = state(deployment(version("a", count=1)))
    merged = merge(state(scaled(1)), new, state(scaled(3)))
    assert count_of(merged.deployments) == 1
    assert merged.deployments == new
    assert not merged.held


def test_bounds_begin_with_the_count_that_runs() -> None:
    base = state(deployment(version("a", count=2)))
    merged = merge(base, state(scaled(1)), base)
    assert count_of(merged.deployments) == 2
    assert not merged.held
