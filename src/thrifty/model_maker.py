"""The smaller models that specs ask for, made by the pipeline of `compress`.

What a pipeline needs is imported when one is run: a spec without one loads none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.engines.choice import Choice, list_candidates, list_installs
from thrifty.engines.machine import Machine
from thrifty.home import Home
from thrifty.spec import LoadedSpec, Spec
from thrifty.spec.compress import CompressSpec, QuantizeSpec
from thrifty.types import OnProgress, ignore_progress
from thrifty.units import format_duration

if TYPE_CHECKING:
    from thrifty.compress.pipeline import PipelineResult
    from thrifty.evaluate.gate import Verdict


class Compressor:
    """Makes the smaller models that specs ask for. What it needs is imported when it is used: a spec
    without a pipeline loads none of it.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        machine: Machine,
        on_stage: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`on_stage` is told of each stage, in words."""
        self._home = home
        self._store = store
        self._machine = machine
        self._on_stage = on_stage

    def check(self, loaded: LoadedSpec) -> None:
        """Refuse what can be refused before anything is fetched. Raises `SpecError`."""
        from thrifty.compress.pipeline import check_compress

        loaded.refuse(check_compress(loaded.spec.compress))

    def run(
        self,
        loaded: LoadedSpec,
        model: tuple[NamedVersion, Artifact],
        on_progress: OnProgress = ignore_progress,
    ) -> PipelineResult:
        """Every stage, made and measured now unless that was done before. Blocks. Raises
        `CompressionError`.
        """
        from thrifty.compress.pipeline import run_pipeline
        from thrifty.own_replica import make_server

        return run_pipeline(
            loaded.spec.compress, model, store=self._store, home=self._home,
            measure_speed=self._measure_speed,
            serve=make_server(self._store, self._home, self._machine),
            on_stage=self._on_stage, on_progress=on_progress,
        )  # fmt: skip

    def make(
        self, loaded: LoadedSpec, model: tuple[NamedVersion, Artifact], on_progress: OnProgress
    ) -> tuple[Spec, tuple[NamedVersion, Artifact]]:
        """What is served in place of `model`: under the name that `model` would have."""
        compressed = self.run(loaded, model, on_progress)
        changes = {
            "name": loaded.spec.name or model[0].name,
            "compress": CompressSpec(quantize=QuantizeSpec(scheme="none")),
        }
        return loaded.spec.model_copy(update=changes), compressed.result

    def choose(
        self, loaded: LoadedSpec, model: tuple[NamedVersion, Artifact], on_progress: OnProgress
    ) -> Choice:
        """What `auto` takes for `model`, measured now unless it was before. Blocks. Raises `SpecError`
        and `BenchError`.
        """
        from thrifty.choice_benchmark import ChoiceRequest, measure_choice

        self._on_stage(
            f"Measuring what is fastest here for {model[0].label}, once, for at most "
            f"{format_duration(loaded.spec.benchmark)}; preparing and starting come on top"
        )
        for told in list_installs(list_candidates(loaded.spec, model[1], self._machine).able):
            self._on_stage(told)
        request = ChoiceRequest(*model, loaded.spec)
        choice = measure_choice(request, self._store, self._home, self._machine, on_progress)
        self._on_stage(f"auto takes {choice.candidate}; {choice.reason}")
        return choice

    def judge(
        self, version: NamedVersion, artifact: Artifact, max_drop: float, on_progress: OnProgress
    ) -> tuple[Verdict, str]:
        """Whether a stored model is close enough to the one that it was made from, and that in
        words; measured, and recorded with the model. Blocks. Raises `EvaluationError` and its like.
        """
        from thrifty.evaluate.answers import (
            AnswersRequest,
            find_questions,
            is_chat_model,
            measure_answers,
        )
        from thrifty.evaluate.gate import judge_measured, record_verdict
        from thrifty.evaluate.suite import (
            EvaluationSuite,
            find_domains,
            find_root,
            measure_quality,
            name_default_domains,
        )
        from thrifty.own_replica import make_server

        store, home = self._store, self._home
        reference = find_root(store, version)
        root = store.load(reference.artifact)
        named = name_default_domains(store, root)
        domains = find_domains(named, home.data, store, on_progress)
        suite = EvaluationSuite(reference, domains, root.description.family)
        measured = measure_quality(store, home.evaluations, version, artifact, suite, on_progress)
        if is_chat_model(store, root):
            questions = find_questions(None, home.data, store, on_progress=on_progress)
            server = make_server(store, home, self._machine)
            request = AnswersRequest(reference, questions, server)
            measured.append(
                measure_answers(store, home.evaluations, version, artifact, request, on_progress)
            )
        verdict = judge_measured(measured, max_drop)
        return verdict, record_verdict(store, version, artifact, reference, verdict)

    def _measure_speed(
        self, version: NamedVersion, artifact: Artifact, on_progress: OnProgress
    ) -> Measurement:
        from thrifty.speed_benchmark import measure_speed

        return measure_speed(self._store, self._home, version, artifact, self._machine, on_progress)
