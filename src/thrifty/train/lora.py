"""LoRA: train low-rank updates of a model's matrices. Hu et al. 2021, 2106.09685."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thrifty.artifacts.lora import SCALE, Lora

NOT_CHANGED = ("lm_head", "pooler")


class _LowRank(nn.Module):  # type: ignore[misc]  # torch's types are not read
    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base
        self._frozen: Any = None
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Any) -> Any:
        weight = self._read_frozen(x.device.type)
        return nn.functional.linear(x, weight, self.base.bias) + SCALE * (
            (x @ self.down.T) @ self.up.T
        )

    def _read_frozen(self, kind: str) -> Any:
        """The frozen matrix, in the precision of autocast, which converts it only once here: it
        remembers what it has converted only of weights that are trained.
        """
        weight = self.base.weight
        if not torch.is_autocast_enabled(kind):
            return weight
        dtype = torch.get_autocast_dtype(kind)
        kept = self._frozen
        if kept is None or kept.dtype != dtype or kept.device != weight.device:
            # An evaluation may be the first to ask, and its tensors take no part in gradients.
            with torch.inference_mode(mode=False):
                kept = self._frozen = weight.detach().to(dtype)
        return kept


def attach(model: Any, rank: int, seed: int) -> None:
    """Freeze `model` and add a trainable update of rank `rank` to each matrix of its layers."""
    torch.manual_seed(seed)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not any(part in name for part in NOT_CHANGED):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _LowRank(module, rank))


def add(model: Any, changes: Lora) -> None:
    """Add an adapter's changes to the weights."""
    with torch.no_grad():
        for name in changes.matrices:
            weight = model.get_submodule(name).weight
            weight += torch.from_numpy(changes.read_change(name)).to(weight)


def extract(model: Any) -> dict[str, Any]:
    """The matrices of the updates, as `register` reads them."""
    return {
        f"{name}.{part}": values.detach().float().cpu()
        for name, module in model.named_modules()
        if isinstance(module, _LowRank)
        for part, values in (("down", module.down), ("up", module.up))
    }


def merge(model: Any) -> None:
    """Add each update to its matrix and remove the wrapper."""
    for name, module in list(model.named_modules()):
        if isinstance(module, _LowRank):
            with torch.no_grad():
                module.base.weight += SCALE * (module.up @ module.down).to(module.base.weight)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.base)
