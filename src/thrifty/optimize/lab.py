"""The steps of a search on this machine: models from the compression stages, domains and questions
from the evaluation, speeds of replicas that are started as a fleet starts them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.bench.summary import LatencyObjective
from thrifty.compress.mix import Mix
from thrifty.engines.base import Engine, Served
from thrifty.engines.machine import Machine
from thrifty.engines.scheme_choice import make_machine_conditions
from thrifty.errors import FleetError
from thrifty.evaluate.answers import AnswersRequest, ask_model, compare_given
from thrifty.evaluate.backends import DEFAULT_BACKEND, find_backend
from thrifty.evaluate.domains import Domain
from thrifty.evaluate.questions import Question, digest_questions
from thrifty.evaluate.run import EvaluationOptions, evaluate
from thrifty.evaluate.suite import DataFile, describe_arithmetic
from thrifty.files import write_atomically
from thrifty.home import Home
from thrifty.optimize.candidate import LEARNS, Candidate, Recipe
from thrifty.optimize.load import Load, count_good, put_load
from thrifty.optimize.steps import ASK, JUDGE, MAKE, OutOfTime, Step
from thrifty.own_replica import (
    has_ended,
    make_server,
    only_replica,
    prepare_served,
    run_coroutine,
    run_replicas,
)
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.version import __version__

Model = tuple[NamedVersion, Artifact]

GUESSES = {
    "make": (2.0, 1.0e-7), "make w8a8": (10.0, 1.5e-6), "make int4": (10.0, 2.5e-6),
    "make pruned": (10.0, 2.0e-6), "distill": (20.0, 2.5e-11), "judge": (5.0, 3.0e-11),
    "ask": (10.0, 1.5e-9), "start": (12.0, 0.0),
}  # fmt: skip
"""Seconds for a step, and more for each parameter (and token, question), on two cores with AVX-512 and
VNNI. What is measured in this home scales them."""
SAFETY = 1.2
"""Predictions are multiplied by it."""
FOUND = 10
"""A step that takes so many times less than expected found what it was to make."""
SEED = 1


@dataclass(frozen=True)
class Workbench:
    """What candidates are made from, and measured on and under."""

    source: Model
    engine: Engine
    text: Mix
    """Learned from."""
    domains: Sequence[DataFile]
    questions: Sequence[Question]
    """Empty where the model is not asked."""
    load: Load
    objective: LatencyObjective | None
    slo: str


class MachineLab:
    """See `steps.Lab`."""

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        home: Home,
        machine: Machine,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self._bench = bench
        self._store = store
        self._home = home
        self._machine = machine
        self._show_progress = on_progress
        self._left_s: Callable[[], float] = lambda: math.inf
        self._asked: set[int] = set()
        """Numbers of questions that some candidate was asked."""
        self._rates_path = home.optimizations / f"rates-{machine.id}.json"
        self._rates = _Rates(self._rates_path)

    # Predictions

    def predict_s(self, step: Step) -> float:
        """See `steps.Lab`."""
        kind, work = self._find_work(step)
        return self._rates.predict_s(kind, work) * SAFETY + self._find_fixed_s(step)

    def learn(self, step: Step, seconds: float) -> None:
        """See `steps.Lab`."""
        kind, work = self._find_work(step)
        if step.kind == ASK:
            self._asked.add(step.amount)
        self._rates.learn(kind, work, max(1.0, seconds - self._find_fixed_s(step)))
        self._rates.note(self._reference_of(step))
        self._rates.write()

    def _find_fixed_s(self, step: Step) -> int:
        """The seconds that a step takes on every machine."""
        return step.amount if step.kind not in (MAKE, JUDGE, ASK) else 0

    def _find_work(self, step: Step) -> tuple[str, float]:
        """A kind of `GUESSES`, and how much there is of it."""
        recipe = step.candidate.recipe
        parameters = self._bench.source[1].description.parameters * recipe.keep
        sides = 1 if self._rates.has(self._reference_of(step)) else 2
        if step.kind == JUDGE:
            return "judge", parameters * step.amount * len(self._bench.domains) * sides
        if step.kind == ASK:
            # A larger number of questions comes after a smaller one, whose answers are kept.
            before = max((n for n in self._asked if n < step.amount), default=0)
            return "ask", parameters * (step.amount - before) * sides
        if step.kind != MAKE:
            return "start", 1.0
        if recipe.distill_tokens:
            return "distill", parameters * recipe.distill_tokens
        if recipe.pruned:
            return "make pruned", parameters
        return f"make {recipe.scheme}" if recipe.scheme in LEARNS else "make", parameters

    def _reference_of(self, step: Step) -> str:
        """What of the reference is recorded once the step has ended."""
        if step.kind not in (JUDGE, ASK):
            return ""
        return json.dumps([step.kind, step.amount, self.describe(step)], sort_keys=True)

    def describe(self, step: Step) -> dict[str, Any]:
        """See `steps.Lab`."""
        bench = self._bench
        found: dict[str, Any] = {
            "source": bench.source[1].id, **make_machine_conditions(bench.engine, self._machine),
            # Recipes and measures may differ between releases.
            "thrifty": __version__,
        }  # fmt: skip
        if (
            step.kind == MAKE
            or step.candidate.recipe.pruned
            or step.candidate.recipe.scheme in LEARNS
        ):
            found["text_sha256"] = bench.text.sha256
        if step.kind == JUDGE:
            found["domains"] = [[one.name, one.sha256] for one in bench.domains]
        elif step.kind == ASK:
            found["questions_sha256"] = digest_questions(bench.questions)
        elif step.kind != MAKE:
            found |= {"load": [bench.load.streams, bench.load.sha256], "slo": bench.slo}
        return found

    # Steps

    def run(self, step: Step, left_s: Callable[[], float] = lambda: math.inf) -> dict[str, Any]:
        """See `steps.Lab`."""
        self._left_s = left_s
        if step.kind == MAKE:
            served = self.prepare(step.candidate)
            return {"model": served.version, "size_bytes": self._size_of(served)}
        if step.kind == JUDGE:
            return self._judge(step.candidate, step.amount)
        if step.kind == ASK:
            return self._ask(step.candidate, step.amount)
        return self._load(step.candidate, step.amount)

    def prepare(self, candidate: Candidate) -> Served:
        """What a fleet serves of a candidate, made now unless it was before."""
        version, artifact, scheme = self._make(candidate.recipe)
        return prepare_served(
            self._bench.engine, scheme, self._store, version, artifact, self._machine,
            self._on_progress, options=candidate.settings.as_options(),
            replicas=candidate.settings.replicas,
        )  # fmt: skip

    def find_model(self, candidate: Candidate) -> Model:
        """The stored model that a candidate is served from."""
        served = self.prepare(candidate)
        return self._store.find(served.version)

    def _make(self, recipe: Recipe) -> tuple[NamedVersion, Artifact, str]:
        """The model of a recipe, and the scheme that the engine is still to round it to."""
        from thrifty.compress.distill.distill import DistillationRequest, distill_model
        from thrifty.compress.distill.settings import Training
        from thrifty.compress.prune.prune import prune_decoder
        from thrifty.compress.prune.request import PruningRequest
        from thrifty.compress.quantize.openvino import quantize_openvino

        version, artifact = self._bench.source
        name, text, store = version.name, self._bench.text, self._store
        if recipe.pruned:
            name = f"{name}-pruned{round(recipe.keep * 100)}"
            request = PruningRequest(recipe.keep, name, text)
            version, artifact, _ = prune_decoder(
                store, version, artifact, request, self._on_progress
            )
        if recipe.distill_tokens:
            name = f"{name}-distilled{recipe.distill_tokens}"
            training = Training(tokens=recipe.distill_tokens)
            version, artifact = distill_model(
                store, self._home,
                DistillationRequest(
                    version.label, self._bench.source[0].label, text, name, training,
                    serve=make_server(store, self._home, self._machine),
                ),
                self._on_progress,
            )  # fmt: skip
        if recipe.scheme not in LEARNS:
            return version, artifact, recipe.scheme
        version, artifact, _ = quantize_openvino(
            store, version, artifact, recipe.scheme, out=f"{name}-{recipe.scheme}-measured",
            calibration=text, on_progress=self._on_progress,
        )  # fmt: skip
        return version, artifact, "none"

    def _judge(self, candidate: Candidate, tokens: int) -> dict[str, Any]:
        bench, served = self._bench, self.prepare(candidate)
        options = EvaluationOptions(
            domains=[Domain(one.name, one.path) for one in bench.domains], domain_tokens=tokens,
            kv_precision=self._find_kv_precision(candidate),
        )  # fmt: skip
        found = evaluate(
            served.version, bench.source[0].label, options, store=self._store,
            folder=self._home.evaluations, on_progress=self._on_progress,
        )  # fmt: skip
        domains = {name: asdict(one) for name, one in found.domains.items()}
        return {"domains": domains, "model": served.version, "size_bytes": self._size_of(served)}

    def _find_kv_precision(self, candidate: Candidate) -> str | None:
        """As the candidate is served, where the evaluation can compute so."""
        known = find_backend(DEFAULT_BACKEND).kv_precisions
        option = self._bench.engine.traits.tunable.get("kv_precision")
        if option is None:
            return None
        value = candidate.settings.as_options().get("kv_precision", option.values[0])
        return value if value in known else None

    def _ask(self, candidate: Candidate, number: int) -> dict[str, Any]:
        bench, store, folder = self._bench, self._store, self._home.evaluations
        reference, original = bench.source
        questions = bench.questions[:number]
        default = AnswersRequest(
            reference, questions, make_server(store, self._home, self._machine)
        )
        known = ask_model(store, folder, reference, original, default, self._on_progress)
        options = candidate.settings.as_options()
        if candidate.recipe == Recipe("none") and not options:
            # It is the reference, as it was just asked.
            return compare_given(questions, known, known).as_dict()
        arithmetic = describe_arithmetic() | ({"options": options} if options else {})
        request = AnswersRequest(
            reference, questions,
            make_server(store, self._home, self._machine, options), arithmetic,
        )  # fmt: skip
        model = self.find_model(candidate)
        given = ask_model(store, folder, *model, request, self._on_progress)
        return compare_given(questions, known, given).as_dict()

    def _on_progress(self, step: Progress) -> None:
        """Every step that may take long reports its progress, and is stopped there."""
        self._show_progress(step)
        if self._left_s() < 0:
            raise OutOfTime

    def _load(self, candidate: Candidate, seconds: int) -> dict[str, Any]:
        served = self.prepare(candidate)
        with only_replica(self._home):
            busy = psutil.cpu_percent(interval=0.3) / 100
            values = run_coroutine(self._measure(candidate, served, seconds))
        return {**values, "busy_before": busy, "size_bytes": self._size_of(served)}

    async def _measure(self, candidate: Candidate, served: Served, seconds: int) -> dict[str, Any]:
        bench, count = self._bench, candidate.settings.replicas
        async with run_replicas(
            served, bench.engine, self._home, self._store, self._machine, count
        ) as replicas:
            urls = [replica.row().url for replica in replicas]
            result = await put_load(
                urls, served.name, bench.load, seconds, chat=bool(bench.questions), seed=SEED
            )
            for replica in replicas:
                if has_ended(replica):
                    raise FleetError(
                        f"{served.version} ended under the load: {replica.message}; its log is "
                        f"{self._home.log_of(replica.id)}"
                    )
            summary, good, share = count_good(result, bench.objective)
            memory = sum(_read_memory(replica.row().pid) for replica in replicas)
            starts = [replica.ready_after_s for replica in replicas]
        return {
            "good_tokens_per_s": good, "good_share": share, "memory_bytes": memory,
            "start_s": max(starts), "summary": summary.to_json(),
        }  # fmt: skip

    def _size_of(self, served: Served) -> int:
        assert served.artifact is not None
        return self._store.load(served.artifact).size_bytes


def _read_memory(pid: int | None) -> int:
    """The resident memory of a process and those below it."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        everyone = [process, *process.children(recursive=True)]
        return sum(one.memory_info().rss for one in everyone)
    return 0


