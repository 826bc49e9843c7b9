"""Which rows stay for balance and weights, which are held out, in which order, and in which packs.

All of it is decided by checksums of the rows' words and the recipe's seed: the same rows come to
the same places, however many processes read them, and a set that grows keeps most of what it held
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.curate.recipe import Recipe
from thrifty.curate.rows import I64, U64, Rows
from thrifty.curate.sketch import mix
from thrifty.errors import DataError

Bools = npt.NDArray[np.bool_]
PACK_WINDOW = 20_000
"""Rows among which packs are put together."""
_PLACES = {"source": "source", "language": "language", "label": "label"}


def draw(digests: U64, seed: int, purpose: int) -> U64:
    """A random number of each row for one purpose, which its words and the seed decide."""
    salt = mix(np.array([np.uint64(seed % (1 << 63)) * np.uint64(8) + np.uint64(purpose)]))
    return mix(digests ^ salt)


def balance_rows(rows: Rows, alive: Bools, recipe: Recipe) -> Bools:
    """Which rows stay so that no kind has more than a multiple of the smallest one's rows."""
    assert recipe.balance is not None
    kinds = _list_kinds(rows, recipe.balance.by)
    numbers, counts = np.unique(kinds[alive], return_counts=True)
    if len(numbers) < 2:
        return alive
    most = int(recipe.balance.most * counts.min())
    order = draw(rows.column("digest")[:, 0], recipe.seed, 1)
    kept = np.zeros(len(rows), np.bool_)
    for number in numbers:
        mine = np.flatnonzero(alive & (kinds == number))
        kept[mine[np.argsort(order[mine], kind="stable")[:most]]] = True
    return kept


def mix_rows(rows: Rows, alive: Bools, recipe: Recipe) -> Bools:
    """Which rows stay so that sources have the shares of their weights, as many as there can be
    without a row twice. Raises `DataError` if a source with a weight has no rows left.
    """
    weights = [one.weight or 0.0 for one in recipe.sources]
    source = rows.column("source")
    sizes = (
        rows.column("tokens").astype(np.int64)
        if recipe.mix == "tokens"
        else np.ones(len(rows), np.int64)
    )
    order = draw(rows.column("digest")[:, 0], recipe.seed, 2)
    there = [int(sizes[alive & (source == number)].sum()) for number in range(len(weights))]
    for number, (have, one) in enumerate(zip(there, recipe.sources, strict=True)):
        if not have:
            raise DataError(
                f"the source {one.name or one.path or one.set or one.log!r} has a weight and no rows "
                f"left (sources.{number}); take its weight away, or look at what removed them"
            )
    scale = min(have / weight for have, weight in zip(there, weights, strict=True))
    kept = np.zeros(len(rows), np.bool_)
    for number, weight in enumerate(weights):
        mine = np.flatnonzero(alive & (source == number))
        mine = mine[np.argsort(order[mine], kind="stable")]
        room = scale * weight
        kept[mine[np.cumsum(sizes[mine]) <= room * (1 + 1e-9)]] = True
    return kept


def _list_kinds(rows: Rows, by: str) -> I64:
    values = rows.column(_PLACES[by])
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


# What is held out


def split_rows(rows: Rows, alive: Bools, recipe: Recipe) -> Bools:
    """Which rows are held out. Rows of one group are all on one side. Raises `DataError`."""
    held = np.zeros(len(rows), np.bool_)
    chosen = np.flatnonzero(alive)
    if not recipe.split.test or not len(chosen):
        return held
    groups = _find_groups(rows, chosen, recipe.split.by)
    order: npt.NDArray[Any]
    if recipe.split.time:
        order = -_find_newest(rows, chosen, groups)
    else:
        # A group is known by the least checksum of its rows.
        digests = rows.column("digest")[chosen, 0]
        least = np.full(groups.max() + 1, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, groups, digests)
        order = draw(least, recipe.seed, 3)
    strata = np.zeros(len(order), np.int64)
    if recipe.split.stratify is not None:
        # Rows of one group may be of several strata; the first one's counts.
        kinds = _list_kinds(rows, recipe.split.stratify)[chosen]
        first = np.unique(groups, return_index=True)[1]
        strata = kinds[first]
    sizes = np.bincount(groups)
    test = np.zeros(len(order), np.bool_)
    for stratum in np.unique(strata):
        mine = np.flatnonzero(strata == stratum)
        mine = mine[np.argsort(order[mine], kind="stable")]
        test[mine[choose_groups(sizes[mine], recipe.split.test)]] = True
    held[chosen] = test[groups]
    return held


