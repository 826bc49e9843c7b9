"""The commands below `thrifty lambda`, which run in the image of a function of AWS Lambda."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

lambda_app = typer.Typer(
    help="Commands of the image of an AWS Lambda function.", no_args_is_help=True
)


@lambda_app.command("bake")
def bake(
    target: Annotated[str, typer.Argument(metavar="SPEC", help="The spec, or a model.")],
) -> None:
    """Fetch and prepare the version in a spec, and note that the function serves it.

    A step of building the image: everything goes into THRIFTY_HOME, readable by all.
    """
    from thrifty.aws_lambda.baked import write_baked
    from thrifty.cli.replica import prepare_replica
    from thrifty.cli.show import print_line
    from thrifty.home import find_home

    served, _, _ = prepare_replica(target)
    note = write_baked(find_home().root, served)
    print_line(f"{served.name} ({served.version}) is baked: {note}")


@lambda_app.command("run")
def run() -> None:
    """Answer the function's events; the entry point of its image. As `python -m thrifty.aws_lambda`,
    which starts sooner.
    """
    from thrifty.aws_lambda.__main__ import main

    sys.exit(main())