def _guess_s(kind: str, work: float) -> float:
    fixed, rate = GUESSES.get(kind, GUESSES["make int4"])
    return fixed + rate * work


class _Rates:
    """How much longer than guessed steps take here, by kind, and which references are recorded; kept
    in a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self._scales: dict[str, float] = kept.get("scales", {})
        self._references: list[str] = kept.get("references", [])

    def predict_s(self, kind: str, work: float) -> float:
        """What is not measured yet is as much slower or faster here as what is."""
        logs = [math.log(scale) for scale in self._scales.values()]
        mean = math.exp(sum(logs) / max(1, len(logs)))
        return _guess_s(kind, work) * self._scales.get(kind, mean)

    def learn(self, kind: str, work: float, seconds: float) -> None:
        """The mean of the newest and what was known, so that one odd step does not rule."""
        scale = seconds / _guess_s(kind, work)
        if scale > 1 / FOUND:
            known = self._scales.get(kind)
            self._scales[kind] = scale if known is None else (known + scale) / 2

    def has(self, reference: str) -> bool:
        return reference in self._references

    def note(self, reference: str) -> None:
        if reference and reference not in self._references:
            self._references.append(reference)

    def write(self) -> None:
        text = json.dumps({"scales": self._scales, "references": self._references}, indent=1)
        write_atomically(self._path, text)
