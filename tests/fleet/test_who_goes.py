"""Which replica goes where there are too many: the one with the least left to say."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.test_local_replica import echo_served
from thrifty.artifacts import Store
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.fleet.local import _rank
from thrifty.fleet.local_replica import LocalReplica
from thrifty.home import Home
from thrifty.types import ReplicaState

READY, STARTING, BACKOFF = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.BACKOFF
HOME, SERVED = Home(Path("/none")), echo_served()


def replica(number: int, state: ReplicaState, running: int = 0) -> LocalReplica:
    """A replica that was never started, in that state."""
    made = LocalReplica(
        f"echo-{number}", SERVED, EchoEngine(),
        home=HOME, store=Store(HOME.models), cores=[0], memory_share=1.0, memory_limit=None,
        start_timeout_s=30.0, on_change=lambda: None,
    )  # fmt: skip
    made.state, made.load = state, {"running": running, "waiting": 0}
    return made


REPLICAS = st.lists(
    st.tuples(
        st.sampled_from([READY, READY, STARTING, BACKOFF]), st.integers(0, 3), st.integers(0, 900)
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(REPLICAS, st.integers(0, 8), st.booleans())
def test_those_that_go_have_the_least_left_to_say(
    found: list[tuple[ReplicaState, int, int]], count: int, reported: bool
) -> None:
    """By what gateways reported, or else by the number of requests that engines have."""
    made = [replica(number, state, running) for number, (state, running, _) in enumerate(found)]
    work = {f"echo-{n}": float(left) for n, (_, _, left) in enumerate(found)} if reported else {}

    def left(one: LocalReplica) -> float:
        return work.get(one.id, 0.0) or one.count_requests()

    ranked = sorted(made, key=lambda one: _rank(one, work))
    kept, gone = ranked[:count], ranked[count:]
    for stays in kept:
        for goes in gone:
            if stays.state is goes.state:
                assert left(stays) >= left(goes)
            assert not (goes.state is READY and stays.state is not READY)
