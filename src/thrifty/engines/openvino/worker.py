"""The process that holds the model: it takes jobs from a socket and generates step by step.

One thread does everything in turns: it receives messages, computes one step and sends its results.
The engine's own threads do the arithmetic. Before it is ready, the model has to reproduce its known
answers (`known_answers.py`).

Started by the replica's server as `python -m thrifty.engines.openvino.worker FD SETTINGS`; it ends
when the socket does, so that it never outlives its server.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from thrifty.engines.known_answers import (
    KnownAnswers,
    judge_embeddings,
    judge_logits,
    judge_tokens,
    read_known_answers,
)
from thrifty.engines.openvino.channel import Channel
from thrifty.engines.openvino.decoder_worker import DecoderWorker
from thrifty.engines.openvino.encoder_worker import EncoderWorker
from thrifty.engines.openvino.exact_sums import find_saturation
from thrifty.engines.openvino.messages import (
    Add,
    Cancel,
    Embed,
    Embedded,
    Fatal,
    Park,
    Parked,
    Ready,
    ToWorker,
    decode_to_worker,
    first_line,
    last_line,
)
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.memory import give_back_memory
from thrifty.errors import EngineError
from thrifty.types import Family

log = logging.getLogger(__name__)


def run_decoder(channel: Channel[ToWorker], settings: Settings) -> None:
    """Serve generations until the server is gone."""
    started_s = time.perf_counter()
    worker = DecoderWorker(settings)
    loaded_s = time.perf_counter()
    facts = worker.warm_up()
    known = _read_known(settings)
    if known.tokens:
        _require(judge_tokens(known.tokens, worker.answer_known(known.tokens)))
    channel.send(
        Ready(loaded_s - started_s, time.perf_counter() - loaded_s, facts["kv_bytes"],
              facts["kv_tokens"], 0)
    )  # fmt: skip
    while not channel.closed:
        for message in channel.receive(wait=not worker.busy):
            if isinstance(message, Add):
                worker.take(message)
            elif isinstance(message, Cancel):
                worker.cancel(message.job)
            elif isinstance(message, Park):
                _park(channel)
        if worker.busy:
            channel.send(worker.report(worker.step()))


def run_encoder(channel: Channel[ToWorker], settings: Settings) -> None:
    """Serve embeddings, or the logits of a reranker, until the server is gone."""
    started_s = time.perf_counter()
    worker = EncoderWorker(settings)
    loaded_s = time.perf_counter()
    size = worker.warm_up()
    known = _read_known(settings)
    if known.embeddings:
        _require(judge_embeddings(known.embeddings, worker.embed_known(known.embeddings)))
    if known.logits:
        _require(judge_logits(known.logits, worker.rank_known(known.logits)))
    channel.send(Ready(loaded_s - started_s, time.perf_counter() - loaded_s, 0, 0, size))
    while not channel.closed:
        received = channel.receive(wait=True)
        if any(isinstance(m, Park) for m in received):
            worker.release_memory()
            _park(channel)
        messages = [m for m in received if isinstance(m, Embed)]
        try:
            answers = worker.embed(messages) if messages else []
        except (RuntimeError, ValueError) as error:
            answers = [Embedded(m.job, [], first_line(error)) for m in messages]
        for answer in answers:
            channel.send(answer)


def _park(channel: Channel[ToWorker]) -> None:
    give_back_memory()
    channel.send(Parked())


def _read_known(settings: Settings) -> KnownAnswers:
    known = read_known_answers(Path(settings.folder))
    if known is None:
        log.warning("the model has no known answers, so its answers are not checked")
    return known or KnownAnswers()


def _require(fault: str | None) -> None:
    if fault is not None:
        raise EngineError(fault)


def main() -> NoReturn:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    settings = msgspec.convert(json.loads(sys.argv[2]), Settings)
    channel = Channel(connection, decode_to_worker)
    try:
        if settings.needs_exact_sums:
            _require(find_saturation())
        run = run_decoder if settings.family == Family.DECODER else run_encoder
        run(channel, settings)
    except EngineError as error:
        channel.send(Fatal(str(error)))
    except Exception as error:
        traceback.print_exc()
        channel.send(Fatal(f"{type(error).__name__}: {last_line(error)}"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Destructors of the native libraries may crash at exit; nothing is left to be saved.
        os._exit(0 if channel.closed else 1)


if __name__ == "__main__":
    main()
