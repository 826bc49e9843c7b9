"""The commands that make models smaller and judge them, as `app` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=0.999,
        help="Measure the result, and exit with 3 if it loses more than this share: of the probability of "
        "a token on any domain, or of the answers that were right.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


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
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--domain",
            help="A use to evaluate on: a set, a file (.txt, or .jsonl with 'messages' or 'text'), "
            "NAME=FILE, or NAME=log:DEPLOYMENT; for encoders a file may have 'texts' in pairs. Default, "
            "where nothing else is named: chat, encyclopedia, web, code and questions; for encoders wiki "
            "and pairs.",
        ),
    ] = None,
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
    tokens: Annotated[
        int | None,
        typer.Option(
            help="At most so many tokens of the text and of each domain. Default: 4096 of a domain, "
            "all of the text."
        ),
    ] = None,
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
    answers: Annotated[
        bool | None,
        typer.Option(
            "--answers/--no-answers",
            help="Ask both models questions, and show what they answer. Default: for chat models, "
            "with domains or where nothing is named.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(help="The questions to ask: a set, or a file, .jsonl. Default: our own."),
    ] = None,
    max_drop: MaxDrop = None,
    as_json: Json = False,
) -> None:
    """Compare a model with a reference: divergence and perplexity on domains, tasks. Goes on where
    it was.

    Encoders are compared by their embeddings.
    """
    from thrifty.cli.evaluate import run_evaluate

    run_evaluate(
        model, reference, domains=domains or (), text=text, tasks=tasks or (), pairs=pairs, include=include_path or (),
        shots=shots, window=window, top_k=top_k, tokens=tokens, items=items, margin=margin,
        backend=backend, kv_precision=kv_precision, answers=answers, questions=questions,
        max_drop=max_drop,
        as_json=as_json,
    )  # fmt: skip


def quantize(
    model: Annotated[str, typer.Argument(help="A checkpoint: a stored name, a source, a path.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="int8; w8a8, somewhat faster under load; w7a8, the same for processors without 8-bit "
            "dot products; int4; as GGUF: q8_0, q6_k, q5_k_m, q4_k_m, f16 and others; for vLLM: "
            "vllm-w8a8, vllm-w4a16, vllm-fp8."
        ),
    ],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn from: a set, a file, or none; may be given again, as NAME=WEIGHT. "
            "Default: a mix for chat models, else passages, where anything is learned."
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
            help="How many tokens of the text are used. Default: 8192 for int8 and w8a8, else 32768."
        ),
    ] = None,
    max_drop: MaxDrop = None,
    as_json: Json = False,
) -> None:
    """Keep a model's weights in fewer bits."""
    from thrifty.cli.gate import judge_made
    from thrifty.cli.quantize import run_quantize

    run_quantize(
        model, scheme=scheme, out=out, text=text or (), held_out=held_out, bits=bits, tokens=tokens,
        as_json=as_json,
    )  # fmt: skip
    judge_made(out, max_drop)


def prune(
    model: Annotated[str, typer.Argument(help="A checkpoint: a stored name, a source, a path.")],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    parameters: Annotated[
        float | None, typer.Option(help="The share of the parameters to keep, such as 0.8.")
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            metavar="N|SHARE|all|auto",
            help="How many tokens to keep. Default: as many as cost least at that size, or all with "
            "--depth-only or --width-only. Without --parameters: nothing else goes, and auto takes "
            "tokens away until text would need 1% more of them.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn from: a set or a file; may be given again, as NAME=WEIGHT. Default: a mix "
            "for chat models, else passages."
        ),
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
    max_drop: MaxDrop = None,
    as_json: Json = False,
) -> None:
    """Take parts of a model away; what stays is a plain checkpoint.

    Several ways to the size are made and measured, and the one nearest to the whole model is kept.
    Tokens that are rare in the text go first where that costs least: all layers stay whole, and text
    in languages and scripts that the text does not hold needs more tokens.
    Only whole parts go: weights that are set to zero one by one, or two in four, save nothing on the
    engines here, which have no kernels for them.
    """
    from thrifty.cli.gate import judge_made
    from thrifty.cli.prune import run_prune

    run_prune(
        model, parameters=parameters, vocabulary=vocabulary, depth_only=depth_only, width_only=width_only, out=out,
        text=text or (), held_out=held_out, tokens=tokens, as_json=as_json,
    )  # fmt: skip
    judge_made(out, max_drop)


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
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="In how many steps to prune, each followed by an equal part of --distill. auto: as "
            "few as take at most a third at a time. Default: 1.",
        ),
    ] = None,
    distill: Annotated[
        str | None,
        typer.Option(
            help="How many tokens to train on afterwards, such as 2M, or how long, such as 30m."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="int8, w8a8, int4 or none. Default: int8, or as the spec says."),
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="For int4: at most so many bits a weight.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn from: a file or a set; may be given again, as NAME=WEIGHT. Default: a mix "
            "for chat models, else passages."
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            help="A domain to judge by: a set, a file, or NAME=FILE. Default: chat, encyclopedia, "
            "web, code and questions; for encoders wiki and pairs."
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="Questions to judge by: a file or a set.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="How much the result may lose: this share of the probability of a token on any domain, "
            "and of the answers that were right. Beyond it, the exit code is 3. Default: 0.25."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="The result's name.")] = None,
    as_json: Json = False,
) -> None:
    """Prune, distil and quantize a model, and measure each stage. Goes on where it was."""
    from thrifty.cli.compress import run_compress
    from thrifty.spec.section import is_time

    flags = {
        "compress.prune.parameters": prune,
        "compress.prune.steps": steps,
        "compress.distill.time" if is_time(distill or "") else "compress.distill.tokens": distill,
        "compress.quantize.scheme": quantize,
        "compress.quantize.bits": bits,
        "compress.text": text or None,
        "compress.held_out": held_out or None,
        "compress.tasks": tasks or None,
        "compress.max_drop": max_drop,
        "compress.out": out,
    }
    run_compress(target, flags, as_json=as_json)


