"""A release whose share follows what users accept: Thompson sampling, with a fixed control slice.

The candidate's share is the chance that users accept more of its conversations than of the others',
as far as is known (probability matching: Thompson 1933), within bounds: at least half of the control
slice, at most one less that half, and at most `growth` times the share before.

A conversation goes to the candidate where its hash is small enough for the share. So those that go to
it at the least share go to it at every share, and those that go to the others at the greatest share
never go to it. These are the control slice: chance has split it evenly, and no change of the share
moves any of it. What is said at the end rests on it alone, and is valid however the share went.

A conversation that is going on stays on its version. A change that would have to hold some on the
candidate and others away from it waits until one side has fallen silent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection

from thrifty.db.database import Database
from thrifty.db.releases import (
    Event,
    HeldConversations,
    ReleaseRow,
    Step,
    update_release,
    write_held,
)
from thrifty.openai.conversations import choose_version, read_hash
from thrifty.release.conversations import Conversation
from thrifty.release.manage import (
    MAX_HELD,
    change_weights,
    close_steps,
    make_weights,
    read_recent,
)
from thrifty.release.plan import BanditPlan

DRAWS = 20_000
"""By which the chance of being better is computed: good to about a third of a percent."""
LEAST_CHANGE = 0.01
"""Smaller changes of the share are not made."""
SHIFT = "shift"


@dataclass(frozen=True)
class Arms:
    """What users said of conversations with the candidate and with the others: sums of acceptance,
    and how many they are.
    """

    candidate: tuple[float, int]
    others: tuple[float, int]


def count_arms(judged: Sequence[Conversation]) -> Arms:
    """The arms of all judged conversations, control slice or not."""
    own = [one.liked for one in judged if one.treated]
    rest = [one.liked for one in judged if not one.treated]
    return Arms((sum(own), len(own)), (sum(rest), len(rest)))


def find_chance_better(arms: Arms, seed: int) -> float:
    """The chance that the candidate's acceptance is greater, with uniform priors."""
    draw = np.random.Generator(np.random.Philox(seed))

    def sample(arm: tuple[float, int]) -> np.ndarray:
        liked, count = arm
        return draw.beta(1 + liked, 1 + max(0.0, count - liked), DRAWS)

    return float((sample(arms.candidate) > sample(arms.others)).mean())


def find_share(plan: BanditPlan, arms: Arms, share: float, seed: int) -> float:
    """The candidate's next share, after one of `share`."""
    least = plan.control / 2
    wanted = min(find_chance_better(arms, seed), share * plan.growth)
    return min(1 - least, max(least, wanted))


class Control:
    """The control slice of a release."""

    def __init__(self, plan: BanditPlan, before: Mapping[str, float], candidate: str) -> None:
        self._candidate = candidate
        self._least = list(make_weights(before, candidate, plan.control / 2).items())
        self._most = list(make_weights(before, candidate, 1 - plan.control / 2).items())

    def holds(self, one: Conversation) -> bool:
        """Whether a conversation is in it."""
        if choose_version(one.name, self._least)[0] == self._candidate:
            return True
        return choose_version(one.name, self._most)[0] != self._candidate


def shift_share(
    database: Database,
    release: ReleaseRow,
    share: float,
    sticky_s: float,
    *,
    who: str,
    why: str,
    figures: Mapping[str, Any],
    active_s: float,
) -> bool:
    """Give the candidate another share; whether that was possible without moving a conversation that
    is going on. Raises as `manage.move_release`.
    """
    weights = make_weights(release.record.before, release.candidate, share)
    now_s = time.time()
    held = find_going(database, release, weights, sticky_s, now_s)
    if held is None:
        return False
    steps = close_steps(release.record.steps, now_s)
    record = msgspec.structs.replace(
        release.record, weights=weights, steps=(*steps, Step(share, weights, now_s))
    )
    event = Event(SHIFT, who, why, {**figures, "share": share})

    def also(connection: Connection) -> None:
        update_release(connection, release, event, record=record, active_s=active_s)
        write_held(connection, held)

    change_weights(database, release, weights, release.record.shadow, who, f"{SHIFT}: {why}", also)
    return True


def find_going(
    database: Database,
    release: ReleaseRow,
    weights: Mapping[str, float],
    sticky_s: float,
    now_s: float,
) -> HeldConversations | None:
    """The conversations of the last `sticky_s` that other weights would move, with weights that keep
    them; None where some would have to be kept on the candidate and others away from it. Raises
    `DatabaseError`.
    """
    new, candidate = list(weights.items()), release.candidate
    to_it: set[str] = set()
    from_it: set[str] = set()
    for name, label in read_recent(database, release.deployment, now_s - sticky_s):
        chosen = choose_version(name, new)[0]
        if label == candidate and chosen != candidate:
            from_it.add(read_hash(name))
        elif label != candidate and chosen == candidate:
            to_it.add(read_hash(name))
        if len(to_it) + len(from_it) >= MAX_HELD:
            break
    if to_it and from_it:
        return None
    others = {k: v for k, v in release.record.before.items() if k != candidate}
    falls = weights[candidate] < release.record.weights.get(candidate, 0.0)
    kept = {candidate: sum(others.values())} if from_it or (falls and not to_it) else others
    hashes = frozenset(to_it or from_it)
    return HeldConversations(release.deployment, now_s, sticky_s, kept, hashes)
