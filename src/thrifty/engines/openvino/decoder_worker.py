"""A decoder and its jobs: it begins them, computes them step by step, and reports them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import openvino as ov

from thrifty.engines.known_answers import KnownToken
from thrifty.engines.openvino.background import SLICE_JOB, SLICE_TOKENS, Background
from thrifty.engines.openvino.grammars import Grammars
from thrifty.engines.openvino.lookups import Lookups
from thrifty.engines.openvino.messages import Add, Step, first_line
from thrifty.engines.openvino.prefix_cache_model import BLOCK_TOKENS, PrefixCacheModel
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import Failure, Output, Sampling
from thrifty.graphs.arithmetic import limit_properties

WARM_UP_TOKENS = 4
LEAST_TEMPERATURE = 1e-5
"""Below it, answers are greedy: logits that are divided by less overflow a float."""
_KNOWN_JOB = -1000
"""Jobs of the known-answer test count down from here."""
_GRAMMARS_AT_ONCE = 128 * 1024
"""Characters of grammars of which the engine takes up several at once. It reads the text of one in
the step of its first token, even if it knows it: about 20 ms for 64 KiB.
"""
_COMPILE_WAIT_S = 0.01
"""How long a step without work waits for a grammar, before it looks for messages again."""
LOOKUP_MARGIN = 32
"""More than any number of guesses in a step."""
LOOKUP_NGRAM = 3
"""At most so many tokens at the end are looked for; where they are not found, fewer."""
GROWTH_BLOCKS = 2
"""Room in the KV cache that is kept for each running answer to grow into, if it may."""


@dataclass
class _Running:
    message: Add
    handle: Any
    cached: int
    held: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    own_blocks: int = 0
    rest: int = 0
    """Tokens of its prompt that are not computed yet, by our account of the engine's steps."""
    reported: bool = False
    stepped: bool = False
    """Whether a step may have computed some of its prompt."""
    limit: int | None = None
    """How many tokens it gets at most before it is cut off here; None: the engine ends it."""
    abandoned: bool = False
    """Nobody waits for it any more; it ends with its prompt."""

    @property
    def job(self) -> int:
        """The server's number for it."""
        return self.message.job

    @property
    def prompt(self) -> list[int]:
        """What it began with."""
        return self.message.prompt

    @property
    def growth(self) -> int:
        """Blocks of the KV cache that its answer may still take."""
        length = len(self.prompt)
        return count_blocks(length + self.message.sampling.max_tokens) - count_blocks(
            length + len(self.generated)
        )


