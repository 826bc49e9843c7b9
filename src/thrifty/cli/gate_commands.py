"""`thrifty gate` as `app` lists it: `check` is what it does unless `verify` is named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from thrifty.cli.compression_commands import Json

CHECK = "check"


class _ChecksByDefault(TyperGroup):
    """`thrifty gate NAME ...` is `thrifty gate check NAME ...`."""

    default = CHECK

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the command of click, whose context typer brings under a name of its own."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


gate_app = typer.Typer(
    cls=_ChecksByDefault,
    help="Judge whether a new version may serve in place of another: `thrifty gate NAME --against NAME`.",
    no_args_is_help=True,
)


@gate_app.command(CHECK)
def check(
    candidate: Annotated[
        str, typer.Argument(metavar="NAME@v8", help="The new version: a stored name.")
    ],
    against: Annotated[str, typer.Option(metavar="NAME@v7", help="The version that serves now.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET|FILE",
            help="What they are judged on, may be repeated: questions (.jsonl) are asked; text and "
            "conversations, also of a built data set, are domains; encoders search for the texts of queries. "
            "Default: 500 questions and five domains of our own, or pairs of texts.",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            help="How much worse is still not worse: this share of the answers, and of the probability "
            "of a token on each domain."
        ),
    ] = 0.05,
    items: Annotated[int, typer.Option(min=1, help="At most so many questions of a set.")] = 600,
    tokens: Annotated[int, typer.Option(min=64, help="At most so many tokens of a domain.")] = 4096,
    speed: Annotated[
        bool, typer.Option(help="Measure speed and memory, which may not be a fifth worse.")
    ] = True,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE",
            help="Who compares the answers, blind: module:function, deployment:NAME, or a server's URL.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Which of the models at the judge's URL.")
    ] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the key to the judge's URL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a version with the one that serves, paired. Exits with 1 if it must not serve.

    The verdict is kept with the model: `thrifty up` refuses one that failed. Goes on where it was.
    """
    from thrifty.cli.gate_run import read_judge, run_check
    from thrifty.improve.gate.request import GateRequest

    request = GateRequest(
        candidate, against, data or (), margin, items, tokens, speed,
        judge=read_judge(judge, judge_model, judge_key_env),
    )  # fmt: skip
    run_check(request, as_json=as_json)


@gate_app.command()
def verify(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The record of a gate.")],
    as_json: Json = False,
) -> None:
    """Check that a record is what this home signed, and that its sets have not changed."""
    from thrifty.cli.gate_run import run_verify

    run_verify(record, as_json=as_json)
