"""The commands `compress` and `compare`, as `app` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def compress(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SPEC.yaml | MODEL",
            help="A spec with a section 'compress', or a checkpoint: a stored name, a source, a path.",
        ),
    ],
    prune: Annotated[
        float | None, typer.Option(help="The share of the parameters to keep, such as 0.8.")
    ] = None,
    distill: Annotated[
        str | None, typer.Option(help="How many tokens to train on afterwards, such as 2M.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8, int4 or none. Default: int8, or as the spec says.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="For int4: at most so many bits a weight.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Text to learn from: a file or a set. Default: passages.")
    ] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Text to judge by: a file or a set. Default: wiki.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Questions to judge by: a file or a set.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The result's name.")] = None,
    as_json: Json = False,
) -> None:
    """Prune, distil and quantize a model, and measure each stage. Goes on where it was."""
    from thrifty.cli.compress import run_compress

    flags = {
        "compress.prune.parameters": prune,
        "compress.distill.tokens": distill,
        "compress.quantize.scheme": quantize,
        "compress.quantize.bits": bits,
        "compress.text": text,
        "compress.held_out": held_out,
        "compress.tasks": tasks or None,
        "compress.out": out,
    }
    run_compress(target, flags, as_json=as_json)


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Stored names, sources or paths.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="What they are held to. Default: what the first was made from."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Held-out text: a file or a set. Default: what most of them were measured on, or wiki."
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens of the text.")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A file of questions or a set. Default: those asked before."),
    ] = None,
    items: Annotated[int | None, typer.Option(help="At most so many items of a task.")] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure what is not recorded; else it is left empty.")
    ] = True,
    speed_again: Annotated[
        bool,
        typer.Option("--speed-again", help="Measure speeds anew: the machine may have been busy."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML file that stands alone to this path.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the plots to this path.")] = None,
    as_json: Json = False,
) -> None:
    """Show models side by side: size, quality, tasks, speed, and what each was made from."""
    from thrifty.cli.compare import run_compare

    run_compare(
        models, reference=reference, text=text, tokens=tokens, tasks=tasks or (), items=items,
        measure=measure, speed_again=speed_again, report=report, png=png, as_json=as_json,
    )  # fmt: skip
