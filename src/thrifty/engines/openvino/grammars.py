"""The grammars of bound answers, compiled beside the engine's steps.

The engine compiles a grammar in the step that first samples with it, which would halt all other
answers, and one that does not compile breaks that step for every request, for good. So a grammar is
first used by a tiny model in a thread. That model shares the engine's tokenizer, and with it the
cache of compiled grammars, where the engine then finds it. The thread gives way to the steps: it does
not hold the interpreter's lock, and the system gives it less of the processors.

The engine keeps account of its compilations without a lock. A request with a grammar therefore begins
only while none is compiled, and one is compiled only while none of those that began still waits for
its first token. The two take turns.

The engine never empties its cache. It makes a new one when a model with a vocabulary of another size
uses the tokenizer, so a second tiny model does that once the grammars would take too much memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from thrifty.engines.openvino.messages import last_line
from thrifty.engines.server.backend import Grammar
from thrifty.graphs.arithmetic import limit_properties

MAX_BYTES = 256_000_000
"""Memory that compiled grammars may take, by estimate."""
_NICENESS = 19
_MAX_FAULTS = 1_000


class Grammars:
    """Which grammars the engine knows, and the one that it is being taught."""

    def __init__(self, genai: Any, tokenizer: Any, folder: str, max_bytes: int = MAX_BYTES) -> None:
        self._genai = genai
        self._tokenizer = tokenizer
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._known: set[Grammar] = set()
        self._faults: dict[Grammar, str] = {}
        self._bytes = 0.0
        self._prober: Any = None
        self._compiling: tuple[threading.Thread, Grammar] | None = None
        self._fault: str | None = None
        self._draining = False

    def admits(self, grammar: Grammar | None) -> bool:
        """Whether a request with this grammar may begin now."""
        if grammar is None:
            return True
        if self._compiling is not None or self._draining:
            return False
        return grammar in self._known or grammar in self._faults

    def find_fault(self, grammar: Grammar) -> str | None:
        """Why a grammar cannot be enforced; None if it can. Only for one that is admitted."""
        return self._faults.get(grammar)

    @property
    def busy(self) -> bool:
        """Whether a grammar is being compiled."""
        return self._compiling is not None

    def wait(self, timeout_s: float) -> None:
        """Wait for the grammar that is being compiled."""
        if self._compiling is not None:
            self._compiling[0].join(timeout_s)

    def collect(self) -> None:
        """Take note of a grammar that has been compiled. Until `compile_next`, requests with grammars
        may begin.
        """
        if self._compiling is None or self._compiling[0].is_alive():
            return
        grammar = self._compiling[1]
        self._compiling = None
        self._draining = False
        if self._fault is None:
            self._known.add(grammar)
            self._bytes += _estimate_bytes(grammar)
            return
        if len(self._faults) >= _MAX_FAULTS:
            self._faults.clear()
        self._faults[grammar] = self._fault
        self._prober = None

    def compile_next(self, wanted: Iterable[Grammar], *, free: bool) -> None:
        """Begin to compile the cheapest grammar of those `wanted` that is not known, if the engine
        has taken up all grammars that it was given (`free`); else let it come to that.
        """
        if self._compiling is not None:
            return
        unknown = {g for g in wanted if g not in self._known and g not in self._faults}
        self._draining = bool(unknown)
        if not unknown or not free:
            return
        grammar = min(unknown, key=lambda g: (g.effort, len(g.text)))
        if self._known and self._bytes + _estimate_bytes(grammar) > self._max_bytes:
            self._forget_all()
        thread = threading.Thread(
            target=self._compile, args=(grammar,), name="grammar", daemon=True
        )
        self._compiling = thread, grammar
        thread.start()

    def _compile(self, grammar: Grammar) -> None:
        """In a thread: have the tiny model generate one token under the grammar."""
        try:
            if self._prober is None:
                self._prober = self._load(self._folder / "grammar")
            if sys.platform == "linux":
                # On Linux, a thread has a priority of its own, which the threads that it starts inherit.
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            config = self._genai.GenerationConfig()
            config.max_new_tokens = 1
            structure = self._genai.StructuredOutputConfig()
            structure.grammar = grammar.text
            config.structured_output_config = structure
            # Unlike `step`, `generate` does not hold the interpreter's lock.
            self._prober.generate([_one_token()], [config])
            self._fault = None
        except Exception as error:
            self._fault = last_line(error)

    def _load(self, folder: Path) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = 4
        return self._genai.ContinuousBatchingPipeline(
            str(folder), self._tokenizer, scheduler, "CPU", INFERENCE_NUM_THREADS=1,
            **limit_properties(),
        )  # fmt: skip

    def _forget_all(self) -> None:
        """Have the engine make a new cache. What runs keeps its own grammar."""
        from thrifty.engines.openvino.prepare import write_grammar_model

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "other"
            write_grammar_model(_OTHER_VOCABULARY, model)
            other = self._load(model)
            config = self._genai.GenerationConfig()
            config.max_new_tokens = 1
            other.generate([_one_token()], [config])
        self._known.clear()
        self._bytes = 0.0


_OTHER_VOCABULARY = 32
"""Smaller than any real vocabulary."""


def _estimate_bytes(grammar: Grammar) -> float:
    """Measured: 0.3 to 0.8 bytes for each token that is tried."""
    return grammar.effort + 20 * len(grammar.text)


def _one_token() -> ov.Tensor:
    return ov.Tensor(np.array([[0]], dtype=np.int64))
