"""`thrifty train` as `app` lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.compression_commands import Json


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The model to train: a stored name, a source, a path."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="What it learns from: a file of JSON lines, or log:DEPLOYMENT, the feedback that a "
            "deployment's answers got (for distill: its recorded conversations)."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="sft: say what the assistant says. dpo: prefer one answer to another. kto: say what is "
            "liked, not what is disliked. contrastive: for encoders, what belongs together. distill: say what --teacher says."
        ),
    ],
    out: Annotated[str, typer.Option(help="The new model's name.")],
    lora_rank: Annotated[
        int | None,
        typer.Option(
            help="Train changes of this rank, which are merged at the end; 0 trains all weights. "
            "Default: 16; for distill 0."
        ),
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter",
            help="Keep these changes as an adapter beside the base model, and do not merge them: a "
            "version then takes megabytes.",
        ),
    ] = False,
    epochs: Annotated[
        float | None, typer.Option(help="How often the rows are read. Default: 3.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="In place of epochs: how long all of it takes. Default for distill: 30."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest. Default: by the method.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="For dpo and kto: how much the model is held to what it was. Default: 0.1."
        ),
    ] = None,
    sft_weight: Annotated[
        float | None,
        typer.Option(
            help="For dpo: how much of sft's loss on the chosen answers is added. Default: 0."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Rows in a step of the optimizer. Default: 8; for kto 16.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Rows that are computed together. Default: 4; for kto 8.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Rows with more tokens than this are set aside. Default: 1024; for encoders what they take."
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Rows to evaluate on while training; the training stops early where these get no "
            "better. Default: a tenth of the data."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="For distill: what it learns from, as for `thrifty distill`."),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="Which of a URL's models; none: its first.")
    ] = None,
    teacher_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the URL's key.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, more time.")
    ] = False,
    processes: Annotated[int, typer.Option(help="How many train together, one for a GPU.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Train on a node of the Ray cluster whose head is there, which sees THRIFTY_HOME.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the rows.")] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a training that was stopped, and do not begin one. Without it, the same "
            "command goes on as well.",
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Begin anew, and with log:DEPLOYMENT learn from its newest feedback. Without it, a "
            "training that was stopped goes on with the feedback that it began with.",
        ),
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Other forms of rows, in each epoch others: none; noise; what models made of the "
            "data (paraphrase, back_translation, evolve, self_instruct, negatives); or auto: try, "
            "and keep what gains on held-out rows. Default: what the data set's recipe says."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses to this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model on rows of data or on feedback; the result is a model like any other.

    Asked for again, it goes on where it was.
    """
    from thrifty.cli.train import Asked, run_train

    asked = Asked(
        model=model, data=data, method=method, out=out, lora_rank=lora_rank, epochs=epochs,
        minutes=minutes, learning_rate=learning_rate, beta=beta, sft_weight=sft_weight, batch=batch,
        micro_batch=micro_batch, window=window, held_out=held_out, teacher=teacher,
        teacher_model=teacher_model, teacher_key_env=teacher_key_env, checkpointing=checkpointing,
        processes=processes, ray=ray, seed=seed, resume=resume, restart=restart,
        augment=augment, adapter=adapter,
    )  # fmt: skip
    run_train(asked, plot=plot, as_json=as_json)
