"""The commands below `thrifty deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

deploy_app = typer.Typer(
    help="Write what other platforms run, from the same spec.", no_args_is_help=True
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@deploy_app.command("targets")
def targets(
    name: Annotated[str | None, typer.Argument(help="Show one target's options too.")] = None,
    as_json: Json = False,
) -> None:
    """List the platforms, and what each cannot do."""
    from thrifty.cli.deploy import run_targets

    run_targets(name, as_json=as_json)


@deploy_app.command("render")
def render(
    target: Annotated[
        str, typer.Argument(help="A target, as `thrifty deploy targets` lists them.")
    ],
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The spec.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write to.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the target, such as image=registry.example.com/thrifty:1. May be "
            "repeated.",
        ),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what would change, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the files with which a platform runs a spec. Reaches no platform."""
    from thrifty.cli.deploy import run_render

    run_render(target, spec, out, settings or [], diff=diff, as_json=as_json)


@deploy_app.command("plan")
def plan(
    cloud: Annotated[str, typer.Argument(help="aws, gcp or azure.")],
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The spec.")],
    rate: Annotated[
        float, typer.Option(min=0.001, help="Tokens of answers a second, at the busiest time.")
    ] = 100.0,
    tpot: Annotated[str, typer.Option(help="The longest time between two tokens.")] = "100ms",
    context: Annotated[
        int, typer.Option(min=1, help="Tokens of prompt and answer, on average.")
    ] = 1024,
    version: Annotated[
        str | None, typer.Option(help="The label to plan for, where there are several.")
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(help="The model's parameters, such as 8B, where the store has not got it."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Its layers.")] = None,
    kv_values: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Numbers in its KV cache for each token: 2 x layers x KV heads x their size.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank a cloud's machines by what a spec would cost on them, and say what rules others out."""
    from thrifty.cli.deploy_plan import run_plan

    run_plan(
        cloud, spec, rate=rate, tpot=tpot, context=context, version=version,
        size=(parameters, layers, kv_values), as_json=as_json,
    )  # fmt: skip


Target = Annotated[str, typer.Argument(help="A target, as `thrifty deploy targets` lists them.")]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The spec.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the target. May be repeated."),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(help="The kubeconfig to use. Default: KUBECONFIG, or ~/.kube/config."),
]
Name = Annotated[
    str | None,
    typer.Option(help="What it is called on the platform, where its files do not say. [thrifty]"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_CLUSTER = "kubernetes"
"""Written through the API itself, without a client program."""


@deploy_app.command("apply")
def apply(
    target: Target,
    spec: SpecFile,
    settings: Settings = None,
    name: Name = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", metavar="NAME=VALUE", help="A parameter of a CloudFormation template."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0.01, help="Refuse what may cost more dollars a month than this."),
    ] = None,
    kubeconfig: Kubeconfig = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Render a spec, show what it costs and apply it, by the platform's own program or, in a cluster,
    by its API; asks before. Repeated, it goes on where it ended.
    """
    if target == _CLUSTER:
        from thrifty.cli.deploy_cluster import run_apply

        _refuse_for_cluster(name=name, parameter=parameters, budget=budget)
        run_apply(target, spec, settings or [], kubeconfig, yes=yes, as_json=as_json)
        return
    from thrifty.cli import deploy_client

    given = deploy_client.Given(target, spec, settings or [], name, parameters or [], kubeconfig)
    deploy_client.run_apply(given, budget, yes=yes, as_json=as_json)


@deploy_app.command("status")
def status(
    target: Target,
    spec: SpecFile,
    settings: Settings = None,
    name: Name = None,
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Show what `apply` wrote, and how it is."""
    if target == _CLUSTER:
        from thrifty.cli.deploy_cluster import run_status

        _refuse_for_cluster(name=name)
        run_status(target, spec, settings or [], kubeconfig, as_json=as_json)
        return
    from thrifty.cli import deploy_client

    given = deploy_client.Given(target, spec, settings or [], name, (), kubeconfig)
    deploy_client.run_status(given, as_json=as_json)


@deploy_app.command("logs")
def logs(
    target: Target,
    spec: SpecFile,
    settings: Settings = None,
    name: Name = None,
    kubeconfig: Kubeconfig = None,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="How many of each pod.")] = 100,
) -> None:
    """Print the last lines of the log, in a cluster of each pod."""
    if target == _CLUSTER:
        from thrifty.cli.deploy_cluster import run_logs

        _refuse_for_cluster(name=name)
        run_logs(target, spec, settings or [], kubeconfig, lines=lines)
        return
    from thrifty.cli import deploy_client

    given = deploy_client.Given(target, spec, settings or [], name, (), kubeconfig)
    deploy_client.run_logs(given, lines=lines)


@deploy_app.command("destroy")
def destroy(
    target: Target,
    spec: SpecFile,
    settings: Settings = None,
    name: Name = None,
    kubeconfig: Kubeconfig = None,
    data: Annotated[
        bool,
        typer.Option("--data", help="Take claims and volumes away too, with the data in them."),
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take away what `apply` wrote; asks before. Claims and their data stay, unless told otherwise."""
    if target == _CLUSTER:
        from thrifty.cli.deploy_cluster import run_destroy

        _refuse_for_cluster(name=name)
        run_destroy(target, spec, settings or [], kubeconfig, data=data, yes=yes, as_json=as_json)
        return
    from thrifty.cli import deploy_client

    given = deploy_client.Given(target, spec, settings or [], name, (), kubeconfig)
    deploy_client.run_destroy(given, data=data, yes=yes, as_json=as_json)


def _refuse_for_cluster(**given: object) -> None:
    """Refuse options that say nothing of a cluster. Raises `ThriftyError`."""
    from thrifty.errors import ThriftyError

    for option, value in given.items():
        if value:
            raise ThriftyError(
                f"--{option} is for targets with a client program; the target kubernetes has "
                "--set namespace="
            )