def count_blocks(tokens: int) -> int:
    """Blocks of the KV cache that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


class DecoderWorker:
    """Generates with a ContinuousBatchingPipeline."""

    def __init__(self, settings: Settings) -> None:
        import openvino_genai as genai

        self._genai = genai
        self._settings = settings
        options = self._options = settings.options
        self._tokenizer = genai.Tokenizer(settings.folder)
        self._lookups = (
            Lookups(
                options.speculation_tokens, options.speculation_least, options.speculation_streams
            )
            if options.speculation == "prompt_lookup"
            else None
        )
        self._load()
        self._running: dict[int, _Running] = {}
        self._waiting: deque[Add] = deque()
        self._together = 0
        """How many jobs the last step was for."""
        self._given_back = 0
        """How many of them the engine could not keep; they stand first among those that wait."""
        self._background = Background()
        self._grammars = Grammars(genai, self._tokenizer, settings.folder)
        self._next_request = 0
        self._failures: list[Failure] = []

    def _load(self) -> None:
        """Load the model, with look-ups or without."""
        genai, settings, options = self._genai, self._settings, self._options
        # With look-ups, the engine's prefix cache keeps blocks under the names of guesses that were wrong.
        self._sharing = options.prefix_cache and self._lookups is None
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = settings.kv_blocks
        scheduler.max_num_batched_tokens = options.prefill_chunk
        scheduler.max_num_seqs = options.max_batch
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = self._sharing
        properties: dict[str, Any] = {
            "KV_CACHE_PRECISION": options.kv_precision,
            "INFERENCE_NUM_THREADS": settings.threads,
            "sampler_num_threads": settings.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.activation_group,
            **limit_properties(),
        }
        if self._lookups is not None:
            properties["prompt_lookup"] = True
        if settings.lora is not None:
            path, scale = settings.lora
            # As constants of the graph: GenAI sets what is a state only in `generate`, not in steps.
            mode = genai.AdapterConfig.Mode.MODE_STATIC
            properties["adapters"] = genai.AdapterConfig(genai.Adapter(path), scale, mode=mode)
        self._pipeline = genai.ContinuousBatchingPipeline(
            settings.folder, self._tokenizer, scheduler, "CPU", **properties
        )
        self._index = PrefixCacheModel(settings.kv_blocks, sharing=self._sharing)

    def warm_up(self) -> dict[str, int]:
        """Generate a little, so that nothing is left to be done by the first user's request."""
        sampling = Sampling(max_tokens=WARM_UP_TOKENS, temperature=0.0, ignore_eos=True)
        self.add(Add(-1, [0] * 8, sampling))
        produced = 0
        while self._running:
            produced += sum(len(output.token_ids) for output in self.step())
        if produced != WARM_UP_TOKENS:
            raise RuntimeError(f"the engine gave {produced} of {WARM_UP_TOKENS} tokens")
        kv_bytes = int(self._pipeline.get_metrics().cache_size_in_bytes)
        return {"kv_bytes": kv_bytes, "kv_tokens": self._settings.kv_blocks * BLOCK_TOKENS}

    def answer_known(self, known: Sequence[KnownToken]) -> list[tuple[int, float]]:
        """The next token behind each of these prompts, and its log-probability.

        The prompts run together, as many as the KV cache holds at once.
        """
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=True)
        for number, one in enumerate(known):
            self.take(Add(_KNOWN_JOB - number, one.prompt, sampling))
        found: dict[int, tuple[int, float]] = {}
        while self.busy:
            for output in self.report(self.step()).outputs:
                if output.token_ids and output.logprobs:
                    found[output.job] = output.token_ids[0], output.logprobs[0]
        if len(found) < len(known):
            raise RuntimeError(f"the engine answered {len(found)} of {len(known)} known prompts")
        return [found[_KNOWN_JOB - number] for number in range(len(known))]

    def take(self, message: Add) -> None:
        """Begin a job, now or, where it may wait, when there is room for it."""
        # Without a prefix cache there are no slices.
        if message.priority > 0 and self._sharing:
            self._background.add(message)
        else:
            self._waiting.append(message)

    def add(self, message: Add) -> None:
        """Begin a job, or note why it cannot be."""
        grammar = message.sampling.grammar
        if grammar is not None:
            fault = self._grammars.find_fault(grammar)
            if fault:
                self._failures.append(Failure(message.job, "grammar", fault))
                return
        fault = self._find_lookup_fault(message.sampling)
        if fault:
            self._failures.append(Failure(message.job, "min_tokens", fault))
            return
        blocks = count_blocks(len(message.prompt) + message.sampling.max_tokens)
        if len(message.prompt) // BLOCK_TOKENS + 1 > self._settings.kv_blocks:
            self._failures.append(
                Failure(
                    message.job,
                    "memory",
                    f"the request needs {blocks} blocks of KV cache and there are "
                    f"{self._settings.kv_blocks}; give the engine a larger kv_cache",
                )
            )
            return
        try:
            limit = self._find_limit(message.sampling)
            config = self._make_config(message.sampling, limit, len(message.prompt))
            cached = 0 if message.resumed else self._index.match(message.prompt)
            tensor = ov.Tensor(np.array([message.prompt], dtype=np.int64))
            self._next_request += 1
            handle = self._pipeline.add_request(self._next_request, tensor, config)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            self._failures.append(Failure(message.job, "engine", first_line(error)))
            return
        running = _Running(message, handle, cached, limit=limit)
        running.held = self._index.begin(message.prompt)
        running.own_blocks = count_blocks(len(message.prompt)) - len(running.held)
        running.rest = len(message.prompt) - len(running.held) * BLOCK_TOKENS
        self._running[message.job] = running

    def _find_lookup_fault(self, sampling: Sampling) -> str | None:
        """What cannot be honoured beside look-ups: counts of penalties cannot be taken up again."""
        penalties = sampling.presence_penalty or sampling.frequency_penalty
        if self._find_limit(sampling) is None or not penalties:
            return None
        return (
            "'min_tokens' cannot be joined with 'presence_penalty' or 'frequency_penalty' while this "
            "model is served with speculation: prompt_lookup; leave one of them out"
        )

    def _find_limit(self, sampling: Sampling) -> int | None:
        """Where an answer with a least number of tokens is cut off by us. With look-ups the engine counts
        guesses and the prompt among its tokens, so that it would allow an end too early; it is told
        of more, and the answer goes on from its least number as another one.
        """
        if self._lookups is None or not sampling.min_tokens or sampling.ignore_eos:
            return None
        return min(sampling.min_tokens, sampling.max_tokens)

    def cancel(self, job: int) -> None:
        """Stop a job; the next step frees what it held.

        The engine's prefix cache takes a block of a prompt for computed from the moment that it is
        given out, so a prompt that is cancelled between two chunks would leave one behind that holds
        anything. Such a prompt is first computed to its end.
        """
        if self._background.remove(job):
            return
        running = self._running.get(job)
        if running is None:
            self._waiting = deque(message for message in self._waiting if message.job != job)
            return
        if running.stepped and not running.reported and self._sharing:
            running.abandoned = True
            return
        running.handle.cancel()
        self._forget(running)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything, or something is left to tell."""
        return (
            bool(self._failures)
            or bool(self._waiting)
            or bool(self._background)
            or bool(self._pipeline.has_non_finished_requests())
        )

    def step(self) -> list[Output]:
        """One step of the engine: new tokens of every running job."""
        self._given_back = 0
        self._grammars.collect()
        self._make_room()
        if self._lookups is None or self._lookups.pays or self._leave_lookups():
            self._begin_waiting()
            self._begin_background()
        self._compile_next()
        self._note_step()
        self._together, self._given_back = len(self._running), 0
        before = {running.job for running in self._running.values() if running.reported}
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        else:
            self._grammars.wait(_COMPILE_WAIT_S)
        outputs = []
        for running in list(self._running.values()):
            output = self._read(running)
            if output is None:
                continue
            if self._lookups is not None and running.job in before and output.token_ids:
                self._lookups.note(len(output.token_ids), len(before))
            if running.abandoned:
                self.cancel(running.job)
            elif output.job != SLICE_JOB:
                outputs.append(output)
        return outputs

    def _leave_lookups(self) -> bool:
        """Go on without look-ups, as soon as nothing runs that cannot be begun anew where it is: a
        grammar's state and counts of penalties cannot be taken up again. Until then, nothing begins.
        """
        for running in reversed(list(self._running.values())):
            sampling = running.message.sampling
            counts = sampling.presence_penalty or sampling.frequency_penalty
            if not running.generated or not (sampling.grammar is not None or counts):
                running.handle.cancel()
                self._give_back(running, full=False)
        if self._running:
            return False
        self._lookups = None
        del self._pipeline  # its memory, before the next takes as much
        self._load()
        return True

    def _make_room(self) -> None:
        """Have the youngest answers step back while there is too little room for all to grow; they go
        on later from where they were.

        The engine would do so itself, but its prefix cache then takes blocks for computed that are not.
        What steps back is freed behind the next step, in which each of the others takes one block at most.
        """
        growing = [running for running in self._running.values() if running.growth]
        free = self._index.free_blocks
        while len(growing) > free and len(self._running) > 1:
            youngest = next((r for r in reversed(growing) if r.reported), None)
            if youngest is None:
                return
            growing.remove(youngest)
            youngest.handle.cancel()
            self._give_back(youngest)

    def _note_step(self) -> None:
        """Account for what the next step computes: a token of each answer, then prompts in their order,
        as far as the chunk goes.
        """
        budget = self._options.prefill_chunk - sum(r.reported for r in self._running.values())
        for running in self._running.values():
            running.stepped = True
            if not running.reported:
                part = min(running.rest, max(0, budget))
                running.rest -= part
                budget -= part

    def _begin_waiting(self) -> None:
        """Begin jobs in their order, as far as the KV cache has room for them beside those that run.

        The engine itself takes any number, and gives some up once none of them can grow. It also
        looks for what is cached of a prompt when it takes it; so a job waits here while a step's worth
        of prompts is there already, and while one that begins like it is being computed.
        """
        while (place := self._find_next()) is not None:
            message = self._waiting[place]
            rest = sum(running.rest for running in self._running.values())
            if rest >= self._options.prefill_chunk or self._is_being_computed(message):
                return
            if not self._has_room(message):
                return
            del self._waiting[place]
            self.add(message)

    def _find_next(self) -> int | None:
        """The place of the first job that is not held up by its grammar."""
        taken_up = self._count_grammars()
        for place, message in enumerate(self._waiting):
            grammar = message.sampling.grammar
            if grammar is None:
                return place
            fits = not taken_up or taken_up + len(grammar.text) <= _GRAMMARS_AT_ONCE
            if fits and self._grammars.admits(grammar):
                return place
        return None

    def _count_grammars(self) -> int:
        """Characters of the grammars that the engine reads in the next steps."""
        started = [r.message.sampling.grammar for r in self._running.values() if not r.reported]
        return sum(len(grammar.text) for grammar in started if grammar is not None)

    def _compile_next(self) -> None:
        """Begin to compile a grammar that a job waits for."""
        jobs = list(self._waiting)
        if self._background.first is not None and not jobs:
            jobs.append(self._background.first)
        self._grammars.compile_next(
            (job.sampling.grammar for job in jobs if job.sampling.grammar is not None),
            free=self._count_grammars() == 0,
        )

    def _is_being_computed(self, message: Add) -> bool:
        """Whether more of this prompt is about to be cached than is."""
        if not self._sharing:
            return False
        cached = self._index.match(message.prompt)
        end = (cached // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        if end >= len(message.prompt):
            return False
        head = message.prompt[:end]
        return any(
            not running.reported and len(running.prompt) >= end and running.prompt[:end] == head
            for running in self._running.values()
        )

    def _has_room(self, message: Add) -> bool:
        """Whether a job fits beside those that run, with room for all to grow."""
        if not self._running:
            return True
        growth = sum(min(GROWTH_BLOCKS, running.growth) for running in self._running.values())
        own = min(GROWTH_BLOCKS, count_blocks(message.sampling.max_tokens))
        return self._index.has_room(message.prompt, growth + own)

    def _begin_background(self) -> None:
        """Begin jobs that may wait, unless some prompt is being computed already."""
        if self._waiting or not all(r.reported for r in self._running.values()):
            return
        budget = SLICE_TOKENS
        while budget > 0 and (first := self._background.first) and self._has_room(first):
            if not self._grammars.admits(first.sampling.grammar):
                return
            found = self._background.take(self._index.match, budget)
            if found is None:
                return
            job, tokens = found
            budget -= tokens
            self.add(job)
            if job.job == SLICE_JOB:
                return

    def report(self, outputs: list[Output]) -> Step:
        """What the server is told after a step."""
        metrics = self._pipeline.get_metrics()
        failures, self._failures = self._failures, []
        scheduled = int(metrics.scheduled_requests)
        total = len(self._running)
        return Step(
            outputs,
            failures,
            min(scheduled, total),
            max(0, total - scheduled) + len(self._waiting) + len(self._background),
            float(metrics.cache_usage) / 100.0,
            self._describe_lookups(),
        )

    def _describe_lookups(self) -> dict[str, float]:
        if self._options.speculation != "prompt_lookup":
            return {}
        found = self._lookups
        if found is None:
            return {"speculating": 0.0}
        return {
            "speculating": 1.0, "speculation_acceptance": found.acceptance,
            "speculation_tokens_per_step": found.tokens_per_step,
        }  # fmt: skip

    def _read(self, running: _Running) -> Output | None:
        handle = running.handle
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = ""
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
                reason = output.finish_reason
                if reason != self._genai.GenerationFinishReason.NONE:
                    length = reason == self._genai.GenerationFinishReason.LENGTH
                    finish = "length" if length else "stop"
        ignored = not finish and handle.get_status() == self._genai.GenerationStatus.IGNORED
        cut = False
        if running.limit is not None and len(running.generated) + len(tokens) >= running.limit:
            running.handle.cancel()
            room = running.limit - len(running.generated)
            cut = running.limit < running.message.sampling.max_tokens
            if cut:
                finish = ""
            elif len(tokens) > room or not finish:
                finish = "length"
            tokens, logprobs = tokens[:room], logprobs[:room]
        self._note_growth(running, tokens)
        if cut:
            self._give_back(running, full=False)
        elif ignored:
            self._give_back(running)
        elif finish:
            self._forget(running)
        if not tokens and not finish:
            return None
        cached = 0 if running.reported else running.cached
        if not running.reported:
            running.reported, running.rest = True, 0
            if running.job in self._running:
                running.own_blocks -= self._index.share(running.prompt, running.held)
        return Output(running.job, tokens, logprobs or None, finish, cached)

    def _note_growth(self, running: _Running, tokens: list[int]) -> None:
        before = count_blocks(len(running.prompt) + len(running.generated))
        if self._lookups is not None and running.generated:
            before = count_blocks(self._reach(running))
        running.generated += tokens
        after = len(running.prompt) + len(running.generated)
        if self._lookups is not None and tokens:
            after = self._reach(running)
        grown = count_blocks(after) - before
        if grown:
            running.own_blocks += grown
            self._index.grow(grown)

    def _reach(self, running: _Running) -> int:
        """How far a step computes, with guesses."""
        length = len(running.prompt) + len(running.generated)
        return length + int(self._options.speculation_tokens)

    def _forget(self, running: _Running) -> None:
        self._running.pop(running.job, None)
        self._release(running)

    def _give_back(self, running: _Running, *, full: bool = True) -> None:
        """The engine could not keep a job: it goes on from where it was once there is room, first of
        all that wait. A grammar's state cannot be taken up again, and what does not fit even alone
        never will. `full` says that the KV cache is.
        """
        self._forget(running)
        if running.abandoned:
            return
        message, sampling = running.message, running.message.sampling
        done = len(running.generated)
        if (
            (full and self._together == 1 and len(self._running) == 0)
            or running.job == SLICE_JOB
            or (sampling.grammar is not None and done)
        ):
            self._failures.append(
                Failure(
                    running.job,
                    "memory",
                    "the KV cache is full and this request could not be kept; try again, or give "
                    "the engine a larger kv_cache",
                )
            )
            return
        rest = msgspec.structs.replace(
            sampling,
            max_tokens=sampling.max_tokens - done,
            min_tokens=max(0, sampling.min_tokens - done),
            seed=(sampling.seed + done) % 2**31,
        )
        again = Add(
            running.job,
            running.prompt + running.generated,
            rest,
            message.priority,
            resumed=message.resumed or running.reported,
        )
        if message.priority > 0:
            self._background.add(again)
        else:
            self._waiting.insert(self._given_back, again)
            self._given_back += 1

    def _release(self, running: _Running) -> None:
        # The last token was sampled but never computed, so it is not in the cache.
        computed = running.prompt + running.generated[:-1] if running.generated else []
        self._index.end(running.held, computed, running.own_blocks)

    def _make_config(
        self, sampling: Sampling, limit: int | None = None, prompt_tokens: int = 0
    ) -> Any:
        genai, settings = self._genai, self._settings
        config = genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = sampling.min_tokens
        if limit is not None:
            config.max_new_tokens = config.min_new_tokens = limit + prompt_tokens + LOOKUP_MARGIN
        config.ignore_eos = sampling.ignore_eos
        if settings.eos_token_ids:
            config.eos_token_id = settings.eos_token_ids[0]
        config.stop_token_ids = {*settings.eos_token_ids, *sampling.stop_token_ids}
        config.do_sample = sampling.temperature >= LEAST_TEMPERATURE
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = max(sampling.top_p, 1e-9)
            if sampling.top_k:
                config.top_k = sampling.top_k
            config.min_p = min(sampling.min_p, 1 - 1e-7)  # less than 1, as a float
            config.rng_seed = sampling.seed
        config.repetition_penalty = sampling.repetition_penalty
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.logprobs = 1 if sampling.logprobs else 0
        if self._lookups is not None:
            config.num_assistant_tokens = self._options.speculation_tokens
            config.max_ngram_size = LOOKUP_NGRAM
        if sampling.grammar is not None:
            config.structured_output_config = genai.StructuredOutputConfig(
                grammar=sampling.grammar.text
            )
        return config