def optimize(
    model: Annotated[
        str, typer.Argument(help="A decoder's checkpoint: a stored name, a source, a path.")
    ],
    max_drop: Annotated[
        float,
        typer.Option(
            help="How much the result may lose, with 95% confidence: this share of the probability of a "
            "token on every domain, and of the answers that were right."
        ),
    ] = 0.25,
    slo: Annotated[
        str | None,
        typer.Option(
            help="The objective, such as ttft=500ms,tpot=60ms,e2e=10s: only requests that meet it "
            "count. Default: all count."
        ),
    ] = None,
    load: Annotated[
        str,
        typer.Option(
            help="The load to serve: a number of streams, or a file of JSON lines as for `thrifty bench "
            "--trace`."
        ),
    ] = "8",
    budget: Annotated[str, typer.Option(help="The time to search, such as 60m.")] = "60m",
    out: Annotated[
        str | None, typer.Option(help="The result's name. Default: the model's and `-optimized`.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            help="What this machine costs an hour. Default: what the spec says that was applied in "
            "this home (price_per_hour, machine), else costs are relative."
        ),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A spec that says what this machine costs an hour.")
    ] = None,
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--domain", help="A use to judge by, as in `evaluate`; repeatable. Default: as there."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn from, as in `distill`: a set or a file, may be repeated, with a weight as "
            "NAME=0.3. Default: as there."
        ),
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="Questions to ask, as in `evaluate`: a set, or a file.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Measure anew all that this search may run."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML file that stands alone to this path.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the plots to this path.")] = None,
    as_json: Json = False,
) -> None:
    """Find the cheapest way to serve a model here: pruned, distilled, in which form, with which
    settings of the engine. Goes on where it was.

    The exit code is 3 where nothing is within the bound.
    """
    from thrifty.cli.optimize import run_optimize

    run_optimize(
        model, max_drop=max_drop, slo=slo, load=load, budget=budget, out=out,
        price_per_hour=price_per_hour, spec=spec, domains=domains or (), text=text or (),
        questions=questions, again=again, report=report, png=png, as_json=as_json,
    )  # fmt: skip


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Stored names, sources or paths.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="What they are held to. Default: what the first was made from."),
    ] = None,
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--domain",
            "--text",
            help="A use to compare on, as in `evaluate`. Default: those that most of them were "
            "measured on, or those of `evaluate`.",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="At most so many tokens of each domain. Default: 4096.")
    ] = None,
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
    answers: Annotated[
        bool, typer.Option(help="Ask chat models questions, and show what they answer.")
    ] = True,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML file that stands alone to this path.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the plots to this path.")] = None,
    as_json: Json = False,
) -> None:
    """Show models side by side: size, quality, tasks, speed, and what each was made from."""
    from thrifty.cli.compare import run_compare

    run_compare(
        models, reference=reference, domains=domains or (), tokens=tokens, tasks=tasks or (), items=items,
        measure=measure, speed_again=speed_again, answers=answers, report=report, png=png,
        as_json=as_json,
    )  # fmt: skip


def distill(
    student: Annotated[
        str, typer.Argument(help="A checkpoint, such as `prune` makes: a name, a source, a path.")
    ],
    teacher: Annotated[
        str, typer.Option(help="What it learns from: a name, a source, a path, or a URL.")
    ],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to learn on: a set or a file, plain or .jsonl with text, messages or prompts; may "
            "be given again, as NAME=WEIGHT. Default: a mix for chat models, else passages."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens to learn on, over all steps.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="In place of tokens: how long all of it takes, the teacher included."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a training in minutes; --minutes counts those that it had."
        ),
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers/--no-answers", help="Learn from the teacher's own answers to prompts."
        ),
    ] = True,
    temperature: Annotated[float, typer.Option(help="At which the teacher answers.")] = 1.0,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="The learning rate: cosine, or constant with averaged weights. Default: cosine for "
            "tokens; for minutes constant, and falling in the last quarter."
        ),
    ] = None,
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
        float, typer.Option(help="The share of windows in whose place the student writes.")
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
        bool | None,
        typer.Option(
            "--freeze-embeddings/--train-embeddings",
            help="Leave the tokens' embeddings as they are: faster, and better where tokens are few. "
            "Default: for minutes, and for fewer than a million tokens.",
        ),
    ] = None,
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
    max_drop: MaxDrop = None,
    as_json: Json = False,
) -> None:
    """Train a model to say what another says. Asked for again, it goes on where it was."""
    from thrifty.cli.distill import run_distill
    from thrifty.cli.gate import judge_made
    from thrifty.compress.distill.answers import RemoteTeacher
    from thrifty.compress.distill.settings import Training
    from thrifty.evaluate.open_model import is_url

    training = Training(
        tokens=tokens, minutes=minutes, answers=answers, temperature=temperature, schedule=schedule,
        divergence=divergence, mix=mix, hidden=hidden, on_policy=on_policy,
        learning_rate=learning_rate, batch_tokens=batch_tokens, micro_batch=micro_batch,
        lora_rank=lora_rank, freeze_embeddings=freeze_embeddings, checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    remote = RemoteTeacher(teacher, teacher_model, teacher_key_env) if is_url(teacher) else teacher
    run_distill(
        student, remote, text=text or (), held_out=held_out, out=out, training=training, live=live,
        backend=backend, processes=processes, resume=resume, plot=plot, as_json=as_json,
    )  # fmt: skip
    judge_made(out, max_drop)
