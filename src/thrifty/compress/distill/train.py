"""The training loop: reproducible across interruptions, in one process or several."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from thrifty.compress.distill.settings import Training
from thrifty.errors import CompressionError
from thrifty.files import replace_atomically, write_atomically
from thrifty.types import OnProgress, Progress, ignore_progress

BETAS = (0.9, 0.95)
LAST_RATE = 0.1
"""The final learning rate, relative to the peak."""
EXPLODED = 10.0
"""Training stops if the loss is this many times the recent mean, or not a number."""
RECENT = 20
STEPS = 500
MOST_BATCH_TOKENS = 4096
"""The default batch size is at most this, and smaller if that gives fewer than `STEPS` steps."""
RATE, RATE_TOKENS, MOST_RATE = 3e-4, 512, 5e-4
"""The default learning rate for steps of so many tokens; it grows with the size's square root."""
LEAST_STEPS = 25
TRAINED_PER_EVALUATED = 7
"""Tokens to train on between evaluations, for each token that is evaluated. Training on a token
takes three times as long, so that evaluation takes a twentieth of the time.
"""


class Objective(Protocol):
    """What is learned, and how far a model is from it."""

    unit: str
    """The unit of `measure`."""
    examples: int
    """How many there are to learn from, without the held-out ones."""
    example_tokens: int
    """Tokens of the longest example."""
    held_out_tokens: int
    """Tokens that one evaluation takes."""

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """The mean loss over some examples, and how many tokens they have."""
        ...

    def measure(self, model: Any, device: Any, rank: int, ranks: int) -> tuple[float, int]:
        """The sum over this rank's share of the held-out examples, and over how many
        predictions.
        """
        ...


@dataclass
class State:
    """The progress of a training, without weights."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """The loss of every step."""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and the held-out loss after them."""
    best_step: int = 0

    @property
    def best(self) -> float:
        """The lowest held-out loss so far."""
        return min((value for _, value in self.held_out), default=math.inf)


