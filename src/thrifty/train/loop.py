"""The training loop: reproducible across interruptions, in one process or several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thrifty.errors import TrainingError
from thrifty.files import replace_atomically, write_atomically
from thrifty.train.averages import swap, take_average
from thrifty.train.forecast import LEAST_POINTS
from thrifty.train.gradients import Gradients
from thrifty.train.order import order_examples
from thrifty.train.outlook import describe_progress, find_points, tell_forecast
from thrifty.train.schedule import (
    choose_rate,
    count_examples,
    find_fall,
    find_rate,
    lower_rate,
)
from thrifty.train.settings import (
    IMPROVED_NOTHING,
    LoopSettings,
    describe_same,
    leave_out_none,
)
from thrifty.train.state import Limits, Objective, State
from thrifty.train.trunk import keep_trunk
from thrifty.types import OnProgress, ignore_progress

Found = TypeVar("Found")
BETAS = (0.9, 0.95)
EXPLODED = 10.0
"""Training stops if the loss is this many times the recent mean, or not a number."""
RECENT = 20
LEAST_STEPS = 25
TRAINED_PER_EVALUATED = 7
"""Tokens to train on between evaluations, for each token that is evaluated. Training on a token
takes three times as long, so that evaluation takes a twentieth of the time."""
FIRST_EVALUATION_S, MOST_BETWEEN_S, EVALUATION_SHARE = 25.0, 120.0, 0.1
"""A training with a deadline is evaluated after so many seconds, then at twice the time, but at
least so often; less often where an evaluation would take more than this share of the time."""
EARLY_POINTS = LEAST_POINTS + 2
"""Until a curve has so many points, few of the held-out examples are evaluated in between."""
FORECAST_EVERY_S = 60.0
EARLIEST_STOP = 0.5
"""Where the end is known, evaluations without improvement count from this share of the steps on:
while the learning rate is high, held-out losses may rise that then fall below where they began."""


class Trainer:
    """Trains `model` in place; `folder` stores its checkpoints."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        training: LoopSettings,
        folder: Path,
        accelerator: Accelerator,
        name: str = "train",
        at_once: int = 1,
    ) -> None:
        """`name` is what progress calls it. At most `at_once` micro-batches run at once."""
        self._objective = objective
        self._training = training
        self._folder = folder
        self._accelerator = accelerator
        self._name = name
        if objective.examples < 1:
            raise TrainingError("the data are too short: nothing is left to learn from; use more")
        model.to(torch.float32).train()
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        ranks: int = accelerator.num_processes
        # Objectives that compare the examples of a micro-batch get whole ones.
        whole = ranks * (training.micro_batch if training.batch_examples else 1)
        self._per_step = math.ceil(count_examples(training, objective) / whole) * whole
        self.batch_tokens = self._per_step * objective.example_tokens
        self._average: dict[str, Any] = {}
        self._last_step_s = self._told_s = self._due_s = self._few_due_s = 0.0
        self._limits = Limits()
        self._run_s = time.monotonic()
        self._before_s = 0.0
        self.learning_rate = choose_rate(training, self.batch_tokens)
        self.steps = training.steps or (
            max(1, math.ceil(training.tokens / self.batch_tokens)) if training.tokens else None
        )
        between = TRAINED_PER_EVALUATED * objective.held_out_tokens
        self._every = training.every_steps or max(
            LEAST_STEPS, math.ceil(between / self.batch_tokens)
        )
        optimizer = torch.optim.AdamW(
            self._trained.values(), lr=self.learning_rate, betas=BETAS,
            weight_decay=training.weight_decay, fused=True,
        )  # fmt: skip
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self._gradients = Gradients(
            self._model, list(self._trained.values()), objective, accelerator, at_once
        )
        self.state = State()

    def run(
        self,
        on_progress: OnProgress = ignore_progress,
        on_note: Callable[[str], None] = lambda text: None,
        limits: Limits | None = None,
    ) -> bool:
        """Train from the last checkpoint; returns whether the training ended, not paused.

        Raises `TrainingError` if the loss explodes or is not a number, and if the time is too
        short for a step; the last good checkpoint stays.
        """
        self._limits = limits = limits or Limits()
        self._run_s = time.monotonic() if limits.started_s is None else limits.started_s
        self._resume()
        state = self.state
        self._before_s = state.seconds
        if not state.held_out:
            self._note_held_out()
            self._note_few()
        if self._objective.is_divergence:
            before = state.held_out[0][1]
            self.learning_rate = choose_rate(self._training, self.batch_tokens, before)
        self._require_time_for_a_step()
        self._told_s = time.monotonic()
        self._due_s = self._find_due()
        self._few_due_s = self._find_few_due()
        numbers = order_examples(
            state.phases, self._objective.examples, state.step * self._per_step,
            self._training.seed, epochs_differ=self._training.epochs_differ,
        )  # fmt: skip
        while not self._has_ended():
            if (
                limits.steps is not None
                and state.step >= limits.steps
                and state.falls_from is None
                and self._agree(self._left_s() >= limits.pause_left_s)
            ):
                self._save()
                return False
            rate = find_rate(self._training, self.learning_rate, state.step, self.steps)
            rate *= self._lower_rate()
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            began_s = time.monotonic()
            loss, tokens, norm = self._step([next(numbers) for _ in range(self._per_step)])
            self._last_step_s = time.monotonic() - began_s
            state.stepping_s += self._last_step_s
            self._check(loss, norm)
            state.losses.append(loss)
            state.tokens += tokens
            state.step += 1
            if self._training.averages and state.falls_from is None:
                take_average(self._average, self._trained, state.step)
            if self._is_evaluation_due():
                self._evaluate()
                self._tell_forecast(on_note)
            elif self._is_early_point_due():
                with self._averaged():
                    self._note_few()
                self._few_due_s = self._find_few_due()
                self._tell_forecast(on_note)
            elif self._agree(time.monotonic() - self._told_s > FORECAST_EVERY_S):
                self._tell_forecast(on_note)
            on_progress(
                describe_progress(self._name, loss, state, self._training, limits, self._now_s())
            )
        if state.held_out[-1][0] != state.step:
            self._evaluate()
        if not state.best_step:
            raise TrainingError(
                f"{IMPROVED_NOTHING}: {state.held_out[0][1]:.4f} {self._objective.unit} on "
                f"held-out data before, {state.held_out[-1][1]:.4f} after; try a lower "
                "--learning-rate, or train longer"
            )
        self._load_weights("best")
        return True

    def apply(self, use: Callable[[Any, Any], Found]) -> Found:
        """What `use` makes of the model as it is now and its device, without gradients."""
        self._model.eval()
        with torch.inference_mode():
            return use(self._accelerator.unwrap_model(self._model), self._accelerator.device)

    def measure(self) -> dict[str, float]:
        """The mean held-out loss of each domain."""
        return self._measure(self._objective.measure)

    def _measure(self, measure: Callable[..., dict[str, tuple[float, int]]]) -> dict[str, float]:
        accelerator = self._accelerator
        self._model.eval()
        with torch.inference_mode():
            sums = measure(
                self._model,
                accelerator.device,
                accelerator.process_index,
                accelerator.num_processes,
            )
        self._model.train()
        both = torch.tensor(
            [sums[name] for name in self._objective.domains], dtype=torch.float32,
            device=accelerator.device,
        )  # fmt: skip
        both = accelerator.reduce(both, "sum")
        means = (both[:, 0] / both[:, 1].clamp(min=1)).tolist()
        return dict(zip(self._objective.domains, means, strict=True))

    def _find_details(self) -> dict[str, float]:
        """The objective's other figures of the last `measure`, over all processes."""
        notes = self._objective.notes
        if self._accelerator.num_processes > 1:
            notes = gather_object(notes)
        return self._objective.describe(notes)

    def _note_held_out(self) -> None:
        began_s = time.monotonic()
        found = self.measure()
        state = self.state
        state.evaluation_s = time.monotonic() - began_s
        mean = sum(found.values()) / len(found)
        if not math.isfinite(mean):
            raise self._describe_stop(state.step, "the held-out loss is not a number")
        for name, value in found.items():
            state.curves.setdefault(name, []).append((state.tokens, value))
        state.held_out.append((state.step, mean))
        details = self._find_details()
        if details:
            state.details.append((state.step, details))

    def _evaluate(self) -> None:
        state = self.state
        with self._averaged():
            self._note_held_out()
            if self._training.keeps_last or state.held_out[-1][1] <= state.best:
                state.best_step = state.step
                self._save_weights("best")
        self._save()
        self._due_s = self._find_due()

    def _note_few(self) -> None:
        """Evaluate few of the held-out examples, for a forecast before there is a curve."""
        if not self._objective.few_tokens or self._limits.deadline_s is None:
            return
        for name, value in self._measure(self._objective.measure_few).items():
            self.state.few.setdefault(name, []).append((self.state.tokens, value))

    # time

    def _now_s(self) -> float:
        """The seconds of training so far, over all runs."""
        return self._before_s + time.monotonic() - self._run_s

    def _find_due(self) -> float:
        """When a training with a deadline is evaluated next, in seconds of training."""
        now_s = self._now_s()
        between_s = max(FIRST_EVALUATION_S, self.state.evaluation_s / EVALUATION_SHARE)
        return now_s + max(between_s, min(now_s, MOST_BETWEEN_S))

    def _find_few_due(self) -> float:
        """When few examples are evaluated next, in seconds of training."""
        objective = self._objective
        few_s = self.state.evaluation_s * objective.few_tokens / max(1, objective.held_out_tokens)
        return self._now_s() + max(FIRST_EVALUATION_S, few_s / EVALUATION_SHARE)

    def _is_early_point_due(self) -> bool:
        points = max((len(find_points(self.state, name)) for name in self.state.few), default=0)
        if not 0 < points < EARLY_POINTS or self._limits.deadline_s is None:
            return False
        return self._agree(self._now_s() >= self._few_due_s)

    def _lower_rate(self) -> float:
        """The part of the rate that remains near the end of the time. Keeps the checkpoint from
        before the first step that is slower.
        """
        state, limits = self.state, self._limits
        if not self._training.falls or limits.deadline_s is None:
            return 1.0
        left = self._agree_on(find_fall(self._now_s(), self._left_s()))
        if left < 1 and state.falls_from is None and state.step:
            self._save()
            if self._accelerator.is_main_process:
                keep_trunk(self._folder)
            state.falls_from, state.falls_for_s = state.step, limits.budget_s
        return lower_rate(left)

    def _is_evaluation_due(self) -> bool:
        if self.steps is None:
            return self._agree(self._now_s() >= self._due_s)
        return self.state.step % self._every == 0 or self.state.step == self.steps

    def _has_ended(self) -> bool:
        if self._stalled():
            return True
        if self.steps is not None:
            return self.state.step >= self.steps
        return self._agree(self._left_s() < self._step_s())

    def _left_s(self) -> float:
        """What is left for steps: the last evaluation and the checkpoint take their time, too."""
        if self._limits.deadline_s is None:
            return math.inf
        last_s = 1.3 * (self.state.evaluation_s + self.state.saving_s)
        return self._limits.deadline_s - time.monotonic() - last_s

    def _step_s(self) -> float:
        """How long a step takes: as measured, or as the evaluation suggests."""
        state = self.state
        if state.step:
            return max(state.stepping_s / state.step, self._last_step_s)
        tokens = max(1, self._objective.held_out_tokens)
        return 3 * state.evaluation_s * self.batch_tokens / tokens

    def _require_time_for_a_step(self) -> None:
        limits, needed_s = self._limits, self._step_s()
        if limits.deadline_s is None or self.state.step or self._left_s() >= needed_s:
            return
        budget_s = limits.budget_s or 0.0
        enough_s = budget_s - self._left_s() + 2 * needed_s
        raise TrainingError(
            f"{budget_s / 60:.2g} minutes are too short for one step of {self.batch_tokens} "
            f"tokens, which takes about {needed_s:.0f} s after the rest; about "
            f"{math.ceil(enough_s / 6) / 10:g} minutes would be enough. What was prepared is kept"
        )

    def _agree(self, decision: bool) -> bool:
        """The same decision in all processes."""
        return self._agree_on(float(decision)) > 0

    def _agree_on(self, number: float) -> float:
        """The same number in all processes: the first one's, whose clock counts."""
        accelerator = self._accelerator
        if accelerator.num_processes == 1:
            return number
        own = number if accelerator.is_main_process else 0.0
        given = torch.tensor([own], device=accelerator.device)
        return float(accelerator.reduce(given, "sum")[0])

    def _tell_forecast(self, on_note: Callable[[str], None]) -> None:
        """Predict where each domain ends, once there is a curve."""
        self._told_s = time.monotonic()
        state, limits = self.state, self._limits
        if limits.deadline_s is None:
            end: float = self._training.tokens or (self.steps or 0) * self.batch_tokens
        else:
            left_s = max(0.0, self._left_s()) * (1 - EVALUATION_SHARE)
            end = state.tokens + state.tokens / max(1e-9, state.stepping_s) * left_s
        spent_s = limits.spent_s + self._now_s()
        note = tell_forecast(state, max(end, state.tokens), spent_s)
        if note or limits.deadline_s is not None:
            on_note(note or f"after {spent_s / 60:.1f} minutes: no curve yet to tell the end from")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights, if they are taken. While the rate falls, the weights
        themselves are less noisy.
        """
        average = self._average if self.state.falls_from is None else {}
        swap(average, self._trained)
        try:
            yield
        finally:
            swap(average, self._trained)

    def _step(self, numbers: Sequence[int]) -> tuple[float, int, float]:
        """One optimizer step; returns the mean loss, the number of tokens, and the norm of the
        gradients. Where that is not finite, the weights stay as they are.
        """
        accelerator, training = self._accelerator, self._training
        own = numbers[accelerator.process_index :: accelerator.num_processes]
        groups = [
            own[at : at + training.micro_batch] for at in range(0, len(own), training.micro_batch)
        ]
        self._objective.steps_made = self.state.step
        self._objective.prepare(self._model, own, accelerator.device)
        # Processes average their gradients, so that each of them counts by its weight in the step.
        weight = self._objective.weigh(numbers) / accelerator.num_processes
        total, tokens = self._gradients.add(groups, weight)
        norm = float(accelerator.clip_grad_norm_(self._trained.values(), training.clip))
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if accelerator.num_processes == 1:
            return total, tokens, norm
        both = torch.tensor([total, float(tokens)], device=accelerator.device)
        both = accelerator.reduce(both, "sum")
        return float(both[0]) / accelerator.num_processes, int(both[1]), norm

    def _stalled(self) -> bool:
        if self._training.keeps_last:
            return False
        counted = max(self.state.best_step, EARLIEST_STOP * (self.steps or 0))
        evaluations = [step for step, _ in self.state.held_out if step > counted]
        return len(evaluations) >= self._training.patience

    def _check(self, loss: float, norm: float) -> None:
        recent = self.state.losses[-RECENT:]
        usual = sum(recent) / len(recent) if len(recent) == RECENT else math.inf
        # What is below the loss at the beginning is no explosion, however low the others are.
        bound = max(EXPLODED * usual, 0.1, self.state.held_out[0][1])
        if not math.isfinite(loss):
            what = "the loss is not a number"
        elif not math.isfinite(norm):
            what = "the gradients are not numbers"
        elif loss > bound:
            what = f"the loss is {loss:.3g}, after {usual:.3g}"
        else:
            return
        raise self._describe_stop(self.state.step + 1, what)

    def _describe_stop(self, step: int, what: str) -> TrainingError:
        return TrainingError(
            f"training stopped at step {step}: {what}. The checkpoint of step "
            f"{self._saved_step()} is kept in {self._folder}; try a lower --learning-rate"
        )

    # checkpoints

    def _saved_step(self) -> int:
        path = self._folder / "state.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0

    def _save(self) -> None:
        """Save weights and optimizer under a new name, then the note that makes them the
        checkpoint.
        """
        if not self._accelerator.is_main_process:
            return
        began_s = time.monotonic()
        self.state.seconds = self._now_s()
        name = f"step-{self.state.step}"
        tensors = {f"weight.{n}": p.detach().cpu() for n, p in self._trained.items()}
        for key, parameter in self._trained.items():
            for kind, value in self._optimizer.state[parameter].items():
                tensors[f"{kind}.{key}"] = torch.as_tensor(value).detach().cpu()
        tensors |= {f"average.{n}": average.cpu() for n, average in self._average.items()}
        write_tensors(self._folder / f"{name}.safetensors", tensors)
        self.state.saving_s = time.monotonic() - began_s
        note = {**asdict(self.state), "training": describe_same(self._training), "file": name}
        write_atomically(self._folder / "state.json", json.dumps(note))
        for old in self._folder.glob("step-*.safetensors"):
            if old.stem != name:
                old.unlink()

    def _resume(self) -> None:
        path = self._folder / "state.json"
        if not path.exists():
            return
        note = json.loads(path.read_text())
        if leave_out_none(note.pop("training")) != describe_same(self._training):
            raise TrainingError(
                f"{self._folder} contains a training with other settings; remove it, or use the "
                "same settings"
            )
        tensors = load_file(self._folder / f"{note.pop('file')}.safetensors")
        lists = ("held_out", "phases", "details")
        curves = (*note["curves"].values(), *note.get("few", {}).values())
        for pairs in (*(note.get(name, []) for name in lists), *curves):
            pairs[:] = map(tuple, pairs)
        self.state = State(**note)
        device = self._accelerator.device
        with torch.no_grad():
            for key, parameter in self._trained.items():
                parameter.copy_(tensors[f"weight.{key}"])
                self._optimizer.state[parameter] = {
                    kind: tensors[f"{kind}.{key}"].to(device)
                    for kind in ("step", "exp_avg", "exp_avg_sq")
                }
                if f"average.{key}" in tensors:
                    self._average[key] = tensors[f"average.{key}"].to(device)

    def _save_weights(self, name: str) -> None:
        if self._accelerator.is_main_process:
            tensors = {key: parameter.detach().cpu() for key, parameter in self._trained.items()}
            write_tensors(self._folder / f"{name}.safetensors", tensors)

    def _load_weights(self, name: str) -> None:
        self._accelerator.wait_for_everyone()
        tensors = load_file(self._folder / f"{name}.safetensors")
        with torch.no_grad():
            for key, parameter in self._trained.items():
                parameter.copy_(tensors[key])


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write a safetensors file atomically. Raises `TrainingError` where it cannot be written."""
    try:
        with replace_atomically(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} cannot be written: {error}. The last state stays; free some space, and the same "
            "command goes on from it"
        ) from None
