"""Routing policies, as plain code over plain state."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from thrifty.gateway.routing import POLICIES, make_policy
from thrifty.gateway.state.policy import LearnedState
from thrifty.gateway.state.rates import Rates, WorkAhead
from thrifty.gateway.state.routed_request import RoutedRequest
from thrifty.gateway.state.router import Router
from thrifty.spec.models import Routing

PLAIN = RoutedRequest(100.0, 50.0)


@dataclass
class Copy:
    id: str
    in_flight: int = 0
    waiting: int = 0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    slot: int = -1
    rates_key: str = "v1"


def copies(count: int, router: Router | None = None) -> list[Copy]:
    made = [Copy(f"r-{index}") for index in range(count)]
    if router is not None:
        for copy in made:
            copy.slot = router.learned.prefixes.join()
    return made


def choose(name: str, fleet: list[Copy], seed: int = 1, request: RoutedRequest = PLAIN) -> Any:
    policy, known = make_policy(name, random.Random(seed)), LearnedState()
    return lambda: policy.choose(fleet, request, known)


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ["system", *["user", "assistant"] * len(texts)]
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return {"model": "m", "messages": messages, "max_tokens": 50, **fields}


def test_every_policy_of_the_spec_exists_and_no_other() -> None:
    assert set(get_args(Routing)) == set(POLICIES)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_spreads_requests_over_idle_replicas(name: str) -> None:
    router = Router(make_policy(name, random.Random(3)))
    fleet = copies(4, router)
    assert router.choose(fleet[:1], router.describe(chat("a"))) is fleet[0]
    counts: Counter[str] = Counter()
    for number in range(800):
        request = router.describe(chat(f"a question of its own: {number}"))
        counts[router.choose(fleet, request).id] += 1
    assert min(counts.values()) > 100, "misses spread over all replicas"


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_balances_load_and_releases_it(name: str) -> None:
    """Requests of one length, nothing shared: no policy may send everything to one replica."""
    router = Router(make_policy(name, random.Random(5)))
    fleet = copies(16, router)
    begun = []
    for number in range(1600):
        request = router.describe(chat(f"{number} " * 100))
        begun.append(router.begin(router.choose(fleet, request), request, 0.0))
    loads = [copy.in_flight for copy in fleet]
    assert sum(loads) == 1600
    assert max(loads) <= 1.3 * 100
    for load in begun:
        load.end(1.0, 300, 50)
    assert all(copy.in_flight == 0 and copy.prefill_tokens == 0 for copy in fleet)
    assert all(copy.decode_tokens == 0 for copy in fleet)


def test_shortest_queue_takes_the_least_loaded() -> None:
    fleet = copies(5)
    for copy, load in zip(fleet, (3, 1, 2, 1, 5), strict=True):
        copy.in_flight = load
    pick = choose("shortest_queue", fleet)
    assert {pick().id for _ in range(100)} == {"r-1", "r-3"}


@pytest.mark.parametrize("name", ["auto", "least_work", "shortest_queue"])
def test_two_gateways_do_not_choose_in_lockstep(name: str) -> None:
    fleet = copies(4)
    one, two = choose(name, fleet, 1), choose(name, fleet, 2)
    same = sum(one().id == two().id for _ in range(2000))
    assert 350 < same < 650


def test_least_work_counts_tokens_and_not_only_requests() -> None:
    fleet = copies(2)
    fleet[0].in_flight, fleet[0].prefill_tokens, fleet[0].decode_tokens = 1, 6000.0, 900.0
    fleet[1].in_flight, fleet[1].prefill_tokens, fleet[1].decode_tokens = 3, 100.0, 60.0
    assert choose("least_work", fleet)().id == "r-1"
    assert choose("shortest_queue", fleet)().id == "r-0"


def test_power_of_two_never_takes_the_worst() -> None:
    fleet = copies(6)
    fleet[2].prefill_tokens = 1e6
    pick = choose("power_of_two", fleet)
    assert {pick().id for _ in range(500)} == {copy.id for copy in fleet} - {"r-2"}


def test_round_robin_takes_each_in_turn() -> None:
    pick = choose("round_robin", copies(4), 3)
    row = [pick().id for _ in range(8)]
    assert row[:4] == row[4:]
    assert len(set(row[:4])) == 4


def test_round_robin_continues_when_replicas_come_and_go() -> None:
    fleet = copies(3)
    policy, known = make_policy("round_robin", random.Random(3)), LearnedState()
    for _ in range(5):
        policy.choose(fleet, PLAIN, known)
    without_one = [fleet[0], fleet[2]]
    counts = Counter(policy.choose(without_one, PLAIN, known).id for _ in range(100))
    assert counts == {"r-0": 50, "r-2": 50}


# bounded hash


def test_bounded_hash_keeps_a_session_in_all_gateways_and_moves_few_when_one_leaves() -> None:
    one, two = (Router(make_policy("bounded_hash", random.Random(seed))) for seed in (1, 2))
    fleet = copies(10)

    def places(router: Router, among: list[Copy]) -> list[str]:
        return [
            router.choose(among, router.describe(chat("x"), session=f"session-{n}")).id
            for n in range(500)
        ]

    before = places(one, fleet)
    assert places(two, fleet) == before
    after = places(one, fleet[:-1])
    moved = [b for b, a in zip(before, after, strict=True) if a != b]
    assert set(moved) == {"r-9"}, "only the sessions of the replica that left have moved"
    counts = Counter(before)
    assert len(counts) == 10
    assert max(counts.values()) < 130


def test_bounded_hash_keeps_a_conversation_without_a_session_as_it_grows() -> None:
    router = Router(make_policy("bounded_hash"))
    fleet = copies(8)
    turns = ["you are kind", "hello", "hello, how can I help?", "tell me more", "more", "and more"]
    found = {router.choose(fleet, router.describe(chat(*turns[:n]))).id for n in (2, 4, 6)}
    assert len(found) == 1


def test_bounded_hash_is_bounded() -> None:
    router = Router(make_policy("bounded_hash"))
    fleet = copies(10)
    for _ in range(1000):
        request = router.describe(chat("x"), session="the one that everybody is in")
        router.begin(router.choose(fleet, request), request, 0.0)
    assert max(copy.in_flight for copy in fleet) <= 126


# auto

LONG = "All employees of the company must wash their hands before they return to work. " * 40


def send(router: Router, fleet: list[Copy], body: dict[str, Any], now_s: float = 0.0) -> Any:
    request = router.describe(body)
    chosen = router.choose(fleet, request)
    return chosen, router.begin(chosen, request, now_s)


def test_a_conversation_goes_to_its_cached_prefix() -> None:
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(8, router)
    turns = [LONG, "first question"]
    first, load = send(router, fleet, chat(*turns))
    load.first_token(0.5)
    load.end(1.0, 900, 50, 0)
    for number in range(5):
        turns += [f"answer {number}", f"question {number}"]
        chosen, load = send(router, fleet, chat(*turns))
        assert chosen is first
        assert chosen.prefill_tokens < 200, "what is cached is no work"
        load.first_token(0.1)
        load.end(1.0, 950, 50, 850)


def test_the_whole_prefix_counts_including_tools() -> None:
    """A common system prompt must not send all requests to one replica."""
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(4, router)
    homes: dict[int, str] = {}
    for number in range(40):
        body = chat("You are a helpful assistant.", f"{number} " + LONG)
        chosen, _ = send(router, fleet, body)
        homes[number] = chosen.id
    counts = Counter(homes.values())
    assert len(counts) == 4
    assert max(counts.values()) <= 13
    for copy in fleet:
        copy.in_flight, copy.prefill_tokens, copy.decode_tokens = 0, 0.0, 0.0
    for number in range(40):
        body = chat("You are a helpful assistant.", f"{number} " + LONG, "yes?", "go on")
        request = router.describe(body)
        assert router.choose(fleet, request).id == homes[number]
    tools = [{"type": "function", "function": {"name": "f" * 300, "parameters": {}}}]
    with_tools = router.describe(chat("a", "1 " + LONG, tools=tools))
    router.choose(fleet, with_tools)
    assert not with_tools.levels, "other tools, another prompt"


def test_a_hot_prefix_spills_over_under_load() -> None:
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(4, router)
    counts: Counter[str] = Counter()
    for number in range(600):
        chosen, _ = send(router, fleet, chat(LONG, f"question {number}"))
        counts[chosen.id] += 1
    assert len(counts) == 4, "no single replica drowns while others idle"
    assert max(counts.values()) < 1.5 * 150


def test_locality_survives_a_moment_of_load() -> None:
    """A few extra requests at the replica with the cached prefix are no reason to move."""
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(2, router)
    home, load = send(router, fleet, chat(LONG, "hello"))
    load.first_token(0.5)
    load.end(1.0, 900, 50, 0)
    home.in_flight += 2
    home.decode_tokens += 100
    assert send(router, fleet, chat(LONG, "hello again"))[0] is home


def test_the_prefixes_of_a_restarted_replica_are_dropped() -> None:
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(2, router)
    home, load = send(router, fleet, chat(LONG, "hello"))
    load.end(1.0, 900, 50, 0)
    prefixes = router.learned.prefixes
    assert len(prefixes) > 0
    prefixes.leave(home.slot)
    assert len(prefixes) == 0
    home.slot = prefixes.join()
    request = router.describe(chat(LONG, "hello"))
    router.choose(fleet, request)
    assert request.levels == []


def test_the_index_adapts_to_a_smaller_engine_cache() -> None:
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(2, router)
    for number in range(60):
        for again in range(2):
            chosen, load = send(router, fleet, chat(f"{number % 20} {LONG}", "x"))
            load.first_token(0.1)
            # It has evicted everything by the time the same prompt comes again.
            load.end(0.2, 900, 50, 0)
            del chosen, again
    held = sum(len(h.blocks) for h in router.learned.prefixes._replicas.values())
    assert held < 2 * 12 * 20 / 2, "the index has shrunk well below the 20 prompts"


def test_prefixes_being_computed_do_not_count_as_misses() -> None:
    """Many concurrent requests with the same prefix find nothing cached, which means nothing."""
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(2, router)
    loads = [send(router, fleet, chat(LONG, f"question {n}"))[1] for n in range(30)]
    before = {slot: held.capacity for slot, held in router.learned.prefixes._replicas.items()}
    for load in loads:
        load.first_token(1.0)
        load.end(2.0, 900, 50, 0)
    assert before == {s: h.capacity for s, h in router.learned.prefixes._replicas.items()}
    assert not any(h.computing for h in router.learned.prefixes._replicas.values())


def test_the_index_is_bounded() -> None:
    router = Router(make_policy("auto", random.Random(2)))
    fleet = copies(2, router)
    for copy in fleet:
        router.set_capacity(copy, 64 * 100)
    for number in range(500):
        _, load = send(router, fleet, chat(f"{number} {LONG}", "x"))
        load.end(0.2, 0, 0)
    assert len(router.learned.prefixes) <= 200


def test_completions_tokens_and_embeddings_are_described_too() -> None:
    router = Router(make_policy("auto"))
    assert len(router.describe({"prompt": "x" * 1024}).blocks) == 4
    assert len(router.describe({"prompt": [list(range(1000))]}).blocks) > 4
    assert router.describe({"input": ["a", "b" * 900]}, decodes=False).blocks == ()
    assert router.describe({"prompt": "x", "max_tokens": 7, "n": 3}).decode_tokens == 21
    assert router.describe(chat("x", max_completion_tokens=5)).decode_tokens == 5


# learned state


def test_rates_converge_to_the_speeds_of_a_replica() -> None:
    rng, rates = random.Random(4), Rates()
    for _ in range(300):
        prefill, running = rng.uniform(20, 4000), rng.randrange(0, 20)
        waiting = rng.randrange(0, running + 1)
        ttft_s = (0.015 + prefill / 5000 + running * 0.008 + waiting * 0.04) * rng.uniform(0.9, 1.1)
        rates.learn_ttft(WorkAhead(prefill, running, waiting), ttft_s)
        rates.learn_decode(64, 63 * 0.03, 8)
    assert rates.prefill_s == pytest.approx(1 / 5000, rel=0.1)
    assert rates.running_s == pytest.approx(0.008, rel=0.5)
    assert rates.waiting_s == pytest.approx(0.04, rel=0.2)
    assert rates.decode_s == pytest.approx(0.03 / 8, rel=0.05)


def test_rates_stay_bounded_without_information() -> None:
    rates = Rates()
    for _ in range(5000):
        rates.learn_ttft(WorkAhead(100.0, 1, 0), 0.1)
    assert rates.estimate_ttft_s(WorkAhead(100.0, 1, 0)) == pytest.approx(0.1, rel=0.05)
    assert 0 <= rates.prefill_s < 0.01
    rates.learn_ttft(WorkAhead(4000.0, 1, 0), 2.1)
    assert 0.5 < rates.estimate_ttft_s(WorkAhead(4000.0, 1, 0)) < 4


def test_a_full_replica_with_the_prefix_is_avoided() -> None:
    """A full replica lets even requests wait whose prompt it has cached."""
    router = Router(make_policy("auto", random.Random(3)))
    full, free = fleet = copies(2, router)
    first = router.describe(chat(LONG))
    load = router.begin(full, first, 0.0)
    load.first_token(0.2)
    load.end(1.0, 700, 50, 0, streamed=True)
    rng = random.Random(5)
    for _ in range(100):
        waiting = rng.randrange(0, 8)
        running = waiting + rng.randrange(4, 12)
        ttft_s = 0.05 + 0.6 * waiting
        router.learned.rates_of(full).learn_ttft(WorkAhead(100.0, running, waiting), ttft_s)
    full.in_flight = free.in_flight = 12
    full.decode_tokens, free.decode_tokens = 600.0, 500.0
    full.waiting = 1
    again = router.describe(chat(LONG))
    assert router.choose(fleet, again) is full, "a moment's wait is worth it"
    full.waiting = 8
    assert router.choose(fleet, again) is free


def test_different_kinds_of_replicas_have_their_own_speeds() -> None:
    router = Router(make_policy("auto", random.Random(1)))
    fleet = copies(2, router)
    fleet[1].rates_key = "v2"
    for number in range(50):
        for copy, speed in zip(fleet, (1000, 8000), strict=True):
            request = router.describe(chat(LONG[: 40 * number], str(number)))
            load = router.begin(copy, request, 0.0)
            load.first_token(request.prompt_tokens / speed)
            load.end(request.prompt_tokens / speed + 1, 500, 50, None, streamed=True)
    slow, fast = (router.learned.rates_of(copy) for copy in fleet)
    assert slow.prefill_s > 4 * fast.prefill_s


def test_tokens_are_estimated_from_what_engines_report() -> None:
    router = Router(make_policy("auto"))
    fleet = copies(2, router)
    for number in range(200):
        _, load = send(router, fleet, chat("x" * 3000, str(number)))
        load.end(1.0, 1500, 20, 0)
    assert router.describe(chat("x" * 3000, "y")).prompt_tokens == pytest.approx(1500, rel=0.1)


# alarms


def test_an_alarm_for_far_more_than_the_fair_share() -> None:
    router = Router(make_policy("auto"))
    fleet = copies(4, router)
    for copy in fleet:
        copy.in_flight = 5
    for _ in range(4000):
        router.shares.note("r-0", fleet)
    alarms = router.shares.take_alarms()
    assert alarms is not None
    assert {alarm.replica for alarm in alarms} == {copy.id for copy in fleet}
    assert next(a for a in alarms if a.replica == "r-0").share == 1.0


def test_no_alarm_for_even_shares_nor_without_load() -> None:
    router = Router(make_policy("shortest_queue", random.Random(1)))
    fleet = copies(4, router)
    for _ in range(400):
        router.shares.note("r-0", fleet)
    assert router.shares.take_alarms() is None, "idle replicas: stickiness is as it should be"
    for copy in fleet:
        copy.in_flight = 5
    rng = random.Random(2)
    for _ in range(8000):
        router.shares.note(rng.choice(fleet).id, fleet)
    assert router.shares.take_alarms() == []


# cost


def test_a_choice_costs_little_and_grows_slower_than_the_fleet() -> None:
    """A generous bound that holds on a busy machine; benchmarks/routing.py measures the cost."""
    took = {}
    for count in (64, 1024):
        router = Router(make_policy("auto", random.Random(2)))
        fleet = copies(count, router)
        bodies = [chat("You are kind.", f"{n % 50} {LONG}", str(n)) for n in range(300)]
        samples = []
        for body in bodies:
            request = router.describe(body)
            began = time.perf_counter()
            chosen = router.choose(fleet, request)
            samples.append(time.perf_counter() - began)
            router.begin(chosen, request, 0.0)
        took[count] = statistics.median(samples)
    assert took[64] < 500e-6
    assert took[1024] < 8 * took[64]


def test_a_thousand_replicas_stay_even() -> None:
    router = Router(make_policy("auto", random.Random(5)))
    fleet = copies(1000, router)
    for number in range(10_000):
        send(router, fleet, chat("x", str(number)))
    loads = [copy.in_flight for copy in fleet]
    assert max(loads) <= 16
    assert min(loads) >= 5