def choose_groups(sizes: I64, share: float) -> list[int]:
    """The places of the first groups that come nearest to a share of the rows: at least one, and
    never all of them, where there are two. A group that is far larger than what is still to be held
    out is passed over: users who share rows with others in a chain may have most of the rows.
    """
    if len(sizes) < 2:
        return []
    left = share * float(sizes.sum())
    chosen = []
    for place, size in enumerate(sizes.tolist()):
        if left <= 0.5:
            break
        if size < 2 * left:
            chosen.append(place)
            left -= size
    return (chosen or [int(np.argmin(sizes))])[: len(sizes) - 1]


def _find_newest(rows: Rows, chosen: I64, groups: I64) -> npt.NDArray[np.float64]:
    """The time of the newest row of each group. Raises `DataError`."""
    times = rows.column("time")[chosen]
    if np.isnan(times).all():
        raise DataError(
            "'split.time' is set and no row has a time; name the field with 'fields: {time: NAME}' "
            "of the source"
        )
    newest = np.full(groups.max() + 1, -np.inf)
    np.maximum.at(newest, groups, np.nan_to_num(times, nan=-np.inf))
    return newest


def _find_groups(rows: Rows, chosen: I64, by: Sequence[str]) -> I64:
    """For each chosen row the number of its group, counted from 0: rows that share any of the named
    things are in one group, and so are those that they share another with.
    """
    links = [_find_links(rows, chosen, name) for name in by]
    groups = np.arange(len(chosen))
    while True:
        before = groups.copy()
        for places, keys in links:
            least = np.full(keys.max(initial=0) + 1, len(chosen), np.int64)
            np.minimum.at(least, keys, groups[places])
            np.minimum.at(groups, places, least[keys])
        groups = groups[groups]
        if (groups == before).all():
            return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _find_links(rows: Rows, chosen: I64, name: str) -> tuple[I64, I64]:
    """Places among the chosen rows, and beside each the number of a thing that the row there has. A
    row may have several users, or none.
    """
    if name == "user":
        numbers, values = rows.read_persons()
        place_of = np.full(len(rows), -1, np.int64)
        place_of[chosen] = np.arange(len(chosen))
        places = place_of[numbers]
        places, values = places[places >= 0], values[places >= 0]
    else:
        places, values = np.arange(len(chosen)), rows.column(name)[chosen]
    return places, np.unique(values, return_inverse=True)[1].astype(np.int64)


# Order and packs


def order_rows(rows: Rows, chosen: I64, recipe: Recipe) -> I64:
    """The chosen rows in the order of the files: by time, or at random."""
    if recipe.split.time:
        times = np.nan_to_num(rows.column("time")[chosen], nan=-np.inf)
        return chosen[np.argsort(times, kind="stable")]
    # Mixed, because trainers read in order, and KTO compares neighbours.
    order = draw(rows.column("digest")[chosen, 0], recipe.seed, 4)
    return chosen[np.argsort(order, kind="stable")]


def pack_rows(lengths: npt.NDArray[Any], most: int) -> list[list[int]]:
    """Rows put together so that no pack has more than `most` tokens: the longest first, each into
    the fullest pack that has room (best fit decreasing), within windows of neighbours.
    """
    packs: list[list[int]] = []
    for start in range(0, len(lengths), PACK_WINDOW):
        window = lengths[start : start + PACK_WINDOW]
        packs += _pack_window(window, most, start)
    return packs


def _pack_window(lengths: npt.NDArray[Any], most: int, start: int) -> list[list[int]]:
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for at in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[at])
        fits = [room for room in by_room if room >= length]
        room = min(fits, default=most)
        if fits:
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
        else:
            number = len(packs)
            packs.append([])
            rooms.append(most)
        packs[number].append(start + at)
        rooms[number] = room - length
        by_room.setdefault(rooms[number], []).append(number)
    for pack in packs:
        pack.sort()
    return packs
