"""LoRA adapters: low-rank changes of a model's matrices, in PEFT's layout, beside a base model.

An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors`, the tokenizer, and
`thrifty.json`, which names the base by its id in the store. A changed matrix is W + scale x B A.
Hu et al. 2021, 2106.09685.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.artifact import Description, Parent
from thrifty.artifacts.inspect import ADAPTER_CONFIG, ADAPTER_NOTE, ADAPTER_WEIGHTS, read_json
from thrifty.artifacts.safetensors_file import SafetensorsFiles, write_safetensors
from thrifty.artifacts.settings import read_integer, read_number
from thrifty.errors import FormatRefused, IntegrityError

FloatArray = npt.NDArray[np.float32]

ADAPTER_FOLDER = "adapter"
"""Below the folder of a prepared model: the adapter that it is served with."""
SCALE = 2.0
"""What the changes of adapters that are trained here are multiplied by: alpha over the rank."""
_PREFIX = "base_model.model."
_REFUSED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
            "layer_replication")  # fmt: skip
"""Settings that change more than low-rank products do."""


@dataclass(frozen=True)
class Lora:
    """An adapter."""

    rank: int
    scale: float
    """What B A is multiplied by."""
    matrices: Mapping[str, tuple[FloatArray, FloatArray]]
    """A [rank, columns] and B [rows, rank], by the matrix that they change."""

    def read_change(self, name: str) -> FloatArray:
        """What is added to the matrix `name`."""
        down, up = self.matrices[name]
        found: FloatArray = np.float32(self.scale) * (up @ down)
        return found


def read_config(folder: Path) -> tuple[int, float]:
    """The rank and the scale of the adapter in `folder`. Raises `FormatRefused` for none that is
    read safely and can be served.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists() or not (folder / ADAPTER_WEIGHTS).exists():
        raise FormatRefused(
            f"{folder} holds no LoRA adapter: it needs {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} "
            "(adapters as .bin are pickle, which can run code)"
        )
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise FormatRefused(f"{path} is of the type {kind!r}; LORA adapters can be served")
    try:
        rank = read_integer(config, "r", path, least=1)
        alpha = read_number(config, "lora_alpha", path, default=float(rank))
    except IntegrityError as error:
        raise FormatRefused(str(error)) from None
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_lora(folder: Path) -> Lora:
    """The adapter in `folder`. Raises `FormatRefused` for one with more than low-rank changes, and
    `IntegrityError` for a damaged one.
    """
    rank, scale = read_config(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise FormatRefused(
            f"{folder / ADAPTER_CONFIG} sets {', '.join(refused)}; only adapters that add low-rank changes "
            "to matrices can be served. Merge it (PEFT's merge_and_unload) and serve the result"
        )
    path = folder / ADAPTER_WEIGHTS
    files = SafetensorsFiles([path])
    matrices: dict[str, tuple[FloatArray, FloatArray]] = {}
    wanted = set(files.names)
    for full in files.names:
        if not full.endswith(".lora_A.weight"):
            continue
        other = full.replace(".lora_A.weight", ".lora_B.weight")
        name = full.removesuffix(".lora_A.weight").removeprefix(_PREFIX)
        if other not in files:
            raise IntegrityError(f"{path} is damaged: it has no tensor {other!r}")
        down, up = files.read_tensor(full), files.read_tensor(other)
        if down.ndim != 2 or up.ndim != 2 or not len(down) == up.shape[1] == rank:
            raise IntegrityError(
                f"{path} is damaged: the change of {name} is {_say(up)} by {_say(down)}, and its rank "
                f"is {rank}"
            )
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise IntegrityError(f"{path} is damaged: the change of {name} is not finite")
        matrices[name] = down, up
        wanted -= {full, other}
    if wanted or not matrices:
        what = f"the tensor {min(wanted)!r} is no part of one" if wanted else "it changes nothing"
        raise FormatRefused(f"{path} is no LoRA adapter of a language model: {what}")
    return Lora(rank, scale, matrices)


def write_lora(folder: Path, lora: Lora, base: Parent, described: Description) -> None:
    """Write an adapter in 16 bits. `base` is the model that it changes, and `described` describes
    that as a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alpha = lora.scale * lora.rank
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name,
        "r": lora.rank, "lora_alpha": round(alpha) if alpha.is_integer() else alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in lora.matrices}),
        "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tensors = {
        f"{_PREFIX}{name}.lora_{part}.weight": values
        for name, pair in lora.matrices.items()
        for part, values in zip("AB", pair, strict=True)
    }
    write_safetensors(folder / ADAPTER_WEIGHTS, tensors)
    own = sum(down.size + up.size for down, up in lora.matrices.values())
    note = {
        "base": {"id": base.id, "name": base.name}, "family": described.family.value,
        "architecture": described.architecture, "context_length": described.context_length,
        "parameters": described.parameters + own,
    }  # fmt: skip
    (folder / ADAPTER_NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def join(first: Lora, second: Lora) -> Lora:
    """One adapter that changes what both do: of the sum of their ranks, with the second's scale.

    A matrix that only one of them changes gets zeros for the other.
    """
    matrices = {}
    for name in dict.fromkeys((*first.matrices, *second.matrices)):
        parts = [_scale(one, name, second.scale) for one in (first, second)]
        columns = next(down.shape[1] for down, _ in filter(None, parts))
        rows = next(len(up) for _, up in filter(None, parts))
        downs, ups = [], []
        for one, part in zip((first, second), parts, strict=True):
            empty = (
                np.zeros((one.rank, columns), np.float32),
                np.zeros((rows, one.rank), np.float32),
            )
            down, up = part or empty
            downs.append(down)
            ups.append(up)
        matrices[name] = np.concatenate(downs), np.concatenate(ups, axis=1)
    return Lora(first.rank + second.rank, second.scale, matrices)


def _scale(lora: Lora, name: str, scale: float) -> tuple[FloatArray, FloatArray] | None:
    """The matrices of `name` as an adapter with another scale has them."""
    if name not in lora.matrices:
        return None
    down, up = lora.matrices[name]
    return down, up * np.float32(lora.scale / scale)


def _say(values: FloatArray) -> str:
    return " x ".join(map(str, values.shape))
