"""`thrifty evaluate`: how good a model is, beside a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress
from thrifty.evaluate import Evaluation, evaluate
from thrifty.home import find_home


def run_evaluate(
    model: str,
    reference: str,
    *,
    text: Path | None,
    tasks: Sequence[Path],
    window: int,
    top_k: int,
    tokens: int | None,
    items: int | None,
    margin: float,
    backend: str,
    kv_precision: str | None,
    as_json: bool,
) -> None:
    """Evaluate a model."""
    home = find_home()
    with show_progress() as on_progress:
        found = evaluate(
            model,
            reference,
            store=Store(home.models),
            folder=home.evaluations,
            text=text,
            tasks=tasks,
            window=window,
            top_k=top_k,
            max_tokens=tokens,
            max_items=items,
            margin=margin,
            backend=backend,
            kv_precision=kv_precision,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _show(found: Evaluation) -> None:
    print_line(f"{found.model}, beside {found.reference}")
    measured = found.divergence
    if measured is not None:
        kl, change = measured.kl_divergence, measured.probability_change
        print_line(f"\n{found.text}: {measured.tokens} tokens in {measured.windows} windows\n")
        print_table(
            ("", "", ""),
            [
                ("KL divergence, nats", f"{kl.mean:.5f}", f"+- {kl.stderr:.5f}"),
                ("  median, p99, p99.9", f"{kl.median:.5f}", f"{kl.p99:.4f}, {kl.p999:.4f}"),
                ("  lost by keeping the top tokens alone", f"{measured.truncation:.6f}",
                 f"on {measured.truncation_tokens} tokens"),
                ("same top token", f"{measured.same_top_token:.2%}",
                 f"+- {measured.same_top_token_stderr:.2%}"),
                ("perplexity", f"{measured.perplexity:.3f}",
                 f"reference {measured.reference_perplexity:.3f}"),
                ("  ratio", f"{measured.perplexity_ratio:.4f}",
                 f"+- {measured.perplexity_ratio_stderr:.4f}"),
                ("right token's probability, change", f"{change.mean:+.4f}", f"RMS {change.rms:.4f}"),
                ("  p1, p99", f"{change.p1:+.4f}", f"{change.p99:+.4f}"),
            ],
        )  # fmt: skip
    if found.tasks:
        print_line()
        print_table(
            ("task", "items", "score", "95%", "by length", "reference", "difference", "95%",
             "flips + / -", f"not inferior by {next(iter(found.tasks.values())).margin:.0%}"),
            [
                (name, task.score.count, f"{task.score.share:.1%}",
                 f"{task.score.low:.1%} to {task.score.high:.1%}", f"{task.by_length.share:.1%}",
                 f"{task.reference.share:.1%}", f"{task.paired.difference:+.1%}",
                 f"{task.paired.low:+.1%} to {task.paired.high:+.1%}",
                 f"{task.paired.gained} / {task.paired.lost}", "yes" if task.not_inferior else "no")
                for name, task in found.tasks.items()
            ],
        )  # fmt: skip
