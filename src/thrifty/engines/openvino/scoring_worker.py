"""The process that computes log-probabilities which the engine does not give out: those of prompts,
and of the likeliest tokens in each place.

OpenVINO GenAI tells of the chosen tokens alone. This process runs the same graph, with the same
arithmetic and the same precision of the KV cache, over prompts and the answers that were chosen for
them, and reads the logits. It computes one piece of a sequence at a time, in turns.

Started by the replica's server as `python -m thrifty.engines.openvino.scoring_worker FD SETTINGS`
when it is first needed; it ends when the socket does.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import signal
import socket
import sys
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from thrifty.engines.openvino.channel import Channel
from thrifty.engines.openvino.messages import (
    Cancel,
    Fatal,
    FromScorer,
    Score,
    Scored,
    ToScorer,
    Unscored,
    decode_to_scorer,
    first_line,
    last_line,
)
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.graphs.adapted import read_graph
from thrifty.graphs.arithmetic import limit_properties
from thrifty.graphs.logits import LogitReader, Logits, find_largest
from thrifty.graphs.paged import PAGE_TOKENS, PagedModel, count_pages

PIECE_TOKENS = 4 * PAGE_TOKENS
"""Tokens of a prompt in one computation, which bounds the memory for logits; whole pages."""
NICENESS = 5
"""Answers that are being generated go before."""
FIRST_TO_DIE = 500
"""What is added to this process's badness, of 1000, where memory runs out: the replica lives on."""


@dataclass
class _Sequence:
    job: int
    prompt: int
    """How many of its tokens are the prompt."""
    top: int
    scoring: bool
    """Whether the prompt's own tokens are being scored, which comes first."""
    needs: int
    """How many pages it may come to take."""
    next: int
    """The place of the answer's token whose score comes next."""
    tokens: list[int] = field(default_factory=list)
    last: bool = False
    admitted: bool = False
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    row: Logits | None = None
    """The logits behind all computed tokens, once the prompt is computed."""

    @property
    def ready(self) -> bool:
        """Whether something can be computed or told."""
        if self.scoring or self.next < len(self.tokens):
            return True
        return not self.last and self.row is None and self.computed < len(self.tokens)


class ScoringWorker:
    """Sequences and their pages of KV cache."""

    def __init__(self, settings: Settings) -> None:
        options = settings.options
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.activation_group,
            **limit_properties(),
        }
        model = read_graph(Path(settings.folder))
        vocab_size = int(model.output("logits").get_partial_shape()[2].get_length())
        self._model = PagedModel(model, options.kv_precision, properties)
        self._reader = LogitReader(vocab_size, properties)
        self._sequences: OrderedDict[int, _Sequence] = OrderedDict()
        self._pages = self._unreserved = settings.kv_blocks
        self._free = list(range(self._pages))

    def take(self, message: Score) -> Scored | None:
        """More of a sequence, or a new one; an answer at once where nothing is left to compute."""
        sequence = self._sequences.get(message.job)
        if sequence is None:
            prompt = len(message.tokens)
            needs = min(count_pages(message.most), self._pages)
            sequence = _Sequence(
                message.job, prompt, message.top, message.prompt and prompt > 1, needs, prompt
            )
            self._sequences[message.job] = sequence
        sequence.tokens += message.tokens
        sequence.last = message.last
        if not sequence.last or sequence.ready:
            return None
        self.cancel(message.job)
        return Scored(message.job, [], [])

    def cancel(self, job: int) -> None:
        """Forget a sequence."""
        sequence = self._sequences.pop(job, None)
        if sequence is not None:
            for page in sequence.pages:
                heapq.heappush(self._free, page)
            if sequence.admitted:
                self._unreserved += sequence.needs

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return self._find_next() is not None

    def step(self) -> FromScorer | None:
        """Compute a piece of the sequence whose turn it is; what that tells of its tokens."""
        sequence = self._find_next()
        if sequence is None:
            return None
        if not sequence.admitted:
            # All that it may need is reserved, so that none ever waits for another in the middle.
            sequence.admitted = True
            self._unreserved -= sequence.needs
        self._sequences.move_to_end(sequence.job)
        try:
            answer = self._compute(sequence)
        except (RuntimeError, MemoryError) as error:
            self.cancel(sequence.job)
            return Unscored(sequence.job, first_line(error))
        if sequence.last and not sequence.ready:
            self.cancel(sequence.job)
            return answer or Scored(sequence.job, [], [])
        return answer

    def _find_next(self) -> _Sequence | None:
        """The one that has waited longest, of those that have pages or can be given them. Others do
        not pass one that waits for pages, so that it gets its turn.
        """
        waiting = False
        for sequence in self._sequences.values():
            if not sequence.ready or (waiting and not sequence.admitted):
                continue
            if sequence.admitted or sequence.needs <= self._unreserved:
                return sequence
            waiting = True
        return None

    def _compute(self, sequence: _Sequence) -> Scored | None:
        """One piece of the prompt or one token of the answer.

        Keys of a page share scales in an 8-bit cache, so what a token sees depends on how many
        others of its page are there. Each is given what it had in serving: the answer's tokens come
        one at a time. Of a prompt whose own tokens are scored, the last token comes afterwards,
        with its page computed anew: that is as an evaluation computes them.
        """
        tokens, prompt = sequence.tokens, sequence.prompt
        if sequence.row is not None:
            row, sequence.row = sequence.row, None
            sequence.next += 1
            return self._tell(sequence, row[None], sequence.next - 1)
        begin = sequence.computed
        end = prompt - 1 if sequence.scoring else max(prompt, begin + 1)
        if end - begin > PIECE_TOKENS + PAGE_TOKENS:
            # No piece is left so short that it would be computed by other kernels.
            end = begin + PIECE_TOKENS
        while len(sequence.pages) < count_pages(end):
            sequence.pages.append(heapq.heappop(self._free))
        piece = np.array(tokens[begin:end], np.int64)
        logits = self._model.infer(piece, begin, sequence.pages, only_last=not sequence.scoring)
        sequence.computed = end
        if sequence.scoring:
            if end == prompt - 1:
                sequence.scoring = False
                sequence.computed = end // PAGE_TOKENS * PAGE_TOKENS
            return self._tell(sequence, logits, begin + 1)
        if end >= prompt:
            sequence.row = logits[-1].copy()
        return None

    def _tell(self, sequence: _Sequence, logits: Logits, first: int) -> Scored:
        """The scores of the tokens from the place `first` on, by the logits before each."""
        ids = np.array(sequence.tokens[first : first + len(logits)], np.int64)[:, None]
        if sequence.top:
            ids = np.concatenate([ids, find_largest(logits, sequence.top)], axis=1)
        found, _, _ = self._reader.look_up(logits, ids)
        ranked = [
            list(zip(row[1:], scores[1:], strict=True))
            for row, scores in zip(ids.tolist(), found.tolist(), strict=True)
        ]
        return Scored(sequence.job, found[:, 0].tolist(), ranked)


def run(channel: Channel[ToScorer], settings: Settings) -> None:
    """Serve until the server is gone."""
    worker = ScoringWorker(settings)
    while not channel.closed:
        for message in channel.receive(wait=not worker.busy):
            if isinstance(message, Cancel):
                worker.cancel(message.job)
            elif (answer := worker.take(message)) is not None:
                channel.send(answer)
        if (found := worker.step()) is not None:
            channel.send(found)


def main() -> NoReturn:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_DIE))
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), decode_to_scorer)
    try:
        run(channel, msgspec.convert(json.loads(sys.argv[2]), Settings))
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
