"""Adding up what gateway workers report: whoever comes and goes, totals only grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.control.autoscale.meter import STALE_S, Meter
from thrifty.db.demand import DemandRow, Figures

KEY = ("chat", "a")


@dataclass
class Worker:
    """A gateway worker as its row shows it."""

    name: str
    since_s: float = 1.0
    writes: int = 0
    arrivals: int = 0
    counted_s: float = 0.0
    held: int = 0
    work: dict[str, float] = field(default_factory=dict)

    def row(self) -> DemandRow:
        figures = Figures(
            since_s=self.since_s, writes=self.writes, counted_s=self.counted_s,
            arrivals=self.arrivals, answered=self.arrivals, busy_s=float(self.arrivals),
            held=self.held, in_flight=1, work=dict(self.work),
        )  # fmt: skip
        return DemandRow(self.name, *KEY, figures)

    def count(self, arrivals: int) -> None:
        self.arrivals += arrivals
        self.counted_s += 1.0
        self.writes += 1


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["count", "count", "restart", "go", "come", "silent"]),
        st.integers(0, 50),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_totals_are_what_was_counted_and_never_shrink(events: list[tuple[int, str, int]]) -> None:
    workers = [Worker(f"w{index}") for index in range(3)]
    there = {0, 1, 2}
    meter, total, before = Meter(), 0, 0.0
    meter.take([worker.row() for worker in workers], 0.0)
    for now_s, (index, event, arrivals) in enumerate(events, start=1):
        worker = workers[index]
        if event == "go":
            there.discard(index)
        elif event == "come" and index not in there:
            # A process that comes has a name of its own.
            workers[index] = Worker(f"w{index}/{now_s}", writes=1)
            there.add(index)
        elif index in there and event in ("count", "restart"):
            if event == "restart":
                worker.since_s, worker.arrivals, worker.counted_s = now_s + 1.0, 0, 0.0
            worker.count(arrivals)
            total += arrivals
        meter.take([workers[i].row() for i in sorted(there)], float(now_s))
        found = meter.read(KEY, 0, float(now_s))
        if found is not None:
            assert found.arrivals == total == found.answered
            assert found.arrivals >= before
            before = found.arrivals


def test_what_was_there_at_first_is_no_burst() -> None:
    worker, meter = Worker("w", arrivals=1000, writes=7), Meter()
    meter.take([worker.row()], 0.0)
    worker.count(3)
    meter.take([worker.row()], 1.0)
    found = meter.read(KEY, 1, 1.0)
    assert found is not None
    assert (found.arrivals, found.elapsed_s) == (3, 1.0)


def test_a_stale_or_missing_worker_leaves_no_figures() -> None:
    one, other, meter = Worker("w0", writes=1), Worker("w1", writes=1), Meter()
    meter.take([one.row(), other.row()], 0.0)
    assert meter.read(KEY, 2, 0.0) is not None
    assert meter.read(KEY, 3, 0.0) is None
    one.count(1)
    meter.take([one.row(), other.row()], STALE_S + 1)
    assert meter.read(KEY, 2, STALE_S + 1) is None
    assert meter.read(KEY, 1, STALE_S + 1) is not None
    assert meter.read(("chat", "b"), 1, 0.0) is None


def test_what_is_held_is_known_although_a_worker_is_missing() -> None:
    one, meter = Worker("w0", writes=1, held=2), Meter()
    meter.take([one.row()], 0.0)
    assert meter.read(KEY, 2, 0.0) is None
    assert meter.count_held(KEY, 0.0) == 2
    assert meter.count_held(KEY, STALE_S + 1) == 0


def test_the_state_is_that_of_fresh_rows() -> None:
    one = Worker("w0", writes=1, held=2, work={"chat-0": 5.0})
    other, meter = Worker("w1", writes=1, held=1, work={"chat-0": 1.0, "chat-1": 2.0}), Meter()
    meter.take([one.row(), other.row()], 0.0)
    found = meter.read(KEY, 2, 0.0)
    assert found is not None
    assert (found.held, found.in_flight) == (3, 2)
    assert meter.read_work(0.0) == {"chat-0": 6.0, "chat-1": 2.0}
    assert meter.read_work(STALE_S + 1) == {}
