"""What is asked of one version in this worker, counted for the autoscaler.

Counting costs a request a few additions, and nothing waits: `app.demand_report` writes the figures
beside the request path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from thrifty.db.demand import Figures, find_bucket
from thrifty.gateway.state.replica import Replica

WARM_UP_ANSWERS = 5
"""The first answers of a replica are slower than later ones, and left out of the sums."""


DEFAULT_TOKEN_S = 0.02
"""Before a token was timed."""


class Demand:
    """The totals of one version. Times are readings of `clock`."""

    __slots__ = ("_at_replicas", "_began_s", "_clock", "_sent_s", "figures")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.figures = Figures(since_s=time.time())
        self._at_replicas = 0
        self._sent_s = 0.0
        """The sum of the times at which the requests at replicas were sent."""
        self._began_s = clock()

    def begin(self, now_s: float) -> None:
        """A request goes to a replica."""
        self._at_replicas += 1
        self._sent_s += now_s

    def end(self, began_s: float, now_s: float) -> None:
        """A request that went to a replica at `began_s` has left it."""
        self._at_replicas -= 1
        # Rounding errors end where nothing is left.
        self._sent_s = self._sent_s - began_s if self._at_replicas else 0.0
        self.figures.busy_s += now_s - began_s

    def note_answer(
        self,
        replica: Replica,
        *,
        received_s: float,
        sent_s: float,
        first_s: float,
        last_s: float,
        prompt_tokens: int,
        output_tokens: int,
        streamed: bool,
    ) -> None:
        """Record an answer. The first token was seen at `first_s` only if it was streamed."""
        figures = self.figures
        if streamed:
            figures.ttft_buckets[find_bucket(first_s - received_s)] += 1
        replica.answers += 1
        if replica.answers <= WARM_UP_ANSWERS:
            return
        figures.answered += 1
        figures.prompt_tokens += prompt_tokens
        figures.output_tokens += output_tokens
        figures.held_s += last_s - sent_s
        if not streamed:
            return
        begin_s = first_s - sent_s
        figures.streamed += 1
        figures.begin_s += begin_s
        figures.begin_buckets[find_bucket(begin_s)] += 1
        if output_tokens > 1:
            token_s = (last_s - first_s) / (output_tokens - 1)
            figures.timed += 1
            figures.token_s += token_s
            figures.token_buckets[find_bucket(token_s)] += 1

    @property
    def token_s(self) -> float:
        """The mean time for each further token."""
        figures = self.figures
        return figures.token_s / figures.timed if figures.token_s > 0.0 else DEFAULT_TOKEN_S

    def read(self, work: Mapping[str, float], held: int, queued: int) -> Figures:
        """The figures now. `work` is what is left to say at each of the version's replicas."""
        now_s, at_replicas = self._clock(), self._at_replicas
        figures = msgspec.structs.replace(self.figures, counted_s=now_s - self._began_s)
        figures.busy_s += at_replicas * now_s - self._sent_s
        figures.held, figures.queued, figures.in_flight = held, queued, at_replicas
        figures.work = dict(work)
        return figures
