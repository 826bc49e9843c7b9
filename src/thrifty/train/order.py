"""The order in which a training reads its examples."""

from __future__ import annotations

import random
from collections.abc import Iterator


def order_examples(
    phases: list[tuple[int, int]], examples: int, done: int, seed: int, *, epochs_differ: bool
) -> Iterator[int]:
    """The numbers of examples in training order, after the first `done`: those that were read
    least, shuffled. Examples that are added later are so read before others are read again.

    `phases` says after how many read examples there were how many; a new number of `examples` is
    added to it. With `epochs_differ`, they are numbered on from epoch to epoch.
    """
    if not phases or phases[-1][1] != examples:
        phases.append((done, examples))
    read = [0] * phases[-1][1]
    position, epoch = 0, 0
    while True:
        count = next(n for at, n in reversed(phases) if at <= position)
        until = next((at for at, _ in phases if at > position), None)
        least = min(read[:count])
        order = [number for number in range(count) if read[number] == least]
        random.Random(f"{seed} {epoch}").shuffle(order)
        if until is not None:
            order = order[: until - position]
        for number in order:
            read[number] += 1
            position += 1
            if position > done:
                yield number + (epoch * count if epochs_differ else 0)
        epoch += 1
