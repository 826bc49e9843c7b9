"""Shares of versions against their weights, moves after a change, and what a choice costs.

    python benchmarks/version_shares.py

100,000 conversations choose among versions by weighted rendezvous hashing, as the gateway does.
Shares are compared with the 99.9% binomial intervals of the weights (Wilson; each interval is
corrected for the number of shares). After a change of one weight, the conversations that moved are
counted, against the least that any scheme could move. `hash modulo` (a hash of the conversation
over the sums of the weights) is the contender that lost: its shares are as good, but a change moves
conversations between versions whose weights did not change. Nothing else runs.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from itertools import accumulate
from statistics import NormalDist
from typing import Any

from common import figure, finish, in_turns, parse_arguments, show_spread, spread
from thrifty.openai.conversations import Conversations, choose_version
from thrifty.openai.fields import Endpoint

COUNT = 100_000
CONFIDENCE = 0.999
WEIGHTS: tuple[dict[str, float], ...] = (
    {"a": 90, "b": 10},
    {"a": 99, "b": 1},
    {"a": 60, "b": 30, "c": 10},
    {"a": 1, "b": 1, "c": 1, "d": 1},
    {f"v{number}": number + 1 for number in range(8)},
)
CHANGES: tuple[tuple[dict[str, float], str, float], ...] = (
    ({"a": 90, "b": 10}, "b", 25),
    ({"a": 90, "b": 10}, "b", 0),
    ({"a": 60, "b": 30, "c": 10}, "c", 1),
    ({"a": 60, "b": 30, "c": 10}, "a", 70),
    ({"a": 60, "b": 40, "c": 0}, "c", 5),
)
Choose = Callable[[str, list[tuple[str, float]]], str]


def rendezvous(conversation: str, versions: list[tuple[str, float]]) -> str:
    return choose_version(conversation, versions)[0]


def hash_modulo(conversation: str, versions: list[tuple[str, float]]) -> str:
    sums = list(accumulate(weight for _, weight in versions))
    digest = blake2b(conversation.encode(), digest_size=8).digest()
    return versions[bisect_right(sums, int.from_bytes(digest) / 2**64 * sums[-1])][0]


def make_conversations(seed: int) -> list[str]:
    rng = random.Random(seed)
    conversations = Conversations(rng.randbytes(32))
    return [
        conversations.identify("team", b"%d" % rng.getrandbits(64), Endpoint.CHAT, {})
        for _ in range(COUNT)
    ]


def wilson(count: int, z: float) -> tuple[float, float]:
    share = count / COUNT
    middle = (share + z * z / (2 * COUNT)) / (1 + z * z / COUNT)
    half = z * math.sqrt(share * (1 - share) / COUNT + z * z / (4 * COUNT**2)) / (1 + z * z / COUNT)
    return middle - half, middle + half


def measure_shares(conversations: list[str]) -> list[dict[str, Any]]:
    tests = sum(len(weights) for weights in WEIGHTS)
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / tests / 2)
    found = []
    for weights in WEIGHTS:
        counts = Counter(rendezvous(each, list(weights.items())) for each in conversations)
        for label, weight in weights.items():
            wanted = weight / sum(weights.values())
            low, high = wilson(counts[label], z)
            found.append({
                "weights": weights, "label": label, "wanted": wanted,
                "share": counts[label] / COUNT, "interval": [low, high],
                "within": low <= wanted <= high,
            })  # fmt: skip
    return found


def measure_moves(conversations: list[str], choose: Choose) -> list[dict[str, Any]]:
    found = []
    for weights, label, weight in CHANGES:
        changed = {**weights, label: weight}
        before = [choose(each, list(weights.items())) for each in conversations]
        after = [choose(each, list(changed.items())) for each in conversations]
        moved = [(x, y) for x, y in zip(before, after, strict=True) if x != y]
        counts_before, counts_after = Counter(before), Counter(after)
        least = sum(max(0, counts_after[each] - counts_before[each]) for each in changed)
        found.append({
            "before": weights, "after": changed, "moved": len(moved), "least": least,
            "between_others": sum(label not in pair for pair in moved),
        })  # fmt: skip
    return found


def time_choice(conversations: list[str], versions: list[tuple[str, float]]) -> float:
    """Microseconds for one choice."""
    began = time.perf_counter()
    for each in conversations:
        choose_version(each, versions)
    return (time.perf_counter() - began) / len(conversations) * 1e6


def time_identify(rounds: int) -> float:
    """Microseconds for the id of one chat request."""
    conversations = Conversations(b"s" * 32)
    body = {"user": "u1", "messages": [{"role": "system", "content": "You are helpful."},
                                       {"role": "user", "content": "What is new in Paris?"}]}  # fmt: skip
    began = time.perf_counter()
    for _ in range(rounds):
        conversations.identify("team", None, Endpoint.CHAT, body)
    return (time.perf_counter() - began) / rounds * 1e6


def show(weights: dict[str, float]) -> str:
    return " ".join(f"{label}={weight:g}" for label, weight in weights.items())


def main() -> None:
    arguments = parse_arguments(__doc__ or "", rounds=12)
    conversations = make_conversations(seed=15)
    shares = measure_shares(conversations)
    moves = {
        "rendezvous": measure_moves(conversations, rendezvous),
        "hash modulo": measure_moves(conversations, hash_modulo),
    }
    some = conversations[:20_000]
    times = in_turns(arguments.rounds, {
        "identify": lambda: time_identify(len(some)),
        "choose of 1": lambda: time_choice(some, [("a", 1.0)]),
        "choose of 2": lambda: time_choice(some, [("a", 90.0), ("b", 10.0)]),
        "choose of 4": lambda: time_choice(some, [("a", 4.0), ("b", 3.0), ("c", 2.0), ("d", 1.0)]),
    })  # fmt: skip
    table: list[list[str]] = [["what", "result"]]
    table += [
        [f"share of {s['label']} in {show(s['weights'])}",
         f"{s['share']:.4f} ({s['interval'][0]:.4f} to {s['interval'][1]:.4f}), weight {s['wanted']:.4f}"]
        for s in shares
    ]  # fmt: skip
    for name, found in moves.items():
        table += [
            [f"{name}: {show(m['before'])} -> {show(m['after'])}",
             f"{m['moved']} moved, {m['between_others']} of them between others; least {m['least']}"]
            for m in found
        ]  # fmt: skip
    table += [[f"{name}, us", show_spread(values)] for name, values in times.items()]
    within = sum(share["within"] for share in shares)
    excess = [m["moved"] / m["least"] for m in moves["rendezvous"]]
    figures = [
        figure("shares within the binomial interval of their weights", [within / len(shares)],
               "1 x", within == len(shares)),
        figure("conversations moved by a change over the least possible", [max(excess)], "1 x",
               max(excess) == 1.0, "{:.4f}"),
    ]  # fmt: skip
    record = {
        "conversations": COUNT, "confidence": CONFIDENCE, "shares": shares, "moves": moves,
        "times_us": {name: spread(values) for name, values in times.items()},
    }  # fmt: skip
    finish("version_shares", record, table, figures, save=not arguments.no_save)


if __name__ == "__main__":
    main()
