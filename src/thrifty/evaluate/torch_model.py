"""Load a checkpoint into PyTorch. Needs the extra `compress`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.errors import EvaluationError


def load_torch_model(
    folder: Path, label: str, kind: str = "AutoModelForCausalLM", dtype: str = "float32"
) -> Any:
    """The transformers model in `folder`, of the class `kind`.

    Raises `EvaluationError` if PyTorch is not installed or cannot load it.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise EvaluationError(
            f"{label} needs PyTorch, which is not installed: pip install 'thrifty[compress]'"
        )
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return getattr(transformers, kind).from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise EvaluationError(f"PyTorch cannot load {label}: {first}") from None


def cache_of(out: Any) -> dict[str, Any]:
    """The KV cache in a model's output, under the name that its next call expects: `cache`, or
    `past_key_values` in transformers before 5.24.
    """
    name = "cache" if "cache" in out else "past_key_values"
    return {name: out[name]}
