"""A clock that jumps ahead deletes nothing until somebody could set it right."""

from __future__ import annotations

from thrifty.observe.clock_watch import JUMP_S, PAUSE_S, ClockWatch


class Clocks:
    """A wall clock that can be set, and a steady one."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1.7e9, 50.0
        self.watch = ClockWatch(lambda: self.wall_s, lambda: self.steady_s)

    def pass_time(self, seconds: float, set_by: float = 0.0) -> bool:
        self.steady_s += seconds
        self.wall_s += seconds + set_by
        return self.watch.may_delete()


def test_time_that_passes_and_small_corrections_delete() -> None:
    clocks = Clocks()
    assert all(clocks.pass_time(600.0, set_by) for set_by in (0.0, 2.0, -2.0, JUMP_S - 10))
    # Setting it back deletes nothing that is young.
    assert clocks.pass_time(600.0, -30 * 86400.0)
    assert clocks.pass_time(600.0)


def test_a_jump_ahead_deletes_nothing_for_a_while() -> None:
    clocks = Clocks()
    assert not clocks.pass_time(600.0, 10 * 365 * 86400.0)
    assert not clocks.pass_time(PAUSE_S - 700)
    assert clocks.pass_time(800.0), "nobody set it right, so it is right"
    assert clocks.pass_time(600.0)


def test_a_clock_that_is_set_right_again_deletes_as_before() -> None:
    clocks = Clocks()
    assert not clocks.pass_time(600.0, 365 * 86400.0)
    assert clocks.pass_time(600.0, -365 * 86400.0)
    assert not clocks.pass_time(600.0, 365 * 86400.0)
