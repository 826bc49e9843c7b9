"""The gradients of a training step: of one micro-batch after the other, or of several at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from thrifty.train.state import Objective


class Gradients:
    """Adds gradients to `parameters`, the trained weights of `model`.

    On a CPU, each thread computes a micro-batch of its own, as far as there are cores. Threads that
    compute one together wait for one another after every operation: where another process takes a
    core for a moment, all of them stand still.
    """

    def __init__(
        self,
        model: Any,
        parameters: Sequence[Any],
        objective: Objective,
        accelerator: Accelerator,
        at_once: int,
    ) -> None:
        """`at_once` micro-batches at most are computed at once."""
        self._model = model
        self._parameters = parameters
        self._objective = objective
        self._accelerator = accelerator
        cores = torch.get_num_threads()
        alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        self._threads = min(cores, at_once) if alone and objective.concurrent else 1
        self._pool = ThreadPoolExecutor(
            self._threads, "micro-batch",
            initializer=torch.set_num_threads, initargs=(cores // self._threads,),
        )  # fmt: skip

    def add(self, groups: Sequence[Sequence[int]], weight: float) -> tuple[float, int]:
        """Add the gradients of a step's micro-batches; `weight` is that of all their examples.
        Returns the loss of the step, and how many tokens it has.
        """
        if self._threads > 1 and len(groups) > 1:
            return self._add_several(groups, weight)
        total, tokens, accelerator = 0.0, 0, self._accelerator
        for index, group in enumerate(groups):
            # Processes add up their gradients once per step, after its last part.
            last = index == len(groups) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                loss, count = self._weigh_loss(group, weight)
                accelerator.backward(loss)
            total += float(loss.detach())
            tokens += count
        return total, tokens

    def _add_several(self, groups: Sequence[Sequence[int]], weight: float) -> tuple[float, int]:
        """Gradients are added in the order of the groups, so that a training that was stopped goes
        on to the same curve.
        """
        total, tokens = 0.0, 0
        for at in range(0, len(groups), self._threads):
            some = groups[at : at + self._threads]
            found = self._pool.map(lambda group: self._differentiate(group, weight), some)
            for loss, count, gradients in found:
                total, tokens = total + loss, tokens + count
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    if gradient is not None:
                        before = parameter.grad
                        parameter.grad = gradient if before is None else before.add_(gradient)
        return total, tokens

    def _differentiate(
        self, group: Sequence[int], weight: float
    ) -> tuple[float, int, Sequence[Any]]:
        loss, count = self._weigh_loss(group, weight)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return float(loss.detach()), count, gradients

    def _weigh_loss(self, group: Sequence[int], weight: float) -> tuple[Any, int]:
        """What a micro-batch adds to the loss of the step, and its tokens."""
        objective = self._objective
        loss, count = objective.loss(self._model, group, self._accelerator.device)
        return loss * (objective.weigh(group) / weight), count
