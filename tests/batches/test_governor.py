"""The governor alone: how many lines a replica may have in flight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thrifty.batches.governor import GovernorSettings, LineLimit


def test_lines_fill_free_slots() -> None:
    share = LineLimit()
    assert share.update(slots=16, interactive=0, settings=GovernorSettings(), now_s=0.0) == 16
    assert share.update(slots=16, interactive=3, settings=GovernorSettings(), now_s=0.0) == 13


def test_the_limit_falls_at_once_and_rises_later() -> None:
    share, settings = LineLimit(), GovernorSettings(settle_s=1.0, displace=4)
    assert share.update(slots=16, interactive=0, settings=settings, now_s=0.0) == 16
    assert share.update(slots=16, interactive=2, settings=settings, now_s=0.1) == 8
    assert share.update(slots=16, interactive=0, settings=settings, now_s=0.5) == 8
    assert share.update(slots=16, interactive=2, settings=settings, now_s=0.9) == 8
    # The second burst restarted the wait.
    assert share.update(slots=16, interactive=0, settings=settings, now_s=1.5) == 8
    assert share.update(slots=16, interactive=0, settings=settings, now_s=1.9) == 16


def test_a_replica_that_is_not_ready_gets_no_lines() -> None:
    share = LineLimit()
    share.update(slots=8, interactive=0, settings=GovernorSettings(), now_s=0.0)
    assert share.update(slots=0, interactive=0, settings=GovernorSettings(), now_s=0.1) == 0


@given(
    looks=st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, 64), st.floats(0, 100)), min_size=1, max_size=50
    ),
    reserve=st.integers(0, 8),
    displace=st.floats(1, 64),
    settle_s=st.floats(0, 5),
)
def test_lines_never_exceed_free_slots(
    looks: list[tuple[float, int, float]], reserve: int, displace: float, settle_s: float
) -> None:
    share = LineLimit()
    settings = GovernorSettings(reserve=reserve, displace=displace, settle_s=settle_s)
    now_s = 0.0
    for step_s, slots, interactive in looks:
        now_s += step_s
        limit = share.update(slots=slots, interactive=interactive, settings=settings, now_s=now_s)
        assert 0 <= limit <= max(0, slots - reserve - interactive * displace + 1e-6)
    # Without other requests, the limit returns to all slots.
    share.update(slots=32, interactive=0, settings=settings, now_s=now_s)
    later_s = now_s + settle_s + 1
    assert share.update(slots=32, interactive=0, settings=settings, now_s=later_s) == 32 - reserve
