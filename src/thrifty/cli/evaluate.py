"""`thrifty evaluate`: how good a model is, beside a reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.answers import show_answers
from thrifty.cli.show import print_json, print_line, print_table, show_progress
from thrifty.cli.texts import find_named, make_log_finder
from thrifty.compare.columns import (
    AGREEMENT,
    DOMAIN,
    describe_worst,
    format_agreement,
    format_domain,
    format_interval,
)
from thrifty.engines.machine import detect_machine
from thrifty.errors import EvaluationError, GateError
from thrifty.evaluate import Evaluation, EvaluationOptions, evaluate
from thrifty.evaluate.answers import (
    AnswersRequest,
    evaluate_answers,
    find_questions,
    is_chat_model,
)
from thrifty.evaluate.domains import Domain
from thrifty.evaluate.embeddings import EmbeddingAgreement
from thrifty.evaluate.gate import (
    Verdict,
    check_max_drop,
    describe_verdict,
    judge,
    record_verdict,
)
from thrifty.evaluate.harness import is_harness_task
from thrifty.evaluate.open_model import is_url
from thrifty.evaluate.run import DOMAIN_TOKENS
from thrifty.evaluate.suite import (
    find_data,
    find_domains,
    name_default_domains,
)
from thrifty.evaluate.task_result import TaskResult
from thrifty.home import Home, find_home
from thrifty.own_replica import make_server
from thrifty.types import OnProgress

_FOREIGN_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""So that what lm-evaluation-harness uses draws no progress of its own through ours."""


def _find_task(name: str, home: Home, store: Store, on_progress: OnProgress) -> str:
    """A file, or a set fetched; tasks of lm-evaluation-harness keep their name."""
    if is_harness_task(name):
        return name
    return str(find_data(name, home.data, store, on_progress).path)


