"""`thrifty cache`: have answers forgotten, and see what was spared."""

from __future__ import annotations

from typing import Any

from thrifty.cli.show import err, print_json, print_line, print_table
from thrifty.control.service_api import Actor, check_served
from thrifty.db.cache import add_purge, read_cache_stats
from thrifty.fleet.controller_note import open_home
from thrifty.gateway.app.cache_pages import summarize
from thrifty.home import find_home
from thrifty.units import format_bytes


def run_purge(
    deployment: str | None, version: str | None, tenant: str | None, *, as_json: bool
) -> None:
    """Have every worker forget answers."""
    with open_home(find_home()) as database:
        check_served(database, deployment, version)
        purge = add_purge(
            database, deployment=deployment, version=version, tenant=tenant,
            who=Actor.from_user("thrifty cache purge").who,
        )  # fmt: skip
    if as_json:
        print_json(vars(purge))
        return
    named = {"deployment": deployment, "version": version, "tenant": tenant}
    chosen = " and ".join(f"{name} {value!r}" for name, value in named.items() if value)
    what = f"the answers of {chosen}" if chosen else "every answer"
    err.print(f"Gateway workers forget {what} within a quarter of a second.")


def run_stats(*, as_json: bool) -> None:
    """Show what caches hold and spared."""
    with open_home(find_home()) as database:
        stats = summarize(read_cache_stats(database))
    if as_json:
        print_json(stats)
        return
    if not stats["workers"]:
        print_line("No gateway worker runs. Start one: thrifty up")
        return
    rows = [_row(name, figures) for name, figures in stats["deployments"].items()]
    print_table(
        ("deployment", "hits", "of", "ratio", "answers", "size", "time spared", "tokens spared",
         "money spared"),
        [*rows, _row("all", stats["total"])],
    )  # fmt: skip
    if stats["shared"] is not None:
        shared = stats["shared"]
        print_line(
            f"Redis: {shared['hits']:.0f} hits, {shared['misses']:.0f} misses, "
            f"{shared['written']:.0f} answers written, {shared['late']:.0f} late"
        )


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    hits = figures.get("hit", 0)
    tokens = figures.get("saved_prompt_tokens", 0) + figures.get("saved_completion_tokens", 0)
    return (
        name, f"{hits:.0f}", f"{hits + figures.get('miss', 0):.0f}", f"{figures['hit_ratio']:.1%}",
        f"{figures.get('entries', 0):.0f}", format_bytes(figures.get("bytes", 0)),
        f"{figures.get('saved_s', 0):.1f} s", f"{tokens:.0f}", f"{figures.get('saved_cost', 0):.4f}",
    )  # fmt: skip
