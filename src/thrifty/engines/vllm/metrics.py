"""vLLM's own figures, read from the Prometheus text of its `/metrics`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SAMPLE = re.compile(rb"^vllm:(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Figures:
    """What vLLM says of itself. Counters count from its start."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1; the fullest one's where there are several."""
    prefix_tokens: float = 0.0
    """Tokens that were looked up in the prefix cache, and those found there."""
    prefix_hits: float = 0.0
    preemptions: float = 0.0
    """Answers that were set back because the KV cache was full."""
    drafted: float = 0.0
    """Tokens that were guessed, and those that the model agreed with."""
    accepted: float = 0.0
    kv_tokens: int = 0
    """Tokens that the KV cache has room for."""

    def describe(self) -> dict[str, float]:
        """The counters, for `/load`."""
        facts = {
            "prefix_cache_tokens": self.prefix_tokens,
            "prefix_cache_hits": self.prefix_hits,
            "preemptions": self.preemptions,
        }
        if self.drafted:
            facts |= {
                "speculating": 1.0, "speculation_acceptance": self.accepted / self.drafted,
            }  # fmt: skip
        return facts


def parse_figures(text: bytes) -> Figures:
    """Read a page of metrics. What is not on it is 0; several engines behind one server are added
    up. Raises `ValueError` for a value that is no number.
    """
    sums: dict[bytes, float] = {}
    most: dict[bytes, float] = {}
    kv_tokens = 0
    for name, labels, value in _SAMPLE.findall(text):
        number = float(value)
        sums[name] = sums.get(name, 0.0) + number
        most[name] = max(most.get(name, 0.0), number)
        if name == b"cache_config_info":
            kv_tokens += _read_label(labels, b"kv_cache_size_tokens")
    return Figures(
        running=round(sums.get(b"num_requests_running", 0)),
        waiting=round(sums.get(b"num_requests_waiting", 0)),
        kv_usage=min(1.0, most.get(b"kv_cache_usage_perc", 0.0)),
        prefix_tokens=sums.get(b"prefix_cache_queries_total", 0.0),
        prefix_hits=sums.get(b"prefix_cache_hits_total", 0.0),
        preemptions=sums.get(b"num_preemptions_total", 0.0),
        drafted=sums.get(b"spec_decode_num_draft_tokens_total", 0.0),
        accepted=sums.get(b"spec_decode_num_accepted_tokens_total", 0.0),
        kv_tokens=kv_tokens,
    )


def _read_label(labels: bytes, name: bytes) -> int:
    found = re.search(rb'(?:^|,)%b="(\d+)"' % name, labels)
    return int(found[1]) if found is not None else 0