class Trainer:
    """Trains `model` in place; `folder` stores its checkpoints."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        training: Training,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self._objective = objective
        self._training = training
        self._folder = folder
        self._accelerator = accelerator
        if objective.examples < 1:
            raise CompressionError(
                "the text is too short: nothing is left to learn from; use more text"
            )
        model.to(torch.float32).train()
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        ranks: int = accelerator.num_processes
        self._per_step = math.ceil(_count_examples(training, objective) / ranks) * ranks
        self.batch_tokens = self._per_step * objective.example_tokens
        self.learning_rate = training.learning_rate or min(
            MOST_RATE, RATE * math.sqrt(self.batch_tokens / RATE_TOKENS)
        )
        self.steps = max(1, math.ceil(training.tokens / self.batch_tokens))
        between = TRAINED_PER_EVALUATED * objective.held_out_tokens
        self._every = training.every_steps or max(
            LEAST_STEPS, math.ceil(between / self.batch_tokens)
        )
        optimizer = torch.optim.AdamW(
            self._trained.values(), lr=self.learning_rate, betas=BETAS,
            weight_decay=training.weight_decay, fused=True,
        )  # fmt: skip
        self._model, self._optimizer = accelerator.prepare(model, optimizer)
        self.state = State()

    def run(self, on_progress: OnProgress = ignore_progress) -> State:
        """Train from the last checkpoint. Raises `CompressionError` if the loss explodes or is not
        a number; the last good checkpoint stays.
        """
        self._resume()
        training, state = self._training, self.state
        if not state.held_out:
            state.held_out.append((0, self.measure()))
        numbers = self._order(state.step * self._per_step)
        while state.step < self.steps and not self._stalled():
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate(state.step)
            loss, tokens = self._step([next(numbers) for _ in range(self._per_step)])
            self._check(loss)
            state.losses.append(loss)
            state.tokens += tokens
            state.step += 1
            if state.step % self._every == 0 or state.step == self.steps:
                self._evaluate()
            what = f"distill, loss {loss:.3f}, held out {state.best:.4f}"
            on_progress(Progress(what, state.tokens, training.tokens, "tokens"))
        if not state.best_step:
            raise CompressionError(
                f"training improved nothing: {state.held_out[0][1]:.4f} {self._objective.unit} on "
                f"held-out data before, {state.held_out[-1][1]:.4f} after; try a lower "
                "--learning-rate, or more --tokens"
            )
        self._load_weights("best")
        return state

    def measure(self) -> float:
        """The mean held-out loss."""
        accelerator = self._accelerator
        self._model.eval()
        with torch.inference_mode():
            total, count = self._objective.measure(
                self._model,
                accelerator.device,
                accelerator.process_index,
                accelerator.num_processes,
            )
        self._model.train()
        both = torch.tensor([total, float(count)], device=accelerator.device, dtype=torch.float32)
        both = accelerator.reduce(both, "sum")
        return float(both[0] / both[1])

    def _evaluate(self) -> None:
        state = self.state
        state.held_out.append((state.step, self.measure()))
        if state.held_out[-1][1] <= state.best:
            state.best_step = state.step
            self._save_weights("best")
        self._save()

    def _step(self, numbers: Sequence[int]) -> tuple[float, int]:
        """One optimizer step; returns the mean loss and the number of tokens."""
        accelerator, training = self._accelerator, self._training
        own = numbers[accelerator.process_index :: accelerator.num_processes]
        groups = [
            own[at : at + training.micro_batch] for at in range(0, len(own), training.micro_batch)
        ]
        total, tokens = 0.0, 0
        for index, group in enumerate(groups):
            with _last_alone(accelerator, self._model, last=index == len(groups) - 1):
                loss, count = self._objective.loss(self._model, group, accelerator.device)
                loss = loss * (len(group) / len(own))
                accelerator.backward(loss)
            total += float(loss.detach())
            tokens += count
        accelerator.clip_grad_norm_(self._trained.values(), training.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if accelerator.num_processes == 1:
            return total, tokens
        both = torch.tensor([total, float(tokens)], device=accelerator.device)
        both = accelerator.reduce(both, "sum")
        return float(both[0]) / accelerator.num_processes, int(both[1])

    def _order(self, done: int) -> Iterator[int]:
        """The numbers of examples in training order, shuffled every epoch, after the first
        `done`.
        """
        epoch = 0
        while True:
            order = list(range(self._objective.examples))
            random.Random(f"{self._training.seed} {epoch}").shuffle(order)
            if done < len(order):
                yield from order[done:]
                done = 0
            else:
                done -= len(order)
            epoch += 1

    def _rate(self, step: int) -> float:
        """The learning rate: a linear warm-up, then half a cosine."""
        highest, warm = self.learning_rate, self._training.warm_up * self.steps
        if step < warm:
            return highest * (step + 1) / max(1.0, warm)
        share = (step - warm) / max(1.0, self.steps - warm)
        return highest * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * share)))

    def _stalled(self) -> bool:
        evaluations = [step for step, _ in self.state.held_out if step > self.state.best_step]
        return len(evaluations) >= self._training.patience

    def _check(self, loss: float) -> None:
        recent = self.state.losses[-RECENT:]
        usual = sum(recent) / len(recent) if len(recent) == RECENT else math.inf
        if math.isfinite(loss) and loss <= max(EXPLODED * usual, 0.1):
            return
        what = f"{loss:.3g}, after {usual:.3g}" if math.isfinite(loss) else "not a number"
        raise CompressionError(
            f"training stopped at step {self.state.step + 1}: the loss is {what}. The checkpoint "
            f"of step {self._saved_step()} is kept in {self._folder}; try a lower --learning-rate"
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
        name = f"step-{self.state.step}"
        tensors = {f"weight.{n}": p.detach().cpu() for n, p in self._trained.items()}
        for key, parameter in self._trained.items():
            for kind, value in self._optimizer.state[parameter].items():
                tensors[f"{kind}.{key}"] = torch.as_tensor(value).detach().cpu()
        write_tensors(self._folder / f"{name}.safetensors", tensors)
        note = {**asdict(self.state), "training": asdict(self._training), "file": name}
        write_atomically(self._folder / "state.json", json.dumps(note))
        for old in self._folder.glob("step-*.safetensors"):
            if old.stem != name:
                old.unlink()

    def _resume(self) -> None:
        path = self._folder / "state.json"
        if not path.exists():
            return
        note = json.loads(path.read_text())
        if note.pop("training") != asdict(self._training):
            raise CompressionError(
                f"{self._folder} contains a training with other settings; remove it, or use the "
                "same settings"
            )
        tensors = load_file(self._folder / f"{note.pop('file')}.safetensors")
        note["held_out"] = [tuple(entry) for entry in note["held_out"]]
        self.state = State(**note)
        device = self._accelerator.device
        with torch.no_grad():
            for key, parameter in self._trained.items():
                parameter.copy_(tensors[f"weight.{key}"])
                self._optimizer.state[parameter] = {
                    kind: tensors[f"{kind}.{key}"].to(device)
                    for kind in ("step", "exp_avg", "exp_avg_sq")
                }

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


def _count_examples(training: Training, objective: Objective) -> int:
    """The number of examples in a step."""
    if training.batch_tokens is not None:
        return max(1, training.batch_tokens // objective.example_tokens)
    tokens = min(MOST_BATCH_TOKENS, training.tokens // STEPS)
    return max(training.micro_batch, tokens // objective.example_tokens)


def _last_alone(accelerator: Accelerator, model: Any, *, last: bool) -> Any:
    """Synchronize gradients between processes once per step, after its last part."""
    return nullcontext() if last else accelerator.no_sync(model)


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Write a safetensors file atomically."""
    with replace_atomically(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
