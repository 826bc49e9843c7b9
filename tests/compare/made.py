"""A comparison with invented measurements, without models."""

from __future__ import annotations

from typing import Any

from thrifty.compare.lineage import LineageStep
from thrifty.compare.table import Comparison, Row
from thrifty.types import Family


def make_domain(divergence: float, ratio: float, tokens: int = 4088) -> dict[str, Any]:
    return {
        "kl_divergence": {"mean": divergence, "stderr": divergence / 10, "p99": 1.0},
        "same_top_token": 0.9, "perplexity_ratio": ratio, "perplexity_ratio_stderr": 0.01,
        "tokens": tokens,
    }  # fmt: skip


def make_row(name: str, megabytes: float, divergence: float, rate: float, **changes: Any) -> Row:
    values = {
        "name": name, "id": name, "form": "int8", "parameters": 1000, "size_bytes": int(megabytes * 1e6),
        "bits_per_weight": 8.3,
        "domains": {"wiki": make_domain(divergence, 1.01)},
        "tasks": {
            "piqa": {"score": 0.7, "difference": -0.01, "difference_low": -0.03,
                     "difference_high": 0.01},
        },
        "speed": {"load_s": 2.5, "ttft_s": 0.1, "tokens_per_s": {"1": rate / 3, "8": rate},
                  "memory_bytes": 1, "busy_before": 0.0},
        "lineage": [LineageStep(name, "int8, rounded to nearest"), LineageStep("base@v1", "pypi:base==1")],
        **changes,
    }  # fmt: skip
    return Row(**values)


def make_comparison(*rows: Row, **changes: Any) -> Comparison:
    values = {
        "reference": "base@v1", "family": Family.DECODER, "rows": list(rows), "tasks": ["piqa"],
        "domains": [
            {"name": name, "tokens": 4096, "domain_sha256": "ab" * 32, "engine": "openvino 1",
             "processor": "P"}
            for name in dict.fromkeys(name for row in rows for name in row.domains)
        ],
        "speed": {"engine": "openvino 1", "threads": 2, "processor": "P", "prompt_tokens": 64,
                  "output_tokens": 48},
        **changes,
    }  # fmt: skip
    return Comparison(**values)


THREE = make_comparison(
    make_row("base-int8@v1", 144, 0.008, 310),
    make_row("base-int4@v1", 97, 0.11, 350),
    make_row("base-pruned-int4@v1", 80, 0.6, 420),
)

FIVE = make_comparison(
    *(
        make_row(
            name, size, divergence, 300,
            domains={
                "chat": make_domain(divergence, 1 + divergence * 2, 2866),
                "web": make_domain(divergence / 2, 1 + divergence),
                "code": make_domain(divergence * 2, 1 + divergence / 2),
            },
        )
        for name, size, divergence in (("base-int8@v1", 144, 0.008), ("base-pruned@v1", 80, 0.6))
    )
)  # fmt: skip
"""Models that were measured on several domains, chat their worst."""
