"""The figures of `benchmarks/results`: the page that holds all of them, the README's five, and its plot.

Whatever is printed here comes from the records that benchmarks write; nothing is typed in by hand
but the text around it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "images" / "engines.svg"
ORDER = (
    "engines", "routing", "cache", "fairness", "gateway_tokens", "gateway_overhead",
    "gateway_memory", "version_shares", "batches", "compression", "compression_memory",
    "served_tokens", "distillation", "install_size",
)  # fmt: skip

HEADLINES = (
    (
        "tokens/s with 32 streams, 8-bit weights, over the faster of llama.cpp (Q8_0) and vLLM (bf16)",
        "engines",
        "tokens/s over HTTP, 32 streams, thrifty int8 over the best of llama.cpp Q8_0 and vllm bf16",
    ),
    (
        "time that the gateway adds to a request, over smg, a gateway written in Rust",
        "gateway_overhead",
        "gateway overhead at the median, 1 connection, over that of smg 1.13.0",
    ),
    (
        "tokens/s of prefix-aware routing over round-robin, two replicas past saturation",
        "routing",
        "ten documents past saturation, two replicas: tokens/s of `auto` over round-robin",
    ),
    (
        "answers/s with all caches over none, 20% repeated requests and a shared system prompt",
        "cache",
        "answers/s with everything on over everything off, 20% repeats, shared system prompt",
    ),
    (
        "KL divergence of 4-bit weights over llama.cpp's Q4_K_M, whose file is larger (lower is better)",
        "compression",
        "the same over llama.cpp's Q4_K_M, which is larger: mean KL divergence",
    ),
)
"""What the README shows: a text, the benchmark, and the figure's name in its record."""

SERIES = (
    ("vllm bf16", "vLLM, bf16", "#b9b9b9"),
    ("llama.cpp Q8_0", "llama.cpp, Q8_0", "#8f8f8f"),
    ("llama.cpp Q4_0", "llama.cpp, Q4_0", "#666666"),
    ("thrifty 16-bit", "Thrifty, 16-bit", "#9ecae1"),
    ("thrifty int8", "Thrifty, int8", "#4292c6"),
    ("thrifty int4", "Thrifty, int4", "#08519c"),
)
"""What the plot shows: a contender's name in the record of `engines`, its label, its colour."""
STREAMS = ("1", "8", "32")

_FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
}  # fmt: skip


def read_results() -> list[tuple[str, dict[str, Any]]]:
    """What `benchmarks/` measured last, by name."""
    found = [(p.stem, json.loads(p.read_text(encoding="utf-8"))) for p in RESULTS.glob("*.json")]
    return sorted(
        found, key=lambda entry: (ORDER.index(entry[0]) if entry[0] in ORDER else 99, entry[0])
    )


def describe_processor(machine: dict[str, Any]) -> str:
    """The processor of a record, with the features that matter."""
    features = ", ".join(text for name, text in _FEATURES.items() if name in machine["features"])
    return f"{machine['processor']} ({features}), {machine['cores']} cores"


def figure_rows(name: str, record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A measurement's figures as rows of a table."""
    return [
        (f["figure"], f["measured"], f["bar"], "yes" if f["met"] else "**no**", f"`{name}`")
        for f in record["figures"]
    ]


def headline_rows() -> list[tuple[str, str, str]]:
    """The README's figures: what, how much, and the command. Raises `KeyError` for one that the
    records do not have.
    """
    records = dict(read_results())
    rows = []
    for text, name, figure in HEADLINES:
        measured = {f["figure"]: f["measured"] for f in records[name]["figures"]}[figure]
        rows.append((text, f"**{measured}**", f"`python benchmarks/{name}.py`"))
    return rows


def headline_machines() -> str:
    """The processors that the README's figures were measured on."""
    records = dict(read_results())
    return "; ".join(
        dict.fromkeys(describe_processor(records[name]["machine"]) for _, name, _ in HEADLINES)
    )


def plot_data() -> dict[str, list[float]]:
    """The medians of tokens/s that the plot shows, by contender, for each number of streams."""
    rounds = dict(read_results())["engines"]["results"]
    return {
        name: [median(turn[count]["tokens_per_s"] for turn in rounds[name]) for count in STREAMS]
        for name, _, _ in SERIES
    }


def plot_mark() -> str:
    """What the plot was drawn from, as a checksum that stands in the file."""
    source = Path(__file__).read_bytes() + json.dumps(plot_data()).encode()
    return hashlib.sha256(source).hexdigest()[:16]


def plot_is_stale() -> bool:
    """Whether the plot was drawn from other records, or by other code, than there are now. The
    bytes of a drawing depend on matplotlib's version, so they are not compared.
    """
    return not PLOT.exists() or plot_mark() not in PLOT.read_text(encoding="utf-8")


def draw_plot() -> None:
    """Draw tokens/s by the number of streams, and write it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "thrifty"
    data, record = plot_data(), dict(read_results())["engines"]
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(SERIES)
    for index, (name, label, colour) in enumerate(SERIES):
        places = [group + (index - (len(SERIES) - 1) / 2) * width for group in range(len(STREAMS))]
        bars = axes.bar(places, data[name], width, label=label, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(STREAMS)), [f"{n} stream{'s' if n != '1' else ''}" for n in STREAMS])
    axes.set_ylabel("tokens/s over HTTP")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    machine = record["machine"]
    axes.set_title(
        f"SmolLM2-135M on {machine['processor']}, {machine['cores']} cores with AVX512-VNNI "
        f"(median of {record['rounds']} rounds)",
        fontsize=9,
    )
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None, "Description": f"drawn from {plot_mark()}"})
    pyplot.close(figure)
    # Matplotlib leaves spaces at the ends of lines.
    lines = PLOT.read_text(encoding="utf-8").splitlines()
    PLOT.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