def run_evaluate(
    model: str,
    reference: str,
    *,
    domains: Sequence[str],
    text: str | None,
    tasks: Sequence[str],
    pairs: Path | None,
    include: Sequence[Path],
    shots: int | None,
    window: int,
    top_k: int,
    tokens: int | None,
    items: int | None,
    margin: float,
    backend: str,
    kv_precision: str | None,
    answers: bool | None,
    questions: str | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Evaluate a model. Raises `GateError` for one that drops by more than `max_drop`."""
    if max_drop is not None:
        check_max_drop(max_drop)
    if answers is False and questions is not None:
        raise EvaluationError("--questions says what to ask, and --no-answers to ask nothing")
    if questions is not None:
        answers = True
    for name in _FOREIGN_BARS:
        os.environ.setdefault(name, "1")
    home = find_home()
    store = Store(home.models)
    with show_progress() as on_progress:
        if not domains and text is None and not tasks and pairs is None:
            artifact = fetch_model(store, reference, on_progress=on_progress)[1]
            domains = name_default_domains(store, artifact)
        log = make_log_finder(home)
        found_domains = find_domains(domains, home.data, store, on_progress, log)
        if domains and answers is None:
            artifact = fetch_model(store, reference, on_progress=on_progress)[1]
            answers = is_chat_model(store, artifact)
        options = EvaluationOptions(
            domains=[Domain(domain.name, domain.path) for domain in found_domains],
            text=find_named(text, home, store, on_progress),
            tasks=[_find_task(task, home, store, on_progress) for task in tasks],
            pairs=pairs,
            include=include,
            shots=shots,
            window=window,
            top_k=top_k,
            max_tokens=tokens,
            domain_tokens=tokens or DOMAIN_TOKENS,
            max_items=items,
            margin=margin,
            backend=backend,
            kv_precision=kv_precision,
        )
        found = evaluate(
            model, reference, options, store=store, folder=home.evaluations,
            on_progress=on_progress,
        )  # fmt: skip
        given = None
        if answers:
            root = fetch_model(store, reference, on_progress=on_progress)[0]
            asked = find_questions(questions, home.data, store, items, on_progress)
            server = make_server(store, home, detect_machine())
            given = evaluate_answers(
                model, AnswersRequest(root, asked, server), store=store, folder=home.evaluations,
                on_progress=on_progress,
            )  # fmt: skip
    verdict = None if max_drop is None else _judge(found, given, max_drop)
    if as_json:
        gate = {} if verdict is None else {"gate": verdict.as_dict()}
        print_json(found.as_dict() | ({} if given is None else {"answers": given}) | gate)
    else:
        _show(found)
        if given is not None:
            show_answers(found.model, given)
    if verdict is not None:
        _record(store, model, found, reference, verdict, as_json=as_json)


def _judge(found: Evaluation, given: dict[str, Any] | None, max_drop: float) -> Verdict:
    ratios = {name: one.perplexity_ratio for name, one in found.domains.items()}
    if found.divergence is not None:
        ratios[Path(found.text or "text").name] = found.divergence.perplexity_ratio
    agreements = dict(found.agreements)
    if found.embeddings is not None:
        agreements[found.text or "text"] = found.embeddings
    correlations = {
        name: one.rank_correlation.spearman
        for name, one in agreements.items()
        if one.rank_correlation is not None
    }
    return judge(ratios, given, max_drop, correlations)


def _record(
    store: Store,
    model: str,
    found: Evaluation,
    reference: str,
    verdict: Verdict,
    *,
    as_json: bool,
) -> None:
    """Record the verdict with a stored model, tell it, and raise `GateError` where it is a failure."""
    root = fetch_model(store, reference)[0]
    if is_url(model):
        message = describe_verdict(found.model, root.label, verdict, ())
    else:
        message = record_verdict(store, *fetch_model(store, model), root, verdict)
    if not verdict.passed:
        raise GateError(message)
    for line in (message, *verdict.notes):
        if not as_json:
            print_line(line)


def _show(found: Evaluation) -> None:
    print_line(f"{found.model}, beside {found.reference}")
    if found.worst is not None:
        _show_domains(found, found.worst)
    measured = found.divergence
    if measured is not None:
        kl, change = measured.kl_divergence, measured.probability_change
        print_line(f"\n{found.text}: {measured.tokens} tokens in {measured.windows} windows\n")
        print_table(
            ("", "", ""),
            [
                ("KL divergence, nats", f"{kl.mean:.5f}", f"+- {kl.stderr:.5f}"),
                ("  median, p99, p99.9", f"{kl.median:.5f}", f"{kl.p99:.4f}, {kl.p999:.4f}"),
                ("  lost by keeping the top tokens alone", f"{measured.truncation or 0:.6f}",
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
    if found.embeddings is not None:
        _show_embeddings(found.embeddings, found.text)
    if found.tasks:
        print_line()
        margin = next(iter(found.tasks.values())).margin
        print_table(
            ("task", "metric", "items", "score", "95%", "by length", "reference", "difference",
             "95%", "flips + / -", f"not inferior by {margin:.0%}"),
            [_show_task(name, task) for name, task in found.tasks.items()],
        )  # fmt: skip


def _show_domains(found: Evaluation, worst: str) -> None:
    domains = found.describe_domains()
    columns, form = (AGREEMENT, format_agreement) if found.agreements else (DOMAIN, format_domain)
    print_line(f"\n{describe_worst(worst, domains[worst])}\n")
    print_table(
        ("domain", *columns),
        [
            (f"{name} (worst)" if name == worst else name, *form(one))
            for name, one in domains.items()
        ],
    )
    for name, one in found.agreements.items():
        if (scores := one.labelled) is not None:
            interval = format_interval(scores.difference, scores.difference_stderr)
            print_line(
                f"\n{name}: rank correlation with the scores of the pairs {scores.candidate:.4f}, "
                f"the reference's {scores.reference:.4f}, difference {scores.difference:+.4f} "
                f"({interval})"
            )
    longer = {name: one.token_ratio - 1 for name, one in found.domains.items()}
    if any(longer.values()):
        shares = ", ".join(f"{name} {more:.1%}" for name, more in longer.items())
        print_line(f"\nwith fewer tokens in its vocabulary, it needs more for a text: {shares}")


def _show_embeddings(found: EmbeddingAgreement, text: str | None) -> None:
    rows: list[tuple[str, str, str]] = []
    cosine = found.cosine
    if cosine is not None:
        rows += [
            ("cosine with the reference", f"{cosine.mean:.5f}", f"+- {cosine.stderr:.5f}"),
            ("  median, p5, p1, least", f"{cosine.median:.5f}",
             f"{cosine.p5:.4f}, {cosine.p1:.4f}, {cosine.min:.4f}"),
        ]  # fmt: skip
    for what, pairs in (("all pairs of a sample", found.rank_correlation), ("pairs", found.pairs)):
        if pairs is not None:
            rows.append(
                (f"rank correlation, {what}", f"{pairs.spearman:.5f}",
                 f"+- {pairs.stderr:.5f}, {pairs.pairs} pairs")
            )  # fmt: skip
    if found.same_nearest is not None:
        rows.append(("same nearest neighbour", f"{found.same_nearest:.2%}", ""))
    if (people := found.labelled) is not None:
        rows.append(
            ("rank correlation with the scores", f"{people.candidate:.4f}",
             f"reference {people.reference:.4f}, difference {people.difference:+.4f} "
             f"+- {people.difference_stderr:.4f}")
        )  # fmt: skip
    if text is not None:
        print_line(f"\n{text}: {found.texts} texts\n")
    print_table(("", "", ""), rows)


def _show_task(name: str, task: TaskResult) -> tuple[str, ...]:
    def show(value: float, sign: str = "") -> str:
        return f"{value:{sign}.1%}" if task.is_share else f"{value:{sign}.4g}"

    score, paired = task.score, task.paired
    return (
        name, task.metric, str(score.count), show(score.share),
        f"{show(score.low)} to {show(score.high)}",
        show(task.by_length.share) if task.is_share else "", show(task.reference.share),
        show(paired.difference, "+"), f"{show(paired.low, '+')} to {show(paired.high, '+')}",
        f"{paired.gained} / {paired.lost}", "yes" if task.not_inferior else "no",
    )  # fmt: skip
